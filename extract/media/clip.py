"""Media to numbers: the first frame of each second and the sound of a clip, from a video or the benchmark's files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from extract.media.pictures import resized
from extract.media.video import read_container
from extract.media.wav import SAMPLE_RATE_HZ, read_wave
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.source_files import PICTURE_ERRORS, open_picture, reason_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# How films are read (`video.py`); raised with what changes that for some of them. Of 1: before stores told it.
FILM_RULES = 2
PREPROCESSING = "first frame of each second, PIL bilinear to a square, ImageNet mean and deviation"


@dataclass(frozen=True, kw_only=True)
class Media:
    """What the encoders are given of one clip.

    Attributes:
        frames: RGB, one for each second.
        sound: mono at 16 kHz, full scale 1, exactly as many seconds as frames; zeros where the clip has none.
        silent: the clip has no sound track.
        repeated_from_s: first second that repeats the last frame because the picture had ended; None where none does.
        notes: what else is odd, names of `extract.media.notes.NOTES`.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    sound: Float[np.ndarray, " s"]
    silent: bool
    repeated_from_s: int | None
    notes: tuple[str, ...] = ()


def normalised(frames: UInt8[Tensor, "f h w 3"]) -> Float[Tensor, "f 3 h w"]:
    """Frames as the visual encoder takes them: scaled to [0, 1], then by ImageNet's mean and deviation."""
    scaled = rearrange(frames, "f h w c -> f c h w").float() / 255
    mean, std = (rearrange(torch.tensor(values, device=frames.device), "c -> c 1 1")
                 for values in (IMAGENET_MEAN, IMAGENET_STD))  # fmt: skip
    return (scaled - mean) / std


def read_media(clip: Clip, num_frames: int, size: int) -> Media:
    """Decodes a clip.

    Args:
        clip: where its files lie.
        num_frames: seconds to take.
        size: height and width of the frames returned, px.

    Raises:
        DatasetError: a file is missing, empty, cut off, damaged, or not what its name says.
    """
    if clip.video is not None:
        film = read_container(clip.video, num_frames, size, clip.root)
        return Media(
            frames=film.frames, sound=_of_length(film.sound, num_frames), silent=film.silent,
            repeated_from_s=film.repeated_from_s, notes=film.notes,
        )
    if not clip.frames:
        raise DatasetError(f"clip {clip.id!r} has neither a video nor frames")
    frames = [resized(read_picture(path, clip.root), size) for path in clip.frames[:num_frames]]
    num_seconds = len(frames)
    frames += frames[-1:] * (num_frames - num_seconds)
    wave = None if clip.audio is None else read_wave(clip.audio, num_frames, clip.root)
    return Media(
        frames=np.stack(frames), sound=_of_length(None if wave is None else wave.samples, num_frames),
        silent=wave is None, repeated_from_s=num_seconds if num_seconds < num_frames else None,
        notes=() if wave is None else wave.notes,
    )


def read_picture(path: Path, within: Path | None = None) -> Image.Image:
    """Reads a JPEG or PNG file whole, as RGB; a CMYK picture is converted, of 16-bit values the high byte is kept."""
    with _named(path), open_picture(path, within) as picture:
        # Written in bytes it makes Pillow warn, and a frame has nothing behind it that could shine through.
        picture.info.pop("transparency", None)
        if picture.mode.startswith("I"):
            return Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
        return picture.convert("RGB")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the picture file that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"frame {path} is missing; accepted: a picture for each second of the clip") from error
    except PICTURE_ERRORS as error:
        raise DatasetError(f"frame {path} cannot be read ({reason_of(error)}); replace the file") from error


def frame_size(clip: Clip) -> tuple[int, int] | None:
    """Height and width in which a clip's frames are stored; None for a video."""
    if not clip.frames:
        return None
    path = clip.frames[0]
    with _named(path), open_picture(path, clip.root) as picture:
        return picture.height, picture.width


def _of_length(sound: Float[np.ndarray, " r"] | None, num_seconds: int) -> Float[np.ndarray, " s"]:
    exact = np.zeros(num_seconds * SAMPLE_RATE_HZ, np.float32)
    if sound is not None:
        exact[: len(sound)] = sound[: len(exact)]
    return exact

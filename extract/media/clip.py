"""Media to numbers: the first frame of each step and the sound of a clip, in every form that its encoders take."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from extract.media.forms import Frames, Sound, Text
from extract.media.pictures import fitted
from extract.media.video import read_container
from extract.media.wav import read_wave
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.source_files import PICTURE_ERRORS, open_picture, reason_of
from refavs.steps import Steps

# Version of the rules for reading videos (`video.py`); increase it if some are read differently. 1: not recorded.
FILM_RULES = 2


@dataclass(frozen=True, kw_only=True)
class Media:
    """What the encoders get of one clip.

    Attributes:
        frames: RGB, one for each step, in each form asked for.
        sound: mono, full scale 1, exactly as long as the steps last, at each sample rate asked for; zeros where the
            clip has none.
        silent: the clip has no sound track.
        repeated_from_s: the first step that repeats the last frame because the picture had ended; None if none does.
        frame_notes: what else is odd about the picture, names of `extract.media.notes.NOTES`.
        sound_notes: the same of the sound.
    """

    frames: Mapping[Frames, UInt8[np.ndarray, "t h w c"]]
    sound: Mapping[int, Float[np.ndarray, " s"]]
    silent: bool
    repeated_from_s: int | float | None = None
    frame_notes: tuple[str, ...] = ()
    sound_notes: tuple[str, ...] = ()

    def taken(self, takes: Frames | Sound | Text) -> np.ndarray:
        """The frames or the sound in the form that an encoder takes."""
        assert not isinstance(takes, Text)
        return self.frames[takes] if isinstance(takes, Frames) else self.sound[takes.rate_hz]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about the clip."""
        return tuple(dict.fromkeys(self.frame_notes + self.sound_notes))


def read_media(clip: Clip, steps: Steps, frames: Collection[Frames], rates_hz: Collection[int]) -> Media:
    """Decodes a clip once; what no encoder asks for is not decoded.

    Args:
        clip: where its files lie.
        steps: each gets a frame; the sound covers the whole time of the steps.
        frames: the forms of its frames that are asked for.
        rates_hz: the sample rates of its sound that are asked for.

    Raises:
        DatasetError: a file is missing, empty, cut off, damaged, or not what its name says.
    """
    if clip.video is not None:
        film = read_container(clip.video, steps, frames, rates_hz, clip.root)
        return Media(
            frames=film.frames, sound=_of_length(film.sound, steps.seconds, rates_hz), silent=film.sound is None,
            repeated_from_s=film.repeated_from_s, frame_notes=film.frame_notes, sound_notes=film.sound_notes,
        )
    if not clip.frames:
        raise DatasetError(f"clip {clip.id!r} has neither a video nor frames")
    paths = clip.pictures(steps)
    pictures = (read_picture(path, clip.root) for path in paths if frames)  # one in memory at a time
    fitting = [[fitted(picture, form) for form in frames] for picture in pictures]
    fitting += fitting[-1:] * (len(steps) - len(paths))
    wave = read_wave(clip.audio, steps.seconds, rates_hz, clip.root) if clip.audio is not None and rates_hz else None
    return Media(
        frames={form: np.stack([each[number] for each in fitting]) for number, form in enumerate(frames)},
        sound=_of_length(None if wave is None else wave.samples, steps.seconds, rates_hz), silent=wave is None,
        repeated_from_s=steps.time_s(len(paths)) if len(paths) < len(steps) else None,
        sound_notes=() if wave is None else wave.notes,
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
        raise DatasetError(f"frame {path} is missing; accepted: a picture for each step of the clip") from error
    except PICTURE_ERRORS as error:
        raise DatasetError(f"frame {path} cannot be read ({reason_of(error)}); replace the file") from error


def frame_size(clip: Clip) -> tuple[int, int] | None:
    """Height and width in which a clip's frames are stored; None for a video."""
    if not clip.frames:
        return None
    path = clip.frames[0]
    with _named(path), open_picture(path, clip.root) as picture:
        return picture.height, picture.width


def _of_length(
    sound: Mapping[int, Float[np.ndarray, " r"]] | None, seconds: int, rates_hz: Collection[int]
) -> dict[int, Float[np.ndarray, " s"]]:
    exact = {rate_hz: np.zeros(seconds * rate_hz, np.float32) for rate_hz in rates_hz}
    for rate_hz, samples in (sound or {}).items():
        whole = exact[rate_hz]
        whole[: len(samples)] = samples[: len(whole)]
    return exact

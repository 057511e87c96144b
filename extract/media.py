"""Media to numbers: the first frame of each second and the sound of a clip, from a video or the benchmark's files."""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from refavs.data.bench import Clip
from refavs.errors import DatasetError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

SAMPLE_RATE_HZ = 16_000
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREPROCESSING = "first frame of each second, PIL bilinear to a square, ImageNet mean and deviation"
# A container may declare a little more than its last packet shows; more than this much missing is a cut-off file.
MISSING_TAIL_S = 0.5
# A sound track this far behind the picture has ended; the rest of a long video need not be read to learn that.
SEARCH_SOUND_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Media:
    """What the encoders are given of one clip.

    Attributes:
        frames: RGB, one for each second.
        sound: mono at 16 kHz, in [-1, 1], exactly as many seconds as frames; zeros where the clip has none.
        silent: the clip has no sound track.
        repeated_from_s: first second that repeats the last frame because the picture had ended; None where none does.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    sound: Float[np.ndarray, " s"]
    silent: bool
    repeated_from_s: int | None


def normalised(frames: UInt8[Tensor, "f h w 3"]) -> Float[Tensor, "f 3 h w"]:
    """Frames as the visual encoder takes them: scaled to [0, 1], then by ImageNet's mean and deviation."""
    scaled = rearrange(frames, "f h w c -> f c h w").float() / 255
    mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in (IMAGENET_MEAN, IMAGENET_STD))
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
        return _read_container(clip.video, num_frames, size)
    if clip.frames is None:
        raise DatasetError(f"clip {clip.id!r} has neither a video nor a folder of frames")
    frames = [resized(read_picture(clip.frames / f"{second}.jpg"), size) for second in range(num_frames)]
    sound = None if clip.audio is None else _read_wave(clip.audio, num_frames)
    return Media(
        frames=np.stack(frames), sound=_of_length(sound, num_frames), silent=sound is None, repeated_from_s=None
    )


def input_digest(clip: Clip, num_frames: int) -> str:
    """SHA-256 of the bytes a clip is made from: its video, or its frames and then its sound where it has one.

    Raises:
        DatasetError: a file is missing or cannot be read.
    """
    if clip.video is not None:
        paths = [clip.video]
    else:
        paths = [clip.frames / f"{second}.jpg" for second in range(num_frames)] if clip.frames else []
        paths += [clip.audio] if clip.audio is not None and clip.audio.exists() else []
    digests = [_file_digest(path) for path in paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); copy it again") from error


def resized(picture: Image.Image, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as a square RGB array, smoothed by the reduction factor as Mask2Former's own preprocessing does."""
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR))


def read_picture(path: Path) -> Image.Image:
    """Reads a picture file whole."""
    with _named(path):
        picture = Image.open(path)
        picture.load()
    return picture


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the picture file that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        raise DatasetError(f"frame {path} is missing; accepted: frames/0.jpg to frames/9.jpg in every clip") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"frame {path} cannot be read ({error}); replace the file") from error


def frame_size(clip: Clip) -> tuple[int, int] | None:
    """Height and width in which a benchmark clip's frames are stored; None for a video."""
    if clip.frames is None:
        return None
    path = clip.frames / "0.jpg"
    with _named(path), Image.open(path) as picture:
        return picture.height, picture.width


def _read_wave(path: Path, num_seconds: int) -> Float[np.ndarray, " s"] | None:
    import soundfile

    if not path.exists():
        return None
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(frames=num_seconds * file.samplerate, dtype="float32", always_2d=True)
            return _at_sample_rate(samples.mean(axis=1), file.samplerate, path)
    except (soundfile.SoundFileError, OSError, ValueError, EOFError) as error:
        raise DatasetError(f"sound {path} cannot be read ({error}); accepted: a WAV file of any rate") from error


def _at_sample_rate(samples: Float[np.ndarray, " s"], rate_hz: int, path: Path) -> Float[np.ndarray, " r"]:
    from scipy.signal import resample_poly

    if not np.isfinite(samples).all():
        raise DatasetError(f"sound of {path} holds values that are not numbers; encode it again")
    if rate_hz == SAMPLE_RATE_HZ or not len(samples):
        return samples
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return resample_poly(samples, SAMPLE_RATE_HZ // common, rate_hz // common).astype(np.float32)


def _of_length(sound: Float[np.ndarray, " r"] | None, num_seconds: int) -> Float[np.ndarray, " s"]:
    exact = np.zeros(num_seconds * SAMPLE_RATE_HZ, np.float32)
    if sound is not None:
        exact[: len(sound)] = sound[: len(exact)]
    return exact


@dataclass
class _Picture:
    """The picture track while it is decoded: the first frame of each second, and where the track ends."""

    num_frames: int
    size: int
    chosen: dict[int, UInt8[np.ndarray, "h w 3"]] = field(default_factory=dict)
    last: "av.VideoFrame | None" = None
    start_s: Fraction = Fraction(0)
    time_s: Fraction = Fraction(0)

    @property
    def done(self) -> bool:
        """Frames come in the order of their time, so the first one beyond the last second ends the work."""
        return self.time_s >= self.num_frames

    def add(self, frame: "av.VideoFrame") -> None:
        if frame.pts is None or frame.time_base is None:
            raise DatasetError("a frame has no time stamp")
        stamp = frame.pts * frame.time_base
        if self.last is None:
            self.start_s = stamp
        self.time_s = stamp - self.start_s
        second = math.floor(self.time_s)
        # A second in which no frame begins shows the one before it, as a player would.
        self._hold_last_until(min(second, self.num_frames))
        if 0 <= second < self.num_frames and second not in self.chosen:
            self.chosen[second] = self._pixels(frame)
        self.last = frame

    def finish(self, end_s: float) -> int | None:
        """Fills the seconds after the last frame; returns the first of them that lies beyond the track's end."""
        self._hold_last_until(self.num_frames)
        first_beyond = max(math.floor(self.time_s) + 1, math.ceil(end_s - 1e-3))
        return first_beyond if first_beyond < self.num_frames else None

    def _hold_last_until(self, second: int) -> None:
        missing = [earlier for earlier in range(second) if earlier not in self.chosen]
        if missing and self.last is not None:
            self.chosen.update(dict.fromkeys(missing, self._pixels(self.last)))

    def _pixels(self, frame: "av.VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
        if frame.is_corrupt:
            raise DatasetError(f"the frame at {float(self.time_s):.2f} s is damaged")
        upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        return resized(Image.fromarray(np.ascontiguousarray(upright)), self.size)


@dataclass
class _Sound:
    """The sound track while it is decoded, at its own rate, on the picture's clock."""

    num_seconds: int
    rate_hz: int = 0
    num_samples: int = 0
    pending: list[tuple[float | None, Float[np.ndarray, " s"]]] = field(default_factory=list)

    def add(self, frame: "av.AudioFrame", mono: Float[np.ndarray, " s"]) -> None:
        if self.rate_hz not in (0, frame.sample_rate):
            raise DatasetError(f"the sound changes its rate from {self.rate_hz} to {frame.sample_rate} Hz")
        self.rate_hz = frame.sample_rate
        stamp = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        self.pending.append((stamp, mono))
        self.num_samples += len(mono)

    def reaches(self, picture_start_s: Fraction) -> bool:
        """Whether every second that is asked for has its samples."""
        first = self.pending[0][0] or 0.0 if self.pending else 0.0
        return bool(self.rate_hz) and first + self.num_samples / self.rate_hz >= picture_start_s + self.num_seconds

    def finish(self, picture_start_s: Fraction, path: Path) -> Float[np.ndarray, " s"]:
        placed = np.zeros(self.num_seconds * self.rate_hz, np.float32)
        position = 0
        for time_s, mono in self.pending:
            if time_s is not None:
                expected = round((time_s - float(picture_start_s)) * self.rate_hz)
                # Time stamps are rounded to the container's clock; only a real gap moves the samples.
                position = expected if abs(expected - position) > 0.02 * self.rate_hz else position
            start, stop = max(position, 0), min(position + len(mono), len(placed))
            if start < stop:
                placed[start:stop] = mono[start - position : stop - position]
            position += len(mono)
        return _at_sample_rate(placed, self.rate_hz, path)


def _read_container(path: Path, num_frames: int, size: int) -> Media:
    import av
    from av.error import FFmpegError

    picture, sound = _Picture(num_frames, size), _Sound(num_frames)
    try:
        if not os.path.getsize(path):
            raise DatasetError("the file is empty (0 bytes)")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DatasetError(f"video {path} has no picture track; accepted: a container with picture and sound")
            silent = not container.streams.audio
            end_s = _decode(container, picture, sound, num_frames)
            repeated_from_s = picture.finish(end_s)
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(
            f"video {path} is cut off, damaged or not a video ({reason}); copy or encode it again"
        ) from error
    except DatasetError as error:
        raise DatasetError(f"video {path}: {error}; copy or encode it again") from error
    if picture.last is None:
        raise DatasetError(f"video {path} holds no picture; copy or encode it again")
    heard = sound.finish(picture.start_s, path) if sound.pending else None
    return Media(
        frames=np.stack([picture.chosen[second] for second in range(num_frames)]), sound=_of_length(heard, num_frames),
        silent=silent, repeated_from_s=repeated_from_s,
    )


def _decode(container: "InputContainer", picture: _Picture, sound: _Sound, num_seconds: int) -> float:
    """Decodes picture and sound until both reach `num_seconds`; returns where the picture track ends, in seconds.

    Raises:
        DatasetError: the file stops before the length that it declares.
    """
    from av import AudioFrame, VideoFrame
    from av.audio.resampler import AudioResampler

    video, audio = container.streams.video[0], container.streams.audio[:1]
    video.codec_context.thread_count = 1
    to_float = AudioResampler(format="fltp")
    ends_s = dict.fromkeys((video.index, *(stream.index for stream in audio)), 0.0)
    for packet in container.demux(video, *audio):
        if packet.pts is not None and packet.time_base is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            ends_s[packet.stream.index] = max(ends_s[packet.stream.index], end)
        wanted = not picture.done if packet.stream is video else not sound.reaches(picture.start_s)
        for frame in packet.decode() if wanted else ():
            if isinstance(frame, VideoFrame):
                picture.add(frame)
            elif isinstance(frame, AudioFrame):
                sound.add(frame, _mono(to_float.resample(frame)))
        searched = ends_s[video.index] > num_seconds + SEARCH_SOUND_S
        if picture.done and (not audio or searched or sound.reaches(picture.start_s)):
            break
    else:
        _refuse_cut_off(container, max(ends_s.values()), num_seconds)
    return ends_s[video.index] - float(picture.start_s)


def _mono(frames: "list[av.AudioFrame]") -> Float[np.ndarray, " s"]:
    parts = [frame.to_ndarray().mean(axis=0) for frame in frames]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _refuse_cut_off(container: "InputContainer", reached_s: float, num_seconds: int) -> None:
    video = container.streams.video[0]
    # AVI has no duration once its index is cut off, and libavformat estimates one from the file's size.
    by_count_s = float(video.frames / video.average_rate) if video.average_rate else 0.0
    declared_s = max((container.duration or 0) + max(0, container.start_time or 0), by_count_s * 1e6) / 1e6
    if reached_s < min(declared_s, num_seconds) - MISSING_TAIL_S:
        raise DatasetError(f"the file declares {declared_s:.1f} s and stops after {reached_s:.1f} s")

"""A clip's media as an annotation project keeps them: the frame of each second, the sound, and where the film cuts."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import soundfile
from jaxtyping import Float, Int16, UInt8
from PIL import Image

from extract.annotate.records import ClipFiles, Scenes
from extract.annotate.scenes import Cuts, hinted, scenes_between
from extract.media.clip import read_picture
from extract.media.forms import Frames
from extract.media.notes import NOTES
from extract.media.pictures import PlacedPictures
from extract.media.sound import PlacedSound
from extract.media.video import decode, is_shorter_than_declared, opened
from extract.media.wav import read_wave
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.atomic import write_atomically
from refavs.files.source_files import open_file

JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
SMALL = 64  # longer side of the pictures that are searched for cuts, px
_ANY = (Frames(size=1),)  # asks the decoder for pictures


@dataclass
class _WholePictures(PlacedPictures):
    """The picture of each second in its own size; shows every picture of the film, small, to the finder of cuts.

    Attributes:
        times_s: of the pictures shown.
        firsts_s: time of the picture of each second.
    """

    wanted: Sequence[Frames] = _ANY
    cuts: Cuts | None = None
    times_s: list[Fraction] = field(default_factory=list)
    firsts_s: dict[int, Fraction] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    def add(self, frame: av.VideoFrame, time_s: Fraction) -> None:
        """Takes the next picture."""
        is_next = self.last is None or time_s >= self.time_s
        super().add(frame, time_s)
        if is_next and time_s < self.num_steps:
            self.firsts_s.setdefault(int(max(time_s, Fraction(0))), time_s)
            if self.cuts is not None:
                scale = SMALL / max(frame.width, frame.height)
                width, height = (max(8, round(side * scale)) for side in (frame.width, frame.height))
                self.cuts.see(frame.to_ndarray(format="rgb24", width=width, height=height))
                self.times_s.append(time_s)

    def shown_s(self, second: int) -> Fraction:
        """Time of the picture that stands for a second; an earlier one is repeated where none begins in it."""
        known = [first for first in self.firsts_s if first <= second]
        return self.firsts_s[max(known)] if known else Fraction(0)

    def _pixels(self, frame: av.VideoFrame) -> list[UInt8[np.ndarray, "h w c"]]:
        picture = self._picture(frame)
        self.size = self.size or picture.size
        return [np.asarray(picture if picture.size == self.size else picture.resize(self.size))]


class _Channels(PlacedSound):
    """All channels of a sound track."""

    def __init__(self, num_seconds: int, num_channels: int) -> None:
        super().__init__(num_seconds, channel=0)
        self._others = [PlacedSound(num_seconds, channel=number) for number in range(1, num_channels)]

    def add(self, frame: av.AudioFrame) -> None:
        """Takes a decoded frame."""
        for each in self._others:
            each.add(frame)
        super().add(frame)

    def all(self, rate_hz: int) -> Float[np.ndarray, "s c"]:
        """The channels at a rate."""
        return np.stack([self.finish(rate_hz), *(each.finish(rate_hz) for each in self._others)], axis=1)


def write_media(clip: Clip, files: ClipFiles, seconds: int, cuts: Cuts) -> Scenes:
    """Writes the frames, the sound and the scenes of a clip; the scenes last, so that they mark a complete clip.

    Raises:
        DatasetError: a file of the clip cannot be read.
    """
    scenes = _of_film(clip, files, seconds, cuts) if clip.video is not None else _of_files(clip, files, seconds)
    files.write(scenes)
    return scenes


def _of_film(clip: Clip, files: ClipFiles, seconds: int, cuts: Cuts) -> Scenes:
    assert clip.video is not None
    pictures = _WholePictures(num_steps=seconds, cuts=cuts)
    with opened(clip.video, clip.root) as film:
        track = film.tracks.sound
        sound = None if track is None else _Channels(seconds, track.codec_context.channels)
        ended = decode(film, pictures, sound, seconds)
        is_short = ended and is_shorter_than_declared(film, clip.video, seconds)
        repeated_from_s = pictures.finish(film.ends_s[film.tracks.picture.index])
        if pictures.last is None or pictures.size is None:
            raise DatasetError("it holds no picture")
        notes = [*film.notes(), *["length_false"] * is_short, *pictures.notes()]
        if sound is not None and track is not None:
            rate_hz = track.codec_context.sample_rate
            write_atomically(files.sound, _wave(_as_int16(sound.all(rate_hz)), rate_hz))
            notes += sound.notes()
        longer_s = film.declared_s - seconds
    for second in range(seconds):
        buffer = io.BytesIO()
        Image.fromarray(pictures.chosen[second][0]).save(buffer, **JPEG)  # type: ignore[arg-type]
        write_atomically(files.frame(second), buffer.getvalue())
    lines = [NOTES[name] for name in dict.fromkeys(notes)]
    if repeated_from_s is not None:
        lines.append(f"the film ends before second {repeated_from_s}; its last picture is repeated")
    if longer_s > 1:
        lines.append(f"the film has {film.declared_s:.1f} s; only the first {seconds} are annotated")
    width, height = pictures.size
    shown_s = [float(pictures.shown_s(second)) for second in range(seconds)]
    times_s = [float(pictures.times_s[number]) for number in cuts.found()]
    return scenes_between(times_s, shown_s, width, height, cuts, lines)


def _of_files(clip: Clip, files: ClipFiles, seconds: int) -> Scenes:
    """Copies the frames and the sound of a clip without a film."""
    if not clip.frames:
        raise DatasetError(f"clip {clip.id!r} has neither a video nor frames")
    paths = list(clip.frames[:seconds])
    paths += paths[-1:] * (seconds - len(paths))
    pictures = []
    for second, path in enumerate(paths):
        picture = read_picture(path, clip.root)
        if pictures and picture.size != pictures[0].size:
            raise DatasetError(f"frame {path} has {picture.width} x {picture.height} pixels, the first frame of the "
                               f"clip {pictures[0].width} x {pictures[0].height}; accepted: one size")  # fmt: skip
        pictures.append(picture)
        with open_file(path, clip.root) as file:
            data = file.read()
        if not data.startswith(b"\xff\xd8"):
            buffer = io.BytesIO()
            picture.save(buffer, **JPEG)  # type: ignore[arg-type]
            data = buffer.getvalue()
        write_atomically(files.frame(second), data)
    if clip.audio is not None and read_wave(clip.audio, seconds, (16_000,), clip.root) is not None:
        with open_file(clip.audio, clip.root) as file:
            write_atomically(files.sound, file.read())
    return hinted([np.asarray(picture) for picture in pictures])


def _as_int16(sound: Float[np.ndarray, "s c"]) -> Int16[np.ndarray, "s c"]:
    """Samples of full scale 1 as 16-bit numbers, exactly those that a 16-bit track has."""
    return np.clip(np.round(sound * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def _wave(samples: Int16[np.ndarray, "s c"], rate_hz: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()

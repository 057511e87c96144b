"""A video of any length in blocks of some seconds, decoded in one pass and in constant memory."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av import AudioFrame, VideoFrame
from jaxtyping import Float, UInt8

from extract.media.display_matrix import upright
from extract.media.forms import Frames
from extract.media.mp4_guard import is_cut_off
from extract.media.pictures import PlacedPictures
from extract.media.sound import SEARCH_SOUND_S, PlacedSound
from extract.media.video import MISSING_TAIL_S, Film, is_shorter_than_declared, opened
from refavs.errors import ConfigError, DatasetError
from refavs.steps import exact_rate


@dataclass(frozen=True, kw_only=True)
class Span:
    """The part of a video to take, and how often.

    Attributes:
        start_s: on the clock of the file (`extract.media.clock`).
        end_s: None for the end of the picture.
        rate: pictures per second.
    """

    start_s: float = 0.0
    end_s: float | None = None
    rate: float = 1.0

    @property
    def heard_s(self) -> float:
        """How much sound belongs to a picture: up to the next one, at least a second."""
        return max(1.0, 1 / self.rate)

    def since(self, time_s: Fraction) -> Fraction:
        """A time from the start on."""
        return time_s - Fraction(self.start_s)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some pictures in a row and their sound.

    Attributes:
        first: number of the first picture.
        frames: by their form.
        sound: mono, full scale 1, by sample rate; from the time of the first picture on, with all that belongs to the
            last one.
        is_last: whether the video ends with it.
    """

    first: int
    frames: Mapping[Frames, UInt8[np.ndarray, "n h w c"]]
    sound: Mapping[int, Float[np.ndarray, " s"]]
    is_last: bool

    def __len__(self) -> int:
        return len(next(iter(self.frames.values())))


class FilmStream:
    """A part of a video, which can be passed over several times.

    Attributes:
        silent: the video has no sound track.
        size: height and width of the first picture as shown, px.
        notes: what is odd about the video, names of `extract.media.notes.NOTES`; complete after a pass.
        declared_s: the length that the file declares.
        num_steps: number of pictures; before a pass, as many as the file declares.

    Raises:
        ConfigError: the part lies behind the video's end.
        DatasetError: the file is missing, damaged, cut off before the end of the part, or no video.
    """

    def __init__(self, path: Path, span: Span | None = None) -> None:
        self.path, self.span = path, span or Span()
        self.notes: tuple[str, ...] = ()
        with opened(path) as film:
            self.silent, self.declared_s = film.tracks.sound is None, film.declared_s
            if self.span.end_s is None and is_cut_off(path):
                raise DatasetError("it is cut off; its first seconds can be taken by --end")
            if self.declared_s:
                self._refuse_end(self.declared_s)
            first = next((found[0][1] for found in self._decoded(film, PlacedSound(math.inf)) if found), None)
            if first is None:
                raise DatasetError("it holds no picture")
            height, width, _ = upright(first).shape
        self.size = height, width
        self.num_steps = self._steps_until(min(self.declared_s, self._end_s))

    def blocks(self, num_steps: int, forms: Collection[Frames], rates_hz: Collection[int]) -> Iterator[Block]:
        """Yields the pictures and the sound by `num_steps` pictures; the last block may have fewer.

        Raises:
            DatasetError: the file is damaged, no video, or cut off before the end of the span.
        """
        span, limit = self.span, math.inf if self.span.end_s is None else self._steps_until(self.span.end_s)
        pictures = PlacedPictures(math.inf, tuple(forms), exact_rate(span.rate))
        sound = PlacedSound(math.inf, span.start_s)

        def block(length: int, is_last: bool) -> Block:
            first = pictures.num_taken
            start_s, last_s = (span.start_s + step / span.rate for step in (first, first + length - 1))
            end_s = last_s + span.heard_s
            heard = {rate: sound.between(round(start_s * rate), round(end_s * rate), rate) for rate in rates_hz}
            frames = pictures.take(length)
            sound.forget(span.start_s + pictures.num_taken / span.rate)
            return Block(first=first, frames=frames, sound=heard, is_last=is_last)

        with opened(self.path) as film:
            for found in self._decoded(film, sound):
                for time_s, frame in found:
                    pictures.add(frame, span.since(time_s))
                while (stop := pictures.num_taken + num_steps) <= pictures.reached and stop < limit:
                    if self._lacks_sound(sound, film, span.start_s + (stop - 1) / span.rate + span.heard_s):
                        break
                    yield block(num_steps, is_last=False)
            self._finish(film, pictures, sound, limit)
            while (rest := self.num_steps - pictures.num_taken) > 0:
                yield block(min(rest, num_steps), is_last=rest <= num_steps)

    def pictures(self, sound: PlacedSound) -> Iterator[list[tuple[Fraction, av.VideoFrame]]]:
        """Yields the pictures of the span as they are decoded, with their times from its start; fills `sound`."""
        with opened(self.path) as film:
            for decoded in self._decoded(film, sound):
                yield [(self.span.since(time_s), frame) for time_s, frame in decoded]

    @property
    def _end_s(self) -> float:
        return math.inf if self.span.end_s is None else self.span.end_s

    def _decoded(self, film: Film, sound: PlacedSound) -> Iterator[list[tuple[Fraction, av.VideoFrame]]]:
        """The pictures that each packet completes, with their times; stops where the span ends."""
        film.seek(self.span.start_s)
        picture, end_s, latest_s = film.tracks.picture, self._end_s, None
        heard_until_s = end_s + self.span.heard_s
        for packet in film.packets():
            found = []
            for frame in film.decoded(packet):
                if isinstance(frame, AudioFrame):
                    sound.add(frame)
                elif isinstance(frame, VideoFrame):
                    time_s = film.time_of(frame)
                    if latest_s is None or time_s >= latest_s:
                        latest_s = time_s
                        found.append((time_s, frame))
            if found or packet.stream is not picture:
                yield found
            if latest_s is not None and latest_s >= end_s and not self._lacks_sound(sound, film, heard_until_s):
                return

    def _lacks_sound(self, sound: PlacedSound, film: Film, until_s: float) -> bool:
        """Whether sound before a time may still come."""
        far = film.ends_s[film.tracks.picture.index] > until_s + SEARCH_SOUND_S
        return not (self.silent or far or sound.reached(until_s))

    def _finish(self, film: Film, pictures: PlacedPictures, sound: PlacedSound, limit: float) -> None:
        """Settles the number of pictures once the file has been read up to the end of the span."""
        reached_s = film.ends_s[film.tracks.picture.index]
        self._refuse_end(reached_s)
        is_short = is_shorter_than_declared(film, self.path, self._end_s)
        # A picture that is shown for long fills several steps; a short rest is only the last picture's own duration.
        num_steps = max(math.floor(pictures.reached) + 1, self._steps_until(reached_s - MISSING_TAIL_S))
        self.num_steps = int(min(num_steps, limit))
        pictures.fill(self.num_steps)
        heard = [] if self.silent else sound.notes(self.span.start_s + self.num_steps / self.span.rate)
        self.notes = tuple(dict.fromkeys([*film.notes(), *["length_false"] * is_short, *pictures.notes(), *heard]))

    def _refuse_end(self, end_s: float) -> None:
        if self.span.start_s >= end_s:
            raise ConfigError(f"--start {self.span.start_s:g} lies behind the end of {self.path}, which is "
                              f"{end_s:.1f} s long")  # fmt: skip

    def _steps_until(self, end_s: float) -> int:
        """Number of pictures before a time."""
        return max(1, math.ceil((end_s - self.span.start_s) * self.span.rate - 1e-3))

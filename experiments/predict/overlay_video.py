"""Writes a video with the predicted object filled and outlined, with its sound and the sentence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor, inf
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Float

from experiments.predict.drawing import CLOCK, Converter, Sketch
from extract.media.film_stream import FilmStream
from extract.media.sound import PlacedSound
from refavs.data.prefetch import Ahead

LARGEST_SIDE_PX = 1280
# Fast before small: what is written is looked at and drawn again, and each expression has one.
CODING = {"preset": "ultrafast", "crf": "23", "x264-params": "cabac=1"}
SOUND_HZ = 48_000
SHORTEST_S = Fraction(1, 100)  # between pictures; of more than 60 in a second, some are left out
DECODED_AHEAD = 8  # pictures
AT_ONCE = 4  # overlays written in one pass; each holds some dozens of pictures in its encoder


@dataclass(frozen=True)
class Overlay:
    """An overlay to write.

    Attributes:
        masks: of each of the film's steps, in their order, at the size of the film.
    """

    path: Path
    sentence: str
    masks: Iterator[Bool[np.ndarray, "h w"]]


class _Picture(NamedTuple):
    """A picture with its time from the start of the overlay on."""

    time_s: Fraction
    frame: "av.VideoFrame"


def write_overlay_videos(
    film: FilmStream, overlays: Sequence[Overlay], advance: Callable[[int], None] = lambda count: None
) -> None:
    """Writes .mp4 files (H.264, AAC), each mask from its step's time to the next, a few files in each pass.

    Args:
        advance: called with the number of steps that are done.
    """
    for start in range(0, len(overlays), AT_ONCE):
        _one_pass(film, overlays[start : start + AT_ONCE], advance)


def _one_pass(film: FilmStream, overlays: Sequence[Overlay], advance: Callable[[int], None]) -> None:
    step, last_s, rate = -1, -SHORTEST_S, Fraction(film.span.rate)
    # Pictures are decoded while the ones before are drawn; libx264 compresses in threads of its own.
    parts = iter(Ahead(_parts(film), DECODED_AHEAD))
    first = next(parts, None)
    if not isinstance(first, _Picture):
        return
    with ExitStack() as stack:
        writers = [stack.enter_context(_Writer(each, first.frame, silent=film.silent)) for each in overlays]
        for part in chain([first], parts):
            if not isinstance(part, _Picture):
                for writer in writers:
                    writer.hear(part)
                continue
            if part.time_s - last_s < SHORTEST_S and floor(part.time_s * rate) <= step:
                continue
            last_s = part.time_s
            while step < floor(part.time_s * rate):
                step += 1
                for writer in writers:
                    writer.next_mask()
                advance(len(writers))
            part.frame.pts, part.frame.time_base = round(part.time_s / CLOCK), CLOCK
            for writer in writers:
                writer.show(part.frame)


class _Writer:
    """One overlay while it is written."""

    def __init__(self, overlay: Overlay, like: "av.VideoFrame", *, silent: bool) -> None:
        self._overlay, self._num_heard = overlay, 0
        self._sketch = Sketch(overlay.sentence, like)
        # Prefixed, as a name may contain a colon.
        self._container = av.open(f"file:{overlay.path}", "w", format="mp4")
        self._picture = self._container.add_stream("libx264", rate=25, options=CODING)
        self._picture.pix_fmt, self._picture.height, self._picture.width = "yuv420p", like.height, like.width
        coder = self._picture.codec_context
        coder.thread_type, coder.thread_count = "FRAME", 2  # pictures are compressed while the next one is drawn
        self._picture.time_base = coder.time_base = CLOCK
        coder.colorspace, coder.color_range = like.colorspace, like.color_range
        coder.color_primaries, coder.color_trc = like.color_primaries, like.color_trc
        self._track = None if silent else self._container.add_stream("aac", rate=SOUND_HZ, layout="mono")

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *raised: object) -> None:
        with self._container:
            if raised[0] is None:
                self._container.mux(self._picture.encode())
                if self._track is not None:
                    self._container.mux(self._track.encode())

    def next_mask(self) -> None:
        """Goes on to the mask of the next step."""
        self._sketch.set_mask(next(self._overlay.masks))

    def show(self, picture: "av.VideoFrame") -> None:
        """Adds a picture, whose time is on `CLOCK`, with the mask and the sentence drawn onto it."""
        self._container.mux(self._picture.encode(self._sketch.drawn(picture)))

    def hear(self, samples: Float[np.ndarray, " s"]) -> None:
        """Adds the next samples, at `SOUND_HZ`."""
        assert self._track is not None
        block = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SOUND_HZ, self._num_heard, Fraction(1, SOUND_HZ)
        self._num_heard += len(samples)
        self._container.mux(self._track.encode(block))


def _parts(film: FilmStream) -> "Iterator[_Picture | Float[np.ndarray, ' s']]":
    """The pictures of a film and its sound in turn; the sound by seconds at `SOUND_HZ`, from the start on."""
    sound, heard = PlacedSound(inf), 0
    start, end = (round(time_s * SOUND_HZ) for time_s in (film.span.start_s, film.num_steps / film.span.rate))

    def hear() -> Float[np.ndarray, " s"]:
        nonlocal heard
        stop = min(heard + SOUND_HZ, end)
        samples = sound.between(start + heard, start + stop, SOUND_HZ)
        heard = stop
        sound.forget((start + heard) / SOUND_HZ)
        return samples

    for picture in _pictures(film, sound):
        yield picture
        while not film.silent and heard < end and sound.reached((start + heard) / SOUND_HZ + 1):
            yield hear()
    while not film.silent and heard < end:
        yield hear()


def _pictures(film: FilmStream, sound: PlacedSound) -> "Iterator[_Picture]":
    """The pictures of a film at one size; fills `sound`.

    As for the encoders, a step in which no picture begins starts with the previous one, and steps before the first
    picture start with that one.
    """
    convert = Converter(_even(film.size))
    step, last, rate = -1, None, Fraction(film.span.rate)
    for found in film.pictures(sound):
        for time_s, decoded in found:
            frame = convert(decoded)
            for held in range(step + 1, min(floor(time_s * rate), film.num_steps)):
                step = held
                yield _Picture(held / rate, frame if last is None else last)
            if step < 0 < time_s:  # from the start on, as a film without an offset is placed exactly
                step = 0
                yield _Picture(Fraction(0), frame if last is None else last)
            last = frame
            if 0 <= time_s * rate < film.num_steps:
                step = floor(time_s * rate)
                yield _Picture(time_s, frame)
    for held in range(step + 1, film.num_steps):
        if last is not None:
            yield _Picture(held / rate, last)


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the overlay: the video's, reduced if very large, and even as H.264 requires."""
    scale = min(1.0, LARGEST_SIDE_PX / max(size))
    return max(2, round(size[0] * scale) // 2 * 2), max(2, round(size[1] * scale) // 2 * 2)

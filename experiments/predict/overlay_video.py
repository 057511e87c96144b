"""Writes a video with the predicted object filled and outlined, with its sound and the sentence."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor, inf
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Float

from experiments.predict.drawing import Converter, Sketch
from extract.media.film_stream import FilmStream
from extract.media.sound import PlacedSound

LARGEST_SIDE_PX = 1280
# Fast before small: what is written is looked at and drawn again, and each expression has one.
CODING = {"preset": "ultrafast", "crf": "23", "x264-params": "cabac=1"}
SOUND_HZ = 48_000
CLOCK = Fraction(1, 90_000)
SHORTEST_S = Fraction(1, 100)  # between pictures; of more than 60 in a second, some are left out
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
    sound, written, step, last_s = PlacedSound(inf), 0, -1, -SHORTEST_S
    end = round(film.num_steps / film.span.rate * SOUND_HZ)
    size, rate = _even(film.size), Fraction(film.span.rate)

    def hear(until: int) -> None:
        nonlocal written
        start = round(film.span.start_s * SOUND_HZ)
        while not film.silent and written < until:
            stop = min(written + SOUND_HZ, until)
            samples = sound.between(start + written, start + stop, SOUND_HZ)
            for writer in writers:
                writer.hear(samples)
            written = stop
            sound.forget(film.span.start_s + written / SOUND_HZ)

    pictures = _shown(film, sound, size)
    first = next(pictures, None)
    if first is None:
        return
    with ExitStack() as stack:
        writers = [stack.enter_context(_Writer(each, first[1], silent=film.silent)) for each in overlays]
        for time_s, frame in chain([first], pictures):
            while not film.silent and sound.reached(film.span.start_s + written / SOUND_HZ + 1) and written < end:
                hear(min(written + SOUND_HZ, end))
            if time_s - last_s < SHORTEST_S and floor(time_s * rate) <= step:
                continue
            last_s = time_s
            while step < floor(time_s * rate):
                step += 1
                for writer in writers:
                    writer.next_mask()
                advance(len(writers))
            for writer in writers:
                writer.show(time_s, frame)
        hear(end)


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

    def show(self, time_s: Fraction, picture: "av.VideoFrame") -> None:
        """Adds a picture with the mask and the sentence drawn onto it."""
        frame = self._sketch.drawn(picture)
        frame.pts, frame.time_base = round(time_s / CLOCK), CLOCK
        self._container.mux(self._picture.encode(frame))

    def hear(self, samples: Float[np.ndarray, " s"]) -> None:
        """Adds the next samples, at `SOUND_HZ`."""
        assert self._track is not None
        block = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SOUND_HZ, self._num_heard, Fraction(1, SOUND_HZ)
        self._num_heard += len(samples)
        self._container.mux(self._track.encode(block))


def _shown(
    film: FilmStream, sound: PlacedSound, size: tuple[int, int]
) -> "Iterator[tuple[Fraction, av.VideoFrame]]":
    """The pictures of a film with their times from its start, at one size; fills `sound`.

    As for the encoders, a step in which no picture begins starts with the previous one, and steps before the first
    picture start with that one.
    """
    convert = Converter(size)
    step, last, rate = -1, None, Fraction(film.span.rate)
    for found in film.pictures(sound):
        for time_s, decoded in found:
            frame = convert(decoded)
            for held in range(step + 1, min(floor(time_s * rate), film.num_steps)):
                step = held
                yield held / rate, frame if last is None else last
            if step < 0 < time_s:  # from the start on, as a film without an offset is placed exactly
                step = 0
                yield Fraction(0), frame if last is None else last
            last = frame
            if 0 <= time_s * rate < film.num_steps:
                step = floor(time_s * rate)
                yield time_s, frame
    for held in range(step + 1, film.num_steps):
        if last is not None:
            yield held / rate, last


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the overlay: the video's, reduced if very large, and even as H.264 requires."""
    scale = min(1.0, LARGEST_SIDE_PX / max(size))
    return max(2, round(size[0] * scale) // 2 * 2), max(2, round(size[1] * scale) // 2 * 2)

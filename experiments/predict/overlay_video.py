"""Writes a video with the predicted object filled and outlined, with its sound and the sentence."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from math import floor, inf
from pathlib import Path

import av
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from experiments.training.overlays import PREDICTION, outline
from extract.media.display_matrix import upright
from extract.media.film_stream import FilmStream
from extract.media.sound import PlacedSound

LARGEST_SIDE_PX = 1280
SOUND_HZ = 48_000
FILL = 0.45
CLOCK = Fraction(1, 90_000)
SHORTEST_S = Fraction(1, 100)  # between pictures; of more than 60 in a second, some are left out
AT_ONCE = 4  # overlays written in one pass; each holds some dozens of pictures in its encoder
LINES = 3
TINT = [int((1 - FILL) * value + FILL * colour) for colour in PREDICTION for value in range(256)]  # of each channel
Picture = UInt8[np.ndarray, "h w 3"]


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

    with ExitStack() as stack:
        writers = [stack.enter_context(_Writer(each, size, silent=film.silent)) for each in overlays]
        for time_s, pixels in _shown(film, sound):
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
            picture = pixels if pixels.shape[:2] == size else _resized(pixels, size)
            for writer in writers:
                writer.show(time_s, picture)
        hear(end)


class _Writer:
    """One overlay while it is written."""

    def __init__(self, overlay: Overlay, size: tuple[int, int], *, silent: bool) -> None:
        self._overlay, self._size, self._num_heard = overlay, size, 0
        self._caption = _caption(overlay.sentence, size[1])
        # Prefixed, as a name may contain a colon.
        self._container = av.open(f"file:{overlay.path}", "w", format="mp4")
        self._picture = self._container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "20"})
        self._picture.pix_fmt, (self._picture.height, self._picture.width) = "yuv420p", size
        self._picture.time_base = self._picture.codec_context.time_base = CLOCK
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
        height, width = self._size
        self._mask = Image.fromarray(next(self._overlay.masks)).resize((width, height), Image.Resampling.NEAREST)
        self._outline = Image.fromarray(outline(np.asarray(self._mask)))

    def show(self, time_s: Fraction, pixels: Picture) -> None:
        """Draws the mask and the sentence onto a picture."""
        image = Image.fromarray(pixels)
        image.paste(image.point(TINT), mask=self._mask)
        image.paste(PREDICTION, mask=self._outline)
        drawn = np.array(image)
        strip = drawn[max(0, len(drawn) - len(self._caption)) :]  # the sentence in white on a darkened strip
        strip[:] = np.maximum(strip // 3, self._caption[: len(strip), :, None])
        frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
        frame.pts, frame.time_base = round(time_s / CLOCK), CLOCK
        self._container.mux(self._picture.encode(frame))

    def hear(self, samples: Float[np.ndarray, " s"]) -> None:
        """Adds the next samples, at `SOUND_HZ`."""
        assert self._track is not None
        block = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        block.sample_rate, block.pts, block.time_base = SOUND_HZ, self._num_heard, Fraction(1, SOUND_HZ)
        self._num_heard += len(samples)
        self._container.mux(self._track.encode(block))


def _shown(film: FilmStream, sound: PlacedSound) -> Iterator[tuple[Fraction, Picture]]:
    """The pictures of a film with their times from its start, at the size of its first one; fills `sound`.

    As for the encoders, a step in which no picture begins starts with the previous one, and steps before the first
    picture start with that one.
    """
    step, last, rate = -1, None, Fraction(film.span.rate)
    for found in film.pictures(sound):
        for time_s, frame in found:
            pixels = upright(frame)
            pixels = pixels if pixels.shape[:2] == film.size else _resized(pixels, film.size)
            for held in range(step + 1, min(floor(time_s * rate), film.num_steps)):
                step = held
                yield held / rate, pixels if last is None else last
            if step < 0 < time_s:  # from the start on, as a film without an offset is placed exactly
                step = 0
                yield Fraction(0), pixels if last is None else last
            last = pixels
            if 0 <= time_s * rate < film.num_steps:
                step = floor(time_s * rate)
                yield time_s, pixels
    for held in range(step + 1, film.num_steps):
        if last is not None:
            yield held / rate, last


def _resized(pixels: Picture, size: tuple[int, int]) -> Picture:
    height, width = size
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


def _even(size: tuple[int, int]) -> tuple[int, int]:
    """The size of the overlay: the video's, reduced if very large, and even as H.264 requires."""
    scale = min(1.0, LARGEST_SIDE_PX / max(size))
    return max(2, round(size[0] * scale) // 2 * 2), max(2, round(size[1] * scale) // 2 * 2)


def _caption(sentence: str, width: int) -> UInt8[np.ndarray, "h w"]:
    """The sentence as white letters on black, in a few lines."""
    size_px = max(10, width // 45)
    font = ImageFont.load_default(size=size_px)
    letters = max(8, int(1.8 * width / size_px))
    lines = textwrap.wrap(" ".join(sentence.split()), letters, max_lines=LINES, placeholder=" ...")
    if not lines:
        return np.zeros((0, width), np.uint8)
    strip = Image.new("L", (width, round(1.35 * size_px * len(lines)) + size_px // 2))
    pen = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        pen.text((size_px // 2, round(1.35 * size_px * number)), line, fill=255, font=font)
    return np.asarray(strip)

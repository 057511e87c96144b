"""A trained run on a video that a user chose: its masks over the video, with the sound."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.predict.overlay_video import Overlay, write_overlay_videos
from extract.media.film_stream import FilmStream, Span
from extract.media.notes import NOTES
from refavs.data.rle import decoded, encoded
from refavs.errors import ConfigError

if TYPE_CHECKING:
    from experiments.predict.segmenter import Segmenter

MOST_SECONDS, MOST_LETTERS = 60, 500


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a run finds in a video.

    Attributes:
        shares: the time of each frame in seconds, and the object's part of it in percent.
        notes: what is unusual about the video or the result.
    """

    expression: str
    overlay: Path
    shares: tuple[tuple[int | float, float], ...]
    notes: tuple[str, ...]


class Loaded:
    """The run that was tried last, kept in memory with its encoders; one prediction at a time.

    Args:
        weights_dir: the encoders' weights; None for the hub's cache.
    """

    def __init__(self, weights_dir: Path | None = None) -> None:
        self._weights_dir, self._lock = weights_dir, threading.Lock()
        self._folder, self._segmenter = None, None

    def attempt(self, folder: Path, video: Path, expression: str, overlay: Path) -> Attempt:
        """As `attempt`, with the run in `folder`."""
        import refavs

        with self._lock:
            if folder != self._folder:
                self._segmenter, self._folder = None, None  # before the next one takes memory
                self._segmenter = refavs.load(folder, weights_dir=self._weights_dir)
                self._folder = folder
            assert self._segmenter is not None
            return attempt(self._segmenter, video, expression, overlay)


def attempt(segmenter: "Segmenter | Any", video: Path, expression: str, overlay: Path) -> Attempt:
    """Segments the object that an expression refers to in the first seconds of a video, and writes the overlay.

    Args:
        overlay: where to write the .mp4.

    Raises:
        ConfigError: the expression is empty or too long.
        DatasetError: the file is no video, damaged, or cut off.
        WeightsError: the run cannot be used.
    """
    if not expression.strip():
        raise ConfigError("the expression is empty; write a sentence, for example \"the sounding object\"")
    if len(expression) > MOST_LETTERS:
        raise ConfigError(f"the expression has {len(expression):,} characters; accepted: up to {MOST_LETTERS}")
    film = FilmStream(video.absolute(), Span(end_s=MOST_SECONDS, rate=segmenter.fps))
    masks = []
    for found in segmenter.segment_video(film, [expression]):
        masks += map(encoded, found.masks)  # one step's mask may have millions of pixels
    write_overlay_videos(film, [Overlay(overlay, expression, map(decoded, masks))])
    shares = [(step / segmenter.fps, 100 * float(decoded(mask).mean())) for step, mask in enumerate(masks)]
    is_cut = segmenter.run.is_cut(expression)
    notes = [
        *["RANDOM FEATURES: at least one encoder of this run has random weights; the result says nothing about the "
          "method"] * segmenter.run.random_features,
        *["nothing in this video is what the expression refers to"] * (not any(share for _, share in shares)),
        *["the expression is longer than the text encoder takes; its end was not read"] * is_cut,
        *["the video has no sound track and counts as silent"] * film.silent,
        *[f"only the first {MOST_SECONDS} s are used"] * (film.declared_s > MOST_SECONDS + 0.5),
        *(NOTES[note] for note in film.notes),
    ]
    return Attempt(expression=expression, overlay=overlay, shares=tuple(shares), notes=tuple(notes))

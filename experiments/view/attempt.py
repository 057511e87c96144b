"""A trained run on a video that a user chose: its masks over the video, with the sound."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from experiments.predict.overlay_video import SOUND_HZ, frame_size, write_overlay_video
from extract.media.clip import read_media
from extract.media.forms import Frames
from extract.media.notes import NOTES
from extract.media.video import open_film
from refavs.data.layouts import Clip
from refavs.errors import ConfigError

if TYPE_CHECKING:
    from experiments.predict.segmenter import Segmenter

MOST_SECONDS, MOST_LETTERS = 60, 500
SIDE_PX = 768  # of the longer side of the frames that are kept in memory


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a run finds in a video.

    Attributes:
        shares: the object's part of each second's frame, in percent.
        notes: what is unusual about the video or the result.
    """

    expression: str
    overlay: Path
    shares: tuple[float, ...]
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
    form = Frames(size=SIDE_PX, fit="pad")
    media = read_media(Clip(id=video.stem, video=video.absolute()), MOST_SECONDS, [form], [SOUND_HZ])
    num_seconds = media.repeated_from_s or MOST_SECONDS
    height, width = frame_size(video)
    scale = SIDE_PX / max(height, width)
    frames = media.frames[form][:num_seconds, : max(1, round(height * scale)), : max(1, round(width * scale))]
    sound = media.sound[SOUND_HZ][: num_seconds * SOUND_HZ]
    (found,) = segmenter.segment(frames, sound, [expression], sample_rate=SOUND_HZ)
    write_overlay_video(overlay, video, resized(found.masks, height, width), sound)
    notes = [
        *["RANDOM FEATURES: at least one encoder of this run has random weights; the result says nothing about the "
          "method"] * segmenter.run.random_features,
        *["nothing in this video is what the expression refers to"] * (not found.masks.any()),
        *["the expression is longer than the text encoder takes; its end was not read"] * found.truncated,
        *["the video has no sound track and counts as silent"] * media.silent,
        *[f"only the first {MOST_SECONDS} s are used"] * _is_longer(video),
        *(NOTES[note] for note in media.notes if note != "sound_short"),  # counted to the limit, not to the video's end
    ]
    shares = 100 * found.masks.mean((1, 2))
    return Attempt(expression=expression, overlay=overlay, shares=tuple(map(float, shares)), notes=tuple(notes))


def resized(masks: Bool[np.ndarray, "t _ _"], height: int, width: int) -> Bool[np.ndarray, "t height width"]:
    """The masks at another size, by nearest neighbour."""
    images = (Image.fromarray(mask.astype(np.uint8)) for mask in masks)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) > 0 for image in images])


def _is_longer(video: Path) -> bool:
    with open_film(video) as film:
        return film.declared_s > MOST_SECONDS + 0.5

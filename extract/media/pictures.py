"""Picks the picture of each step while a track is decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from extract.media.display_matrix import upright
from extract.media.forms import Frames
from refavs.errors import DatasetError

# Limits for tracks whose time stamps stand still: 1,000 frames for each second wanted, or 8K at 120 frames/s.
MOST_FRAMES_PER_S = 1000
MOST_PIXELS_PER_S = 4_000_000_000


def fitted(picture: Image.Image, frames: Frames) -> UInt8[np.ndarray, "h w c"]:
    """The picture as a square array, smoothed by the reduction factor as Mask2Former's own preprocessing does."""
    rgb, size = picture if picture.mode == "RGB" else picture.convert("RGB"), frames.size
    resample = Image.Resampling[frames.resample.upper()]
    rgb = rgb.convert("RGBA") if frames.alpha else rgb
    if frames.fit == "squash":
        return np.asarray(rgb.resize((size, size), resample))
    scale = size / (max if frames.fit == "pad" else min)(rgb.size)
    width, height = (max(1, round(side * scale)) for side in rgb.size)
    scaled = rgb.resize((width, height), resample)
    left, top = ((width - size) // 2, (height - size) // 2) if frames.fit == "crop" else (0, 0)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))  # all channels are 0 beyond the picture


@dataclass
class PlacedPictures:
    """The first picture of each step; a step without one repeats the previous picture, as a player does.

    Attributes:
        num_steps: steps wanted; infinite for a stream, from which `take` removes them.
        wanted: forms in which they are kept; without any, no picture is decoded.
        rate: steps per second.
        chosen: for each step its picture in each form.
        time_s: of the latest picture, counted from the first step on.
        last: the latest picture; None before the first.
        held: whether a picture was repeated before a later one came.
        late: whether the first picture begins after the first step.
        varies: whether pictures differ in size.
        num_taken: steps that were removed.
    """

    num_steps: float
    wanted: Sequence[Frames]
    rate: Fraction = Fraction(1)
    chosen: dict[int, list[UInt8[np.ndarray, "h w c"]]] = field(default_factory=dict)
    last: av.VideoFrame | None = None
    time_s: Fraction = Fraction(0)
    num_decoded: int = 0
    held: bool = False
    late: bool = False
    varies: bool = False
    num_taken: int = 0

    @property
    def reached(self) -> Fraction:
        """`time_s` in steps."""
        return self.time_s * self.rate

    @property
    def done(self) -> bool:
        """Whether a picture lies beyond the last step; pictures come in the order of time."""
        return self.reached >= self.num_steps

    def add(self, frame: av.VideoFrame, time_s: Fraction) -> None:
        """Takes the next picture; ignores one that goes back in time."""
        self._refuse_flood(frame)
        if self.last is None:
            self.late = time_s * self.rate >= 1
        elif time_s < self.time_s:
            return
        else:
            self.varies |= (self.last.width, self.last.height) != (frame.width, frame.height)
        step = math.floor(time_s * self.rate)
        # If the track begins late, its first picture also fills the steps before.
        num_missing = self._hold(self.last or frame, int(min(step, self.num_steps)))
        self.held |= self.last is not None and num_missing > 0
        self.time_s = time_s
        if self.num_taken <= step < self.num_steps and step not in self.chosen:
            self.chosen[step] = self._pixels(frame)
        self.last = frame

    def stacked(self) -> dict[Frames, UInt8[np.ndarray, "t h w c"]]:
        """The pictures of all steps in each form."""
        return self.take(int(self.num_steps))

    def take(self, num_steps: int) -> dict[Frames, UInt8[np.ndarray, "t h w c"]]:
        """Removes the next steps; returns their pictures in each form."""
        taken = [self.chosen.pop(step, []) for step in range(self.num_taken, self.num_taken + num_steps)]
        self.num_taken += num_steps
        return {form: np.stack([pixels[number] for pixels in taken]) for number, form in enumerate(self.wanted)}

    def fill(self, num_steps: int) -> None:
        """Repeats the latest picture until there are so many steps, counted from the start."""
        if self.last is not None:
            self._hold(self.last, num_steps)

    def finish(self, end_s: float) -> int | None:
        """Fills the steps after the last picture; returns the first step beyond the track's end, if any."""
        self.fill(int(self.num_steps))
        first_beyond = max(math.floor(self.reached) + 1, math.ceil((end_s - 1e-3) * self.rate))
        return first_beyond if first_beyond < self.num_steps else None

    def notes(self) -> list[str]:
        """Oddities of the pictures, as keys of `extract.media.notes.NOTES`."""
        return [name for name, is_so in (("picture_late", self.late), ("picture_held", self.held),
                                         ("size_varies", self.varies)) if is_so]  # fmt: skip

    def _hold(self, frame: av.VideoFrame, step: int) -> int:
        missing = [earlier for earlier in range(self.num_taken, step) if earlier not in self.chosen]
        if missing:
            self.chosen.update(dict.fromkeys(missing, self._pixels(frame)))
        return len(missing)

    def _refuse_flood(self, frame: av.VideoFrame) -> None:
        self.num_decoded += 1
        per_second = min(MOST_FRAMES_PER_S, MOST_PIXELS_PER_S // (frame.width * frame.height))
        if self.num_decoded > per_second * min(self.num_steps / self.rate, max(0, self.time_s) + 10):
            raise DatasetError(
                f"{self.num_decoded:,} frames and still at {float(self.time_s):.2f} s; accepted: up to {per_second:,} "
                "frames of this size per second"
            )

    def _pixels(self, frame: av.VideoFrame) -> list[UInt8[np.ndarray, "h w c"]]:
        picture = self._picture(frame)
        return [fitted(picture, form) for form in self.wanted]

    def _picture(self, frame: av.VideoFrame) -> Image.Image:
        if frame.is_corrupt:
            raise DatasetError(f"the frame at {float(self.time_s):.2f} s is damaged")
        return Image.fromarray(upright(frame))

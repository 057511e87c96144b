"""A stand-in detector and tracker that know what synthetic films show, for trying the chain without weights.

They read the truth of a folder that `refavs-synth` wrote: films with a cut, or a benchmark.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from extract.annotate.models import Detection, Detector, Frame, Maps, ScoredMask, Track, Tracker
from extract.annotate.records import Box
from extract.encoders.weights import WeightPart
from refavs.data.rle import decoded
from refavs.errors import DatasetError
from refavs.files.plain_file import read_plain
from refavs.files.typed_json import OddRecord, read_json
from refavs.synthetic.cut_films import TRUTH, read_truth
from refavs.synthetic.plan import Settings, draw_clip, plan
from refavs.synthetic.scene import render

Masks = list[tuple[str, Bool[np.ndarray, "h w"]]]  # name and mask of each object


class _SyntheticModel:
    """What both stand-ins have in common.

    Args:
        folder: films or a benchmark of `refavs-synth`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, f"synthetic:{folder}"

    def revision(self) -> str:
        """There are no weights."""
        return "truth"

    def weight_parts(self) -> Sequence[WeightPart]:
        """There are none."""
        return ()

    @cached_property
    def _of_frame(self) -> Callable[[str, int], Masks]:
        if (self.folder / TRUTH).exists():
            return self._of_film()
        try:
            settings = Settings(**read_json(read_plain(self.folder / "synthetic.json")))
        except (OSError, OddRecord, TypeError) as error:
            raise DatasetError(f"{self.folder} is no folder of refavs-synth ({' '.join(str(error).split())}); name one "
                               "with truth.json or synthetic.json") from error  # fmt: skip
        numbers = {medium.id: medium.clip for medium in plan(settings)[0]}

        def masks(clip: str, second: int) -> Masks:
            drawn = draw_clip(settings, numbers[clip])
            return list(zip(drawn.categories, render(drawn.scene, float(second))[1], strict=True))

        return lambda clip, second: masks(clip, second) if clip in numbers else []

    def _of_film(self) -> Callable[[str, int], Masks]:
        films = read_truth(self.folder)

        def masks(clip: str, second: int) -> Masks:
            film = films.get(clip)
            if film is None:
                return []
            return list(zip(film["names"], (decoded(seconds[second]) for seconds in film["masks"]), strict=True))

        return masks


class SyntheticDetector(_SyntheticModel, Detector):
    """Finds every object by its category; the more of it shows, the higher the score."""

    def detect(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        """The boxes of the objects that show."""
        return [Detection(name=name, box=_box(mask), score=0.5 + float(mask.mean()) / 2, label=name)
                for name, mask in self._of_frame(frame.clip, frame.second) if name in names and mask.any()]  # fmt: skip


class SyntheticTracker(_SyntheticModel, Tracker):
    """Knows every mask."""

    def candidates(self, frame: Frame, boxes: Sequence[Box]) -> list[tuple[ScoredMask, ...]]:
        """The mask of the object that fits each box best, and two worse ones."""
        return [self._candidates(frame, box) for box in boxes]

    def _candidates(self, frame: Frame, box: Box) -> tuple[ScoredMask, ...]:
        height, width = frame.pixels.shape[:2]
        rows, columns = np.mgrid[:height, :width] + 0.5
        inside = (columns > box[0]) & (columns < box[2]) & (rows > box[1]) & (rows < box[3])
        truth = self._nearest(frame, inside)
        grown = truth | np.roll(truth, 1, 0) | np.roll(truth, 1, 1)
        shrunk = truth & np.roll(truth, 1, 0) & np.roll(truth, 1, 1)
        scored = (grown, 0.8), (truth, 0.95), (shrunk, 0.7)
        return tuple(ScoredMask(mask=mask, iou_score=score) for mask, score in scored)

    def track(
        self, frames: Sequence[Frame], prompts: Mapping[int, Mapping[int, Bool[np.ndarray, "h w"]]],
        pivots: Mapping[int, int], maps: Maps | None = None,
    ) -> dict[int, Track]:  # fmt: skip
        """The true masks of the objects that fit the known masks of the pivots best."""
        found = {}
        for fid, known in prompts.items():
            pivot = frames[pivots[fid]]
            number = self._number(pivot, known[pivots[fid]])
            masks = np.stack([self._of_frame(frame.clip, frame.second)[number][1] for frame in frames])
            found[fid] = Track(masks=masks, presence=np.array([mask.any() for mask in masks], np.float32))
        return found

    def _nearest(self, frame: Frame, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        return self._of_frame(frame.clip, frame.second)[self._number(frame, mask)][1]

    def _number(self, frame: Frame, mask: Bool[np.ndarray, "h w"]) -> int:
        found = self._of_frame(frame.clip, frame.second)
        if not found or found[0][1].shape != mask.shape:
            raise DatasetError(f"{self.folder} knows nothing about clip {frame.clip!r}, or its frames have another "
                               "size; propose its own films")  # fmt: skip
        overlaps = [float((mask & truth).sum()) / max(1, int((mask | truth).sum())) for _, truth in found]
        return int(np.argmax(overlaps))


def _box(mask: Bool[np.ndarray, "h w"]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1

"""Scores of constant predictions, which ignore their input: the floor that a trained model has to beat."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refavs.metrics.constant_counts import ConstantPrediction, constant_statistics
from refavs.metrics.frame_counts import LABELLED, VERSION, Statistics
from refavs.metrics.reference import Results, expression_results, joined, spread
from refavs.metrics.segmentation import NUM_THRESHOLDS, curve_thresholds
from refavs.metrics.text_baseline import TextControl

BACKGROUND = "all background"
FOREGROUND = "all foreground"
MEAN_MASK = "mean training mask"
MEAN_MASK_BEST = "mean training mask, best threshold"
CENTRED_DISC = "centred disc"
MASKS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class MaskSum:
    """For each pixel, the number of frames in which it belongs to the object; sums are exact in any order.

    Attributes:
        frames: the counts, whole numbers.
        num_frames: total number of frames.
    """

    frames: Float[np.ndarray, "h w"]
    num_frames: int

    @classmethod
    def of(cls, mask: Bool[Tensor, "t h w"], count: int = 1) -> "MaskSum":
        """The sum for one mask that `count` expressions share."""
        return cls(frames=count * np.count_nonzero(mask.numpy(), axis=0).astype(np.float64),
                   num_frames=count * len(mask))  # fmt: skip

    def __add__(self, other: "MaskSum") -> "MaskSum":
        return MaskSum(frames=self.frames + other.frames, num_frames=self.num_frames + other.num_frames)

    def mean(self) -> Float[Tensor, "h w"]:
        """Fraction of frames in which each pixel belongs to the object."""
        return torch.from_numpy(self.frames / self.num_frames).float()


def best_of(jaccard: Iterable[Float[Tensor, " k"]], counts: Iterable[int] | None = None) -> float:
    """The threshold with the largest sum of `threshold_jaccard` over masks, weighted by `counts`."""
    total = torch.zeros(NUM_THRESHOLDS, dtype=torch.float64)
    for part, count in zip(jaccard, counts or itertools.repeat(1), strict=False):
        total += count * part
    return float(curve_thresholds()[int(total.argmax())])


def centredness(height: int, width: int) -> Float[Tensor, "h w"]:
    """A map that is 1 in the centre of a frame and 0 in its corners; thresholding it gives a centred disc."""
    rows, columns = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2 for length in (height, width))
    distance = (rows[:, None] ** 2 + columns**2).sqrt()
    return (1 - distance / distance.max().clamp_min(1)).clamp(0, 1).float()


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Constant predictions, fitted on the training masks.

    Attributes:
        mean: the mean mask, from `MaskSum`.
        mean_threshold: the threshold of `mean` with the best J on the training masks, from `best_of`.
        centre_threshold: the same for `centredness`.
    """

    mean: Float[Tensor, "h w"]
    mean_threshold: float
    centre_threshold: float

    def predictions(self) -> dict[str, tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]]:
        """By name: the scores to which F's thresholds apply, and the prediction whose masks are counted."""
        mean, centre = self.mean, centredness(*self.mean.shape)
        zeros, ones = torch.zeros_like(mean), torch.ones_like(mean)
        return {
            BACKGROUND: (zeros, zeros),
            FOREGROUND: (ones, ones),
            MEAN_MASK: (mean, mean),
            MEAN_MASK_BEST: (mean, (mean >= self.mean_threshold).float()),
            CENTRED_DISC: (centre, (centre >= self.centre_threshold).float()),
        }


def control_results(
    constants: Constants, masks: Iterable[Bool[Tensor, "t h w"]], store: str,
    labelled: Bool[np.ndarray, "n t"] | None = None,
) -> dict[str, Results]:  # fmt: skip
    """Scores of constant predictions on distinct masks, computed from the same statistics as a model's scores.

    Args:
        masks: each distinct mask once; `row` of the results is its index.
        store: fingerprint of the store that the masks belong to.
        labelled: frames of each mask that count, at least one per mask; all of them where None.

    Returns:
        Results by the name of the constant; `spread` assigns them to expressions. F is the largest over thresholds,
        and threshold 0 predicts every pixel, so every constant has at least the F of all foreground.
    """
    predictions = {name: ConstantPrediction(*maps) for name, maps in constants.predictions().items()}
    blocks: dict[str, list[Results]] = {name: [] for name in predictions}
    remaining, start = iter(masks), 0
    while together := list(itertools.islice(remaining, MASKS_AT_ONCE)):
        target = torch.stack(together)
        count, num_frames, height, width = target.shape
        facts = {"version": VERSION, "height": height, "width": width, "num_frames": num_frames, "store": store}
        table = pd.DataFrame({"row": range(start, start + count)})
        known = {} if labelled is None else {LABELLED: labelled[start : start + count]}
        for name, counts in constant_statistics(predictions, target).items():
            frames = counts | known
            blocks[name].append(expression_results([Statistics(expressions=table, frames=frames, facts=facts)]))
        start += count
    return {name: joined(parts) for name, parts in blocks.items() if parts}


def text_only(control: TextControl, results: Mapping[str, Results]) -> Results:
    """Scores of an empty mask if the sentence predicts one, else of the mean training mask at its best threshold.

    Args:
        control: fitted on the training expressions.
        results: results of the constants for the same expressions, with their texts.
    """
    nothing, something = results[BACKGROUND], results[MEAN_MASK_BEST]
    empty = control.predict(something.expressions["text"].tolist())
    both = joined([nothing, something])
    places = np.where(empty, 0, len(nothing)) + np.arange(len(something))
    return spread(both, places, something.expressions)

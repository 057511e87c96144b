"""Counts for a prediction that is the same in every frame; computes once what depends only on the prediction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refavs.metrics.boundary import Contours, contour_counts
from refavs.metrics.frame_counts import COUNTS, released_view
from refavs.metrics.registry import own_counts
from refavs.metrics.segmentation import NUM_CELLS, FrameCounts, above, threshold_bins

THRESHOLDS = {"50": 0.5, "40": 0.4}


class Levels:
    """A map of scores, stored as the number of F thresholds that each pixel reaches."""

    def __init__(self, scores: Float[Tensor, "h w"]) -> None:
        bins = threshold_bins(scores)
        self._bins = bins.to(torch.uint8).numpy()
        self.whole = torch.bincount(bins.flatten(), minlength=NUM_CELLS).numpy()

    def inside(self, masks: Bool[np.ndarray, "t h w"]) -> Int[np.ndarray, "t k"]:
        """Number of pixels of each mask in each of the 256 histogram cells."""
        return np.stack([np.bincount(self._bins[mask], minlength=NUM_CELLS) for mask in masks])


def threshold_jaccard(levels: Levels, mask: Bool[Tensor, "t h w"]) -> Float[Tensor, " k"]:
    """J summed over the frames of a mask, for a prediction of all pixels at or above each threshold."""
    inside = torch.from_numpy(levels.inside(mask.numpy()))
    histogram = torch.stack([torch.from_numpy(levels.whole) - inside, inside], dim=1)
    target = inside.sum(1)
    num_pixels = mask.shape[-2] * mask.shape[-1]
    counts = FrameCounts(num_pixels=num_pixels, target=target, pred=target, hits=target, histogram=histogram)
    (pred, hits), target = counts.curve, rearrange(target, "t -> t 1")
    union = (pred + target - hits).clamp_min(1)
    return torch.where(target > 0, hits.double() / union, (pred == 0).double()).sum(0)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Masks of frames in all forms needed for comparison with predictions."""

    masks: Bool[Tensor, "t h w"]
    small: Bool[Tensor, "t 256 256"]
    contours: Contours

    @classmethod
    def of(cls, masks: Bool[Tensor, "t h w"]) -> "Targets":
        """Computes all forms, once for all predictions."""
        return cls(masks=masks, small=released_view(masks.float(), masks)[1], contours=Contours.of(masks))


class ConstantPrediction:
    """A prediction that is the same for every frame.

    Args:
        scores: the map to which F's thresholds apply.
        pred: the probabilities whose masks are counted.
    """

    def __init__(self, scores: Float[Tensor, "h w"], pred: Float[Tensor, "h w"]) -> None:
        small_scores, small_pred = (_small(part) for part in (scores, pred))
        self._levels = {"": Levels(scores), "released_": Levels(small_scores)}
        self._above = {"": _masks_above(pred), "released_": _masks_above(small_pred)}
        self._pred = pred
        self._contours = Contours.of(above(pred, THRESHOLDS["50"]).unsqueeze(0))

    def counts(self, targets: Targets) -> dict[str, np.ndarray]:
        """As `frame_statistics` of this prediction for each frame, without `max_prob`; axis `t`."""
        contours = contour_counts(self._contours, targets.contours)
        found = {f"boundary_{name}": value.numpy() for name, value in contours.items()}
        for prefix, masks in (("", targets.masks.numpy()), ("released_", targets.small.numpy())):
            levels = self._levels[prefix]
            found[f"{prefix}object"] = inside = levels.inside(masks)
            found[f"{prefix}background"] = levels.whole - inside
            found[f"{prefix}target"] = inside.sum(-1)
            for name, pred in self._above[prefix].items():
                found[f"{prefix}pred_{name}"] = np.array([np.count_nonzero(pred)])
                if f"{prefix}hits_{name}" in COUNTS:
                    found[f"{prefix}hits_{name}"] = np.array([np.count_nonzero(pred & mask) for mask in masks])
        same = {name for name, value in found.items() if len(value) < len(targets.masks)}
        found |= {name: np.repeat(found[name], len(targets.masks)) for name in same}
        own = own_counts(self._pred.expand_as(targets.masks), targets.masks)
        return {name: value.astype(np.uint32) for name, value in found.items()} | {
            name: value.numpy() for name, value in own.items()
        }


def constant_statistics(
    predictions: Mapping[str, ConstantPrediction], masks: Bool[Tensor, "b t h w"]
) -> dict[str, dict[str, np.ndarray]]:
    """Counts of each prediction by name, with axes `b t`."""
    found: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in predictions}
    for mask in masks:
        targets = Targets.of(mask)
        for name, prediction in predictions.items():
            found[name].append(prediction.counts(targets))
    return {
        name: {count: np.stack([part[count] for part in parts]) for count in parts[0]} for name, parts in found.items()
    }


def _small(part: Float[Tensor, "h w"]) -> Float[Tensor, "256 256"]:
    probs = part.unsqueeze(0)
    return released_view(probs, torch.zeros_like(probs, dtype=torch.bool))[0][0]


def _masks_above(pred: Float[Tensor, "h w"]) -> dict[str, np.ndarray]:
    return {name: above(pred, threshold).numpy() for name, threshold in THRESHOLDS.items()}

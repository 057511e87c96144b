"""What predictions reach that never look at their input: the floor that a trained model has to beat."""

import itertools
from collections.abc import Iterable, Mapping

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from refavs.metrics.segmentation import (
    NUM_THRESHOLDS,
    THRESHOLD,
    SegmentationMetrics,
    count_pixels,
    curve_thresholds,
    expression_scores,
    threshold_bins,
)

BACKGROUND = "all background"
FOREGROUND = "all foreground"
MEAN_MASK = "mean training mask"
MEAN_MASK_BEST = "mean training mask, best threshold"


def mean_mask(
    masks: Iterable[Bool[Tensor, "t h w"]], counts: Iterable[int] | None = None
) -> Float[Tensor, "h w"]:
    """Share of frames in which each pixel is the object's, over the masks of all training expressions.

    Args:
        counts: how many expressions have each mask; one each where none are given.

    Raises:
        ValueError: there is no mask.
    """
    total, num_frames = None, 0
    for mask, count in zip(masks, counts or itertools.repeat(1), strict=False):
        part = count * mask.sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        num_frames += count * len(mask)
    if total is None or not num_frames:
        raise ValueError("the mean of no masks; expected at least one training expression with masks")
    return (total / num_frames).float()


def best_threshold(
    mean: Float[Tensor, "h w"], masks: Iterable[Bool[Tensor, "t h w"]], counts: Iterable[int] | None = None
) -> float:
    """The threshold of the mean training mask (a pixel is predicted at or above it) with the best J on `masks`.

    Args:
        mean: from `mean_mask`.
        masks: the training expressions' masks; J is the mean over all their frames.
        counts: how many expressions have each mask; one each where none are given.
    """
    bins = threshold_bins(mean)
    total = torch.zeros(NUM_THRESHOLDS, dtype=torch.float64)
    for mask, count in zip(masks, counts or itertools.repeat(1), strict=False):
        pixels = count_pixels(bins.expand(mask.shape), torch.zeros_like(mask), mask)
        target = rearrange(pixels.target, "t -> t 1")
        union = (pixels.curve_pred + target - pixels.curve_hits).clamp_min(1)
        jaccard = torch.where(target > 0, pixels.curve_hits.double() / union, (pixels.curve_pred == 0).double())
        total += count * jaccard.sum(0)
    return float(curve_thresholds()[int(total.argmax())])


def constant_controls(
    mean: Float[Tensor, "h w"], masks: Iterable[Bool[Tensor, "t h w"]], threshold: float | None = None
) -> dict[str, dict[str, float]]:
    """What the best constant predictions reach on `masks`, by the sums of `SegmentationMetrics`.

    Args:
        mean: from `mean_mask`, of the training masks.
        masks: each expression's masks on the split that is scored; all False where it refers to nothing.
        threshold: from `best_threshold`; without it that row is left out.

    Returns:
        The values of `SegmentationMetrics.compute` by the name of the constant. F is the largest over thresholds, and
        threshold 0 predicts every pixel; so every constant has at least the F of all foreground.
    """
    found = grouped_controls(mean, ((mask, {"all": 1}) for mask in masks), threshold)
    return {name: groups.get("all", SegmentationMetrics()).compute() for name, groups in found.items()}


def grouped_controls(
    mean: Float[Tensor, "h w"],
    masks: Iterable[tuple[Bool[Tensor, "t h w"], Mapping[str, int]]],
    threshold: float | None = None,
) -> dict[str, dict[str, SegmentationMetrics]]:
    """As `constant_controls`, by the name of the constant and of the group, with each distinct mask scored once.

    Args:
        masks: each distinct mask, with how many expressions of each group have it.
    """
    constants = {
        BACKGROUND: (torch.zeros_like(mean), torch.zeros_like(mean, dtype=torch.bool)),
        FOREGROUND: (torch.ones_like(mean), torch.ones_like(mean, dtype=torch.bool)),
        MEAN_MASK: (mean, mean > THRESHOLD),
    }
    if threshold is not None:
        constants[MEAN_MASK_BEST] = (mean, mean >= threshold)
    prepared = {name: (threshold_bins(probs), pred) for name, (probs, pred) in constants.items()}
    metrics: dict[str, dict[str, SegmentationMetrics]] = {name: {} for name in prepared}
    for mask, counts_by_group in masks:
        for name, (bins, pred) in prepared.items():
            shape = (1, *mask.shape)
            counts = count_pixels(bins.expand(shape), pred.expand(shape), mask.unsqueeze(0))
            scores = expression_scores(counts)
            for group, count in counts_by_group.items():
                metrics[name].setdefault(group, SegmentationMetrics()).add(scores, [0] * count)
    return metrics

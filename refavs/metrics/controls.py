"""What predictions reach that never look at their input: the floor that a trained model has to beat."""

from collections.abc import Iterable

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


def mean_mask(masks: Iterable[Bool[Tensor, "t h w"]]) -> Float[Tensor, "h w"]:
    """Share of frames in which each pixel is the object's, over the masks of all training expressions.

    Raises:
        ValueError: there is no mask.
    """
    total, num_frames = None, 0
    for mask in masks:
        part = mask.sum(0, dtype=torch.float64)
        total = part if total is None else total + part
        num_frames += len(mask)
    if total is None or not num_frames:
        raise ValueError("the mean of no masks; expected at least one training expression with masks")
    return (total / num_frames).float()


def best_threshold(mean: Float[Tensor, "h w"], masks: Iterable[Bool[Tensor, "t h w"]]) -> float:
    """The threshold of the mean training mask (a pixel is predicted at or above it) with the best J on `masks`.

    Args:
        mean: from `mean_mask`.
        masks: the training expressions' masks; J is the mean over all their frames.
    """
    bins = threshold_bins(mean)
    total = torch.zeros(NUM_THRESHOLDS, dtype=torch.float64)
    for mask in masks:
        counts = count_pixels(bins.expand(mask.shape), torch.zeros_like(mask), mask)
        target = rearrange(counts.target, "t -> t 1")
        union = (counts.curve_pred + target - counts.curve_hits).clamp_min(1)
        jaccard = torch.where(target > 0, counts.curve_hits.double() / union, (counts.curve_pred == 0).double())
        total += jaccard.sum(0)
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
    constants = {
        BACKGROUND: (torch.zeros_like(mean), torch.zeros_like(mean, dtype=torch.bool)),
        FOREGROUND: (torch.ones_like(mean), torch.ones_like(mean, dtype=torch.bool)),
        MEAN_MASK: (mean, mean > THRESHOLD),
    }
    if threshold is not None:
        constants[MEAN_MASK_BEST] = (mean, mean >= threshold)
    prepared = {name: (threshold_bins(probs), pred) for name, (probs, pred) in constants.items()}
    metrics = {name: SegmentationMetrics() for name in prepared}
    for mask in masks:
        for name, (bins, pred) in prepared.items():
            shape = (1, *mask.shape)
            counts = count_pixels(bins.expand(shape), pred.expand(shape), mask.unsqueeze(0))
            metrics[name].add(expression_scores(counts))
    return {name: sums.compute() for name, sums in metrics.items()}

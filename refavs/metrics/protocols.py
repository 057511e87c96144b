"""Scores frames under one protocol: `canonical` (ours) or `released` (the authors' code). Their numbers never mix."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refavs.metrics.registry import metrics, sums_of
from refavs.metrics.segmentation import THRESHOLD, above, count_true, counts_at, jaccard_per_frame

RELEASED_J_THRESHOLD = 0.4


@dataclass(frozen=True, kw_only=True)
class Scores:
    """J, F (1 is best) and S (0 is best; meaningful only on null frames), as fractions.

    Attributes:
        J_per_frame: J of each frame, in the given order.
    """

    J: float
    F: float
    S: float
    J_per_frame: tuple[float, ...]


def canonical(logits: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> Scores:
    """Scores the frames of one expression, as `SegmentationMetrics` does.

    J: mean over frames, threshold 0.5; a frame without object counts 1 if nothing is predicted in it, else 0.
    F: the largest over 255 thresholds of the mean F over frames with an object, NaN if none has one.
    S: sqrt(predicted area / frame area) over all frames.

    Differs: the paper (Ref-AVS, arXiv 2407.10957v1, Sec. 5.2) gives neither thresholds nor a rule for empty frames.

    Args:
        logits: (N, H, W), before the sigmoid.
        masks: (N, H, W), booleans or 0 and 1.

    Raises:
        ValueError: the shapes are not (N, H, W) or differ, or masks hold other values than 0 and 1.
    """
    probs, target = _frames(logits, masks)
    counts = counts_at(probs.unsqueeze(0), target.unsqueeze(0), THRESHOLD)
    scores = {name: float(sums_of(metrics()[name].per_expression(counts))[0]) for name in ("J", "F", "S")}
    return Scores(**scores, J_per_frame=tuple(jaccard_per_frame(counts)[0].tolist()))


def released(logits: Tensor | np.ndarray, masks: Tensor | np.ndarray) -> Scores:
    """Scores the frames as one batch, by the formulas of the authors' released code.

    J: mean over frames, threshold 0.4; a frame without object counts its fraction of correct background pixels.
    F: the largest over 255 thresholds of the mean F over the frames with an object; 0 if none has one.
    S: sqrt(predicted area / frame area) over all frames, threshold 0.5.

    The authors average this over batches of 40 frames (four clips) at 256 x 256, in the order of the file, so F and S
    depend on the size and order of batches.

    Args:
        logits: (N, H, W), before the sigmoid.
        masks: (N, H, W), booleans or 0 and 1.

    Raises:
        ValueError: the shapes are not (N, H, W) or differ, or masks hold other values than 0 and 1.
    """
    probs, target = _frames(logits, masks)
    counts = counts_at(probs, target, RELEASED_J_THRESHOLD)
    union = counts.pred + counts.target - counts.hits
    background = (counts.num_pixels - counts.pred).double() / counts.num_pixels
    per_frame = torch.where(counts.target > 0, counts.hits.double() / (union + 1e-7), background)
    present = counts.target > 0
    curve = counts.f_curve[present]
    return Scores(
        J=float(per_frame.mean()),
        F=float(curve.mean(0).max()) if len(curve) else 0.0,
        S=float((count_true(above(probs, THRESHOLD)).sum().double() / probs.numel()).sqrt()),
        J_per_frame=tuple(per_frame.tolist()),
    )


def _frames(
    logits: Tensor | np.ndarray, masks: Tensor | np.ndarray
) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    scores, target = torch.as_tensor(logits), torch.as_tensor(masks)
    if scores.ndim != 3 or scores.shape != target.shape or not scores.numel():
        raise ValueError(
            f"logits of shape {tuple(scores.shape)} and masks of shape {tuple(target.shape)}; expected (N, H, W), the "
            "same for both, with at least one pixel"
        )
    if target.dtype != torch.bool and not bool(((target == 0) | (target == 1)).all()):
        raise ValueError(f"masks hold values from {target.min()} to {target.max()}; expected booleans or 0 and 1")
    target = target.to(scores.device)
    return scores.float().sigmoid(), target if target.dtype == torch.bool else target > 0

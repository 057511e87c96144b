"""J, F and S as mergeable sums over expressions, from per-frame counts of pixels.

Every number of this module is a mean over expressions, so it depends neither on the size nor the order of batches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

NUM_THRESHOLDS = 255
NUM_CELLS = NUM_THRESHOLDS + 1
CACHED_PIXELS = 2**16
BETA_SQUARED = 0.3
THRESHOLD = 0.5


def curve_thresholds() -> Float[Tensor, " k"]:
    """The thresholds of the F curve, evenly from 0 to 1 - 1e-10 as the released code has them (in float32: 1)."""
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS, dtype=torch.float64).float()


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """Numbers of pixels per frame; every metric is a function of them.

    Attributes:
        num_pixels: of a frame.
        target: pixels of the object.
        pred: predicted pixels at one threshold.
        hits: predicted pixels of the object at that threshold.
        curve_pred: predicted pixels at each threshold of `curve_thresholds`.
        curve_hits: predicted pixels of the object at each of them.
    """

    num_pixels: int
    target: Int[Tensor, "*frames"]
    pred: Int[Tensor, "*frames"]
    hits: Int[Tensor, "*frames"]
    curve_pred: Int[Tensor, "*frames k"]
    curve_hits: Int[Tensor, "*frames k"]


def threshold_bins(probs: Float[Tensor, "*frames h w"]) -> Int[Tensor, "*frames h w"]:
    """For each pixel, how many of the curve's thresholds its probability reaches: 1 to 255.

    Raises:
        ValueError: a value outside [0, 1] or NaN: logits by mistake, or a model that diverged.
    """
    require_probabilities(probs)
    return _bins(probs.detach().float())


def pixel_histogram(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"]
) -> Int[Tensor, "*frames 2 k"]:
    """Pixels of the background (first) and of the object (second) by their `threshold_bins`, in 256 cells.

    Raises:
        ValueError: a value outside [0, 1] or NaN.
    """
    require_probabilities(probs)
    flat_probs = rearrange(probs.detach().float(), "... h w -> (...) (h w)")
    flat_masks = rearrange(masks, "... h w -> (...) (h w)")
    if probs.device.type == "cpu":
        parts = [_histogram_numpy(*part) for part in zip(flat_probs.numpy(), flat_masks.numpy(), strict=True)]
        found = torch.stack(parts) if parts else torch.zeros(0, 2, NUM_CELLS, dtype=torch.int64)
    else:
        found = _histogram(_bins(flat_probs), flat_masks)
    return found.reshape(*masks.shape[:-2], 2, NUM_CELLS)


def _histogram_numpy(probs: Float[np.ndarray, " p"], masks: Bool[np.ndarray, " p"]) -> Int[Tensor, "2 k"]:
    """As `_histogram` of `_bins`, for one frame; on a processor bytes in the cache are fastest."""
    nearest = np.rint(probs * np.float32(NUM_THRESHOLDS - 1))
    bins = nearest.astype(np.uint8)
    nearest /= np.float32(NUM_THRESHOLDS - 1)
    bins += (probs >= nearest).view(np.uint8)
    every, inside = (
        torch.bincount(torch.from_numpy(part), minlength=NUM_CELLS) for part in (bins, bins[masks])
    )
    return torch.stack([every - inside, inside])


def frames_at_once(device: torch.device, num_pixels: int, num_frames: int) -> int:
    """A processor is fastest on as many frames as its cache holds, an accelerator on all of them."""
    return max(1, CACHED_PIXELS // num_pixels if device.type == "cpu" else num_frames)


def require_probabilities(probs: Float[Tensor, "*frames h w"]) -> None:
    """Raises a ValueError if a value is outside [0, 1] or NaN."""
    if not probs.numel():
        return
    low, high = torch.aminmax(probs.detach())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"probs from {float(low)} to {float(high)}; expected values in [0, 1], after the sigmoid")


def _bins(probs: Tensor) -> Tensor:
    """The nearest threshold is one too high where the value lies below it; the sign of a float32 is its first bit."""
    nearest = (probs * (NUM_THRESHOLDS - 1)).round_()
    bins = nearest.to(torch.int32)
    below = torch.sub(probs, nearest.div_(NUM_THRESHOLDS - 1)).view(torch.int32)
    return bins.add_(below.bitwise_right_shift_(31)).add_(1)


def _histogram(bins: Int[Tensor, "n p"], masks: Bool[Tensor, "n p"]) -> Int[Tensor, "n 2 k"]:
    cells = torch.add(bins, masks, alpha=NUM_CELLS)
    if len(cells) > 1:
        cells = cells + 2 * NUM_CELLS * torch.arange(len(cells), device=cells.device, dtype=cells.dtype).unsqueeze(1)
    counts = torch.bincount(cells.flatten(), minlength=2 * NUM_CELLS * len(cells))
    return rearrange(counts, "(n side k) -> n side k", side=2, k=NUM_CELLS)


def count_pixels(
    bins: Int[Tensor, "*frames h w"], pred: Bool[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"]
) -> FrameCounts:
    """Counts from `threshold_bins`, a prediction and the object's masks; one histogram, no loop over thresholds."""
    *frames, height, width = masks.shape
    histogram = _histogram(
        rearrange(bins, "... h w -> (...) (h w)"), rearrange(masks, "... h w -> (...) (h w)")
    ).reshape(*frames, 2, NUM_CELLS)
    return frame_counts(histogram, count_true(pred), count_true(pred & masks), height * width)


def frame_counts(
    histogram: Int[Tensor, "*frames 2 k"], pred: Int[Tensor, "*frames"], hits: Int[Tensor, "*frames"], num_pixels: int
) -> FrameCounts:
    """Counts from `pixel_histogram`, and from the predicted pixels and the hits among them at one threshold."""
    at_least = histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return FrameCounts(
        num_pixels=num_pixels,
        target=histogram[..., 1, :].sum(-1),
        pred=pred,
        hits=hits,
        curve_pred=at_least.sum(-2),
        curve_hits=at_least[..., 1, :],
    )


def f_curve(counts: FrameCounts) -> Float[Tensor, "*frames k"]:
    """F of each frame at each threshold, beta^2 = 0.3; 0 where nothing is hit or there is no object."""
    hits = counts.curve_hits.double()
    precision = hits / (counts.curve_pred + 1e-20)
    recall = hits / (counts.target.unsqueeze(-1) + 1e-20)
    score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return score.nan_to_num(0.0)


def jaccard_per_frame(counts: FrameCounts) -> Float[Tensor, "*frames"]:
    """Intersection over union; 1 where there is neither object nor prediction, 0 where there is only a prediction."""
    union = (counts.pred + counts.target - counts.hits).clamp_min(1)
    return torch.where(counts.target > 0, counts.hits.double() / union, (counts.pred == 0).double())


@dataclass(frozen=True, kw_only=True)
class ExpressionScores:
    """Scores of each expression, from its own frames alone.

    Attributes:
        jaccard: mean over the frames of intersection over union; a frame without object counts 1 if nothing is
            predicted in it, else 0.
        f_score: the largest, over 255 thresholds, of the mean F over the frames with an object; NaN where none has.
        empty_score: sqrt(predicted area / frame area) over all frames, the S of null expressions: 0 is best.
        num_object_frames: frames with an object.
        num_false_empty: frames with an object in which nothing is predicted.
    """

    jaccard: Float[Tensor, " b"]
    f_score: Float[Tensor, " b"]
    empty_score: Float[Tensor, " b"]
    num_object_frames: Int[Tensor, " b"]
    num_false_empty: Int[Tensor, " b"]


def expression_scores(counts: FrameCounts) -> ExpressionScores:
    """Scores of expressions whose counts have the axes `b t`."""
    present, predicted = counts.target > 0, counts.pred > 0
    num_present = present.sum(1)
    f_sum = (f_curve(counts) * present.unsqueeze(-1)).sum(1)
    f_score = f_sum.amax(-1) / num_present
    return ExpressionScores(
        jaccard=jaccard_per_frame(counts).mean(1),
        f_score=f_score,
        empty_score=(counts.pred.double() / counts.num_pixels).mean(1).sqrt(),
        num_object_frames=num_present,
        num_false_empty=(present & ~predicted).sum(1),
    )


def score_expressions(
    probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t h w"], threshold: float = THRESHOLD
) -> ExpressionScores:
    """Scores of `b` expressions; a pixel is predicted where its probability is above `threshold`."""
    return expression_scores(counts_at(probs, masks, threshold))


def counts_at(probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], threshold: float) -> FrameCounts:
    """Counts of frames; a pixel is predicted where its probability is above `threshold`."""
    height, width = masks.shape[-2:]
    return frame_counts(pixel_histogram(probs, masks), *predicted(probs, masks, threshold), height * width)


def predicted(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], threshold: float
) -> tuple[Int[Tensor, "*frames"], Int[Tensor, "*frames"]]:
    """Pixels whose probability is above `threshold`, and those of the object among them."""
    if probs.device.type != "cpu":
        pred = probs > threshold
        return count_true(pred), count_true(pred & masks)
    flat_probs, flat_masks = (rearrange(part, "... h w -> (...) (h w)").numpy() for part in (probs.float(), masks))
    counts = []
    for prob, mask in zip(flat_probs, flat_masks, strict=True):
        pred = prob > np.float32(threshold)
        counts.append((np.count_nonzero(pred), np.count_nonzero(pred & mask)))
    pred, hits = torch.tensor(counts, dtype=torch.int64).reshape(*masks.shape[:-2], 2).unbind(-1)
    return pred, hits


def above(probs: Float[Tensor, "*frames h w"], threshold: float) -> Bool[Tensor, "*frames h w"]:
    """Where a probability is above `threshold`; on a processor NumPy compares and counts several times faster."""
    if probs.device.type == "cpu" and probs.dtype == torch.float32:
        return torch.from_numpy(probs.numpy() > np.float32(threshold))
    return probs > threshold


def count_true(masks: Bool[Tensor, "*frames h w"]) -> Int[Tensor, "*frames"]:
    """Pixels that are True in each frame."""
    if masks.device.type != "cpu":
        return masks.count_nonzero(dim=(-2, -1))
    frames = rearrange(masks, "... h w -> (...) h w").numpy()
    return torch.tensor([np.count_nonzero(frame) for frame in frames]).to(torch.int64).reshape(masks.shape[:-2])


@dataclass(kw_only=True)
class SegmentationMetrics:
    """Running sums of expression scores; `update` with batches of any size, `merge` across workers, then `compute`."""

    num_expressions: int = 0
    num_with_object: int = 0
    num_object_frames: int = 0
    num_false_empty: int = 0
    jaccard_sum: float = 0.0
    f_sum: float = 0.0
    empty_sum: float = 0.0

    def update(self, probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t h w"]) -> None:
        """Adds `b` expressions: probabilities after the sigmoid, and the object's masks (all False: no object)."""
        self.add(score_expressions(probs, masks))

    def add(self, scores: ExpressionScores, rows: Sequence[int] | None = None) -> None:
        """Adds expressions that are scored already: all of them, or `rows`."""
        chosen = slice(None) if rows is None else list(rows)
        present = scores.num_object_frames[chosen]
        self.num_expressions += len(present)
        self.num_with_object += int((present > 0).sum())
        self.num_object_frames += int(present.sum())
        self.num_false_empty += int(scores.num_false_empty[chosen].sum())
        self.jaccard_sum += float(scores.jaccard[chosen].sum())
        self.f_sum += float(scores.f_score[chosen].nansum())
        self.empty_sum += float(scores.empty_score[chosen].sum())

    def merge(self, other: "SegmentationMetrics") -> "SegmentationMetrics":
        """The metrics of both parts; neither is changed."""
        mine, theirs = vars(self), vars(other)
        return SegmentationMetrics(**{name: mine[name] + theirs[name] for name in mine})

    def compute(self) -> dict[str, float]:
        """Means over expressions as fractions: `J`, `F`, `S`, `false_empty`, and `num_expressions`.

        A mean over nothing is NaN: F and false_empty where no expression has an object, everything before the first
        update. J, F: 1 is best. S: 0 is best, and says something on null expressions alone. false_empty: share of the
        frames with an object in which nothing is predicted.
        """
        return {
            "J": _mean(self.jaccard_sum, self.num_expressions),
            "F": _mean(self.f_sum, self.num_with_object),
            "S": _mean(self.empty_sum, self.num_expressions),
            "false_empty": _mean(self.num_false_empty, self.num_object_frames),
            "num_expressions": float(self.num_expressions),
        }


def update_groups(
    groups: dict[str, SegmentationMetrics],
    probs: Float[Tensor, "b t h w"],
    masks: Bool[Tensor, "b t h w"],
    names: Sequence[Sequence[str]],
) -> None:
    """Scores a batch once and adds each expression to every group that is named for it; new groups are made.

    Args:
        groups: changed in place, e.g. `{"test_s": ..., "test_s/spatial": ...}`.
        probs: probabilities after the sigmoid.
        masks: the object's masks.
        names: for each of the `b` expressions, the groups it belongs to.
    """
    add_to_groups(groups, score_expressions(probs, masks), names)


def add_to_groups(
    groups: dict[str, SegmentationMetrics], scores: ExpressionScores, names: Sequence[Sequence[str]]
) -> None:
    """As `update_groups`, with expressions that are scored already."""
    rows: dict[str, list[int]] = {}
    for row, chosen in zip(range(len(scores.jaccard)), names, strict=True):
        for name in chosen:
            rows.setdefault(name, []).append(row)
    for name, members in rows.items():
        groups.setdefault(name, SegmentationMetrics()).add(scores, members)


def merge_groups(
    first: Mapping[str, SegmentationMetrics], second: Mapping[str, SegmentationMetrics]
) -> dict[str, SegmentationMetrics]:
    """The metrics of both parts, group by group."""
    names = sorted({*first, *second})
    empty = SegmentationMetrics()
    return {name: first.get(name, empty).merge(second.get(name, empty)) for name in names}


def _mean(total: float | int, count: int) -> float:
    return total / count if count else math.nan

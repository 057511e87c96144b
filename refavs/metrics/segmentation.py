"""Pixel counts per frame, from which every metric is computed; independent of batching."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

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
    """The thresholds of the F curve, evenly spaced from 0 to 1 - 1e-10 as in the released code (in float32: 1)."""
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS, dtype=torch.float64).float()


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """Pixel counts per frame, with axes `b t` when scoring expressions.

    Attributes:
        num_pixels: number of pixels in a frame.
        target: pixels of the object.
        pred: predicted pixels at one threshold.
        hits: predicted pixels on the object at that threshold.
        histogram: from `pixel_histogram`; None if only the counts at one threshold are known.
        labelled: the frames that count; None means all.
        own: additional counts of metrics, by `METRIC/COLUMN`.
    """

    num_pixels: int
    target: Int[Tensor, "*frames"]
    pred: Int[Tensor, "*frames"]
    hits: Int[Tensor, "*frames"]
    histogram: Int[Tensor, "*frames 2 k"] | None = None
    labelled: Bool[Tensor, "*frames"] | None = None
    own: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def present(self) -> Bool[Tensor, "*frames"]:
        """Labelled frames with an object."""
        return self._labelled(self.target > 0)

    @property
    def absent(self) -> Bool[Tensor, "*frames"]:
        """Labelled frames without an object."""
        return self._labelled(self.target == 0)

    @cached_property
    def curve(self) -> tuple[Int[Tensor, "*frames k"], Int[Tensor, "*frames k"]]:
        """Predicted pixels, and those of them on the object, at each of `curve_thresholds`."""
        assert self.histogram is not None
        at_least = self.histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return at_least.sum(-2), at_least[..., 1, :]

    @cached_property
    def f_curve(self) -> Float[Tensor, "*frames k"]:
        """F (beta^2 = 0.3) of each frame at each threshold; 0 without hits or without an object."""
        pred, hits = self.curve
        hits = hits.double()
        precision = hits / (pred + 1e-20)
        recall = hits / (self.target.unsqueeze(-1) + 1e-20)
        score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
        return score.nan_to_num(0.0)

    @cached_property
    def f_sum(self) -> Float[Tensor, "b k"]:
        """`f_curve` summed over the frames of each expression."""
        curve = self.f_curve
        return (curve if self.labelled is None else curve * self.labelled.unsqueeze(-1)).sum(1)

    def over_frames(self, values: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """The mean over the labelled frames of each expression; NaN if none has a label."""
        if self.labelled is None:
            return values.mean(1)
        return torch.where(self.labelled, values, 0).sum(1) / self.labelled.sum(1)

    def _labelled(self, chosen: Bool[Tensor, "*frames"]) -> Bool[Tensor, "*frames"]:
        return chosen if self.labelled is None else chosen & self.labelled


def threshold_bins(probs: Float[Tensor, "*frames h w"]) -> Int[Tensor, "*frames h w"]:
    """The number of curve thresholds that each pixel's probability reaches, from 1 to 255.

    Raises:
        ValueError: a value is outside [0, 1] or NaN, e.g. logits by mistake or a diverged model.
    """
    require_probabilities(probs)
    return _bins(probs.detach().float())


def pixel_histogram(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"]
) -> Int[Tensor, "*frames 2 k"]:
    """Histogram (256 cells) of `threshold_bins` over the background (first) and the object (second).

    Raises:
        ValueError: a value is outside [0, 1] or NaN.
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
    """As `_histogram` of `_bins` for one frame; fastest on a CPU, because it works on bytes in the cache."""
    nearest = np.rint(probs * np.float32(NUM_THRESHOLDS - 1))
    bins = nearest.astype(np.uint8)
    nearest /= np.float32(NUM_THRESHOLDS - 1)
    bins += (probs >= nearest).view(np.uint8)
    every, inside = (
        torch.bincount(torch.from_numpy(part), minlength=NUM_CELLS) for part in (bins, bins[masks])
    )
    return torch.stack([every - inside, inside])


def frames_at_once(device: torch.device, num_pixels: int, num_frames: int) -> int:
    """The number of frames to process together: as many as fit in a CPU's cache, or all on an accelerator."""
    return max(1, CACHED_PIXELS // num_pixels if device.type == "cpu" else num_frames)


def require_probabilities(probs: Float[Tensor, "*frames h w"]) -> None:
    """Raises a ValueError if a value is outside [0, 1] or NaN."""
    if not probs.numel():
        return
    low, high = torch.aminmax(probs.detach())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"probs from {float(low)} to {float(high)}; expected values in [0, 1], after the sigmoid")


def _bins(probs: Tensor) -> Tensor:
    """Rounds to the nearest threshold, minus 1 if the value is below it; the first bit of a float32 is its sign."""
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


def jaccard_per_frame(counts: FrameCounts) -> Float[Tensor, "*frames"]:
    """Intersection over union; 1 if there is neither object nor prediction, 0 if there is only a prediction."""
    union = (counts.pred + counts.target - counts.hits).clamp_min(1)
    return torch.where(counts.target > 0, counts.hits.double() / union, (counts.pred == 0).double())


def counts_at(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], threshold: float,
    labelled: Bool[Tensor, "*frames"] | None = None, own: Mapping[str, Tensor] | None = None,
) -> FrameCounts:
    """Counts per frame; a pixel is predicted if its probability is above `threshold`."""
    histogram = pixel_histogram(probs, masks)
    pred, hits = predicted(probs, masks, threshold)
    return FrameCounts(
        num_pixels=masks.shape[-2] * masks.shape[-1], target=histogram[..., 1, :].sum(-1), pred=pred, hits=hits,
        histogram=histogram, labelled=labelled, own=own or {},
    )  # fmt: skip


def predicted(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], threshold: float
) -> tuple[Int[Tensor, "*frames"], Int[Tensor, "*frames"]]:
    """Number of pixels with a probability above `threshold`, and of those on the object."""
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
    """Pixels with a probability above `threshold`. On a CPU, NumPy compares several times faster than torch."""
    if probs.device.type == "cpu" and probs.dtype == torch.float32:
        return torch.from_numpy(probs.numpy() > np.float32(threshold))
    return probs > threshold


def count_true(masks: Bool[Tensor, "*frames h w"]) -> Int[Tensor, "*frames"]:
    """Number of True pixels in each frame."""
    if masks.device.type != "cpu":
        return masks.count_nonzero(dim=(-2, -1))
    frames = rearrange(masks, "... h w -> (...) h w").numpy()
    return torch.tensor([np.count_nonzero(frame) for frame in frames]).to(torch.int64).reshape(masks.shape[:-2])

"""Counts of pixels per frame, from which every metric follows; none depends on how frames are batched."""

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
    """The thresholds of the F curve, evenly from 0 to 1 - 1e-10 as the released code has them (in float32: 1)."""
    return torch.linspace(0, 1 - 1e-10, NUM_THRESHOLDS, dtype=torch.float64).float()


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """Numbers of pixels per frame, with the axes `b t` where expressions are scored.

    Attributes:
        num_pixels: of a frame.
        target: pixels of the object.
        pred: predicted pixels at one threshold.
        hits: predicted pixels of the object at that threshold.
        histogram: from `pixel_histogram`; None where only the counts at one threshold are known.
        labelled: frames that take part; None where all do.
        own: what metrics count themselves, as `METRIC/COLUMN`.
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
        """Frames with an object."""
        return self._labelled(self.target > 0)

    @property
    def absent(self) -> Bool[Tensor, "*frames"]:
        """Frames without an object."""
        return self._labelled(self.target == 0)

    @cached_property
    def curve(self) -> tuple[Int[Tensor, "*frames k"], Int[Tensor, "*frames k"]]:
        """At each of `curve_thresholds`: predicted pixels, and those of the object among them."""
        assert self.histogram is not None
        at_least = self.histogram.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return at_least.sum(-2), at_least[..., 1, :]

    @cached_property
    def f_curve(self) -> Float[Tensor, "*frames k"]:
        """F of each frame at each threshold, beta^2 = 0.3; 0 where nothing is hit or there is no object."""
        pred, hits = self.curve
        hits = hits.double()
        precision = hits / (pred + 1e-20)
        recall = hits / (self.target.unsqueeze(-1) + 1e-20)
        score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
        return score.nan_to_num(0.0)

    @cached_property
    def f_sum(self) -> Float[Tensor, "b k"]:
        """`f_curve`, summed over the frames of each expression."""
        curve = self.f_curve
        return (curve if self.labelled is None else curve * self.labelled.unsqueeze(-1)).sum(1)

    def over_frames(self, values: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """The mean over the labelled frames of each expression; NaN where none has a label."""
        if self.labelled is None:
            return values.mean(1)
        return torch.where(self.labelled, values, 0).sum(1) / self.labelled.sum(1)

    def _labelled(self, chosen: Bool[Tensor, "*frames"]) -> Bool[Tensor, "*frames"]:
        return chosen if self.labelled is None else chosen & self.labelled


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


def jaccard_per_frame(counts: FrameCounts) -> Float[Tensor, "*frames"]:
    """Intersection over union; 1 where there is neither object nor prediction, 0 where there is only a prediction."""
    union = (counts.pred + counts.target - counts.hits).clamp_min(1)
    return torch.where(counts.target > 0, counts.hits.double() / union, (counts.pred == 0).double())


def counts_at(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], threshold: float,
    labelled: Bool[Tensor, "*frames"] | None = None, own: Mapping[str, Tensor] | None = None,
) -> FrameCounts:
    """Counts of frames; a pixel is predicted where its probability is above `threshold`."""
    histogram = pixel_histogram(probs, masks)
    pred, hits = predicted(probs, masks, threshold)
    return FrameCounts(
        num_pixels=masks.shape[-2] * masks.shape[-1], target=histogram[..., 1, :].sum(-1), pred=pred, hits=hits,
        histogram=histogram, labelled=labelled, own=own or {},
    )  # fmt: skip


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

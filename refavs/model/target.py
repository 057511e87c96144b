"""The ground truth that a loss compares a prediction with."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Int
from torch import Tensor

from refavs.model.batch_cache import Once


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """The number of labelled frames that a loss averages over: with the object (`shown`) and without it (`null`)."""

    shown: int
    null: int

    @classmethod
    def of(cls, masks: Bool[Tensor, "b t h w"], labelled: Bool[Tensor, "b t"] | None = None) -> "LabelCounts":
        """Counts the frames of `masks`."""
        shown = masks.flatten(2).any(dim=2)
        if labelled is not None:
            shown = shown & labelled
        num_frames = shown.numel() if labelled is None else int(labelled.sum())
        return cls(shown=int(shown.sum()), null=num_frames - int(shown.sum()))


@dataclass(frozen=True, kw_only=True)
class Target:
    """The ground truth for the decoded steps of a batch, or of a part of a batch.

    Attributes:
        masks: masks of the referred object; empty if there is none.
        labelled: which steps have a label; the others do not contribute to a loss. None if all have one.
        counts: the frame counts of the whole batch. If the loss of each part is a sum over its frames divided by these
            counts, losses and gradients of the parts add up to those of the batch. None if the batch is not split.
        shown: indices of the labelled frames with an object, expression after expression; None computes them from the
            masks, which waits for the device.
        once: cache of results that depend only on the target, shared with the other heads that have the same target.
    """

    masks: Bool[Tensor, "b t h w"]
    labelled: Bool[Tensor, "b t"] | None = None
    counts: LabelCounts | None = None
    shown: Int[Tensor, "s"] | None = None
    once: Once = field(default_factory=Once)

    @property
    def whole(self) -> LabelCounts:
        """The frame counts that a loss divides by."""
        return self.counts or LabelCounts.of(self.masks, self.labelled)

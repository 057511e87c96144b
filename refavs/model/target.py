"""What a loss compares a prediction with."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Int
from torch import Tensor

from refavs.model.batch_cache import Once


@dataclass(frozen=True, kw_only=True)
class FrameCounts:
    """The labelled frames that a loss is a mean over: those that show the object and those without one."""

    shown: int
    null: int

    @classmethod
    def of(cls, masks: Bool[Tensor, "b t h w"], labelled: Bool[Tensor, "b t"] | None = None) -> "FrameCounts":
        """The frames of `masks`."""
        shown = masks.flatten(2).any(dim=2)
        if labelled is not None:
            shown = shown & labelled
        num_frames = shown.numel() if labelled is None else int(labelled.sum())
        return cls(shown=int(shown.sum()), null=num_frames - int(shown.sum()))


@dataclass(frozen=True, kw_only=True)
class Target:
    """The truth about the decoded seconds of a batch, or of a part of one.

    Attributes:
        masks: the referred object; an empty mask means that there is none.
        labelled: the seconds that have a label, the others take no part in a loss; None where all have one.
        counts: the frames of the whole batch. The losses of its parts add up to those of the batch, and so do their
            gradients, where each is a sum over its own frames divided by these. None for a batch in one piece.
        shown: the labelled frames with an object, counted expression after expression; None finds them in the masks,
            which on a device waits for it.
        once: shares what depends on the target alone with the other heads that have the same.
    """

    masks: Bool[Tensor, "b t h w"]
    labelled: Bool[Tensor, "b t"] | None = None
    counts: FrameCounts | None = None
    shown: Int[Tensor, "s"] | None = None
    once: Once = field(default_factory=Once)

    @property
    def whole(self) -> FrameCounts:
        """The frames that a loss is a mean over."""
        return self.counts or FrameCounts.of(self.masks, self.labelled)

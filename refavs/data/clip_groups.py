"""The expressions of a batch side by side, clip by clip, so that they share the clip's maps instead of copying them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClipGroups:
    """Which expressions speak of which clip. The sizes are known without asking a device.

    Attributes:
        slot: the place of each expression among `num_clips * size` places, clip after clip.
        num_clips: distinct clips.
        size: the most expressions of one clip.
        in_order: every place is taken, by the expressions in their order, so that nothing has to be moved.
    """

    slot: Int[Tensor, "b"]
    num_clips: int
    size: int
    in_order: bool

    @classmethod
    def of(cls, clip: Sequence[int], num_clips: int) -> "ClipGroups":
        """The groups of expressions that speak of the clips `clip`."""
        before: Counter[int] = Counter()
        places = []  # the expressions of a clip are counted from 0
        for one in clip:
            places.append(before[one])
            before[one] += 1
        size = max(places) + 1
        slots = [one * size + place for one, place in zip(clip, places, strict=True)]
        return cls(torch.tensor(slots), num_clips, size, slots == list(range(num_clips * size)))

    def to(self, device: torch.device | str) -> "ClipGroups":
        """The same for tensors on `device`."""
        return ClipGroups(self.slot.to(device, non_blocking=True), self.num_clips, self.size, self.in_order)

    def join(self, queries: Float[Tensor, "b t q c"]) -> Float[Tensor, "u t k q c"]:
        """From expressions to clips with up to k expressions; a place that has none is zero."""
        if not self.in_order:
            grouped = queries.new_zeros(self.num_clips * self.size, *queries.shape[1:])
            queries = grouped.index_copy(0, self.slot, queries)
        return rearrange(queries, "(u k) t q c -> u t k q c", k=self.size)

    def part(self, grouped: Float[Tensor, "u t k q c"]) -> Float[Tensor, "b t q c"]:
        """The way back."""
        queries = rearrange(grouped, "u t k q c -> (u k) t q c")
        return queries if self.in_order else queries.index_select(0, self.slot)

"""Groups the expressions of a batch by clip, so that they share the clip's maps instead of copying them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClipGroups:
    """The clip of each expression. Sizes are plain numbers, so reading them does not wait for a device.

    Attributes:
        slot: slot of each expression among `num_clips * size` slots, clip after clip.
        num_clips: number of distinct clips.
        size: the largest number of expressions of one clip.
        in_order: whether the expressions fill all slots in their order, so that nothing has to be moved.
    """

    slot: Int[Tensor, "b"]
    num_clips: int
    size: int
    in_order: bool

    @classmethod
    def of(cls, clip: Sequence[int], num_clips: int) -> "ClipGroups":
        """Groups expressions by `clip`, the clip of each."""
        before: Counter[int] = Counter()
        places = []  # number of each expression within its clip, from 0
        for one in clip:
            places.append(before[one])
            before[one] += 1
        size = max(places) + 1
        slots = [one * size + place for one, place in zip(clip, places, strict=True)]
        return cls(torch.tensor(slots), num_clips, size, slots == list(range(num_clips * size)))

    def to(self, device: torch.device | str) -> "ClipGroups":
        """The groups with `slot` on `device`."""
        return ClipGroups(self.slot.to(device, non_blocking=True), self.num_clips, self.size, self.in_order)

    def join(self, queries: Float[Tensor, "b t q c"]) -> Float[Tensor, "u t k q c"]:
        """Rearranges expressions into clips with up to k expressions; unused slots are zero."""
        if not self.in_order:
            grouped = queries.new_zeros(self.num_clips * self.size, *queries.shape[1:])
            queries = grouped.index_copy(0, self.slot, queries)
        return rearrange(queries, "(u k) t q c -> u t k q c", k=self.size)

    def part(self, grouped: Float[Tensor, "u t k q c"]) -> Float[Tensor, "b t q c"]:
        """The inverse of `join`."""
        queries = rearrange(grouped, "u t k q c -> (u k) t q c")
        return queries if self.in_order else queries.index_select(0, self.slot)

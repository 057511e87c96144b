"""The visual maps of a batch, quantised until their values are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from refavs.store.format.quantised import dequantised

NOWHERE = 2**31  # beyond every axis, so that selecting it is an error


@dataclass(frozen=True, eq=False)
class Maps(Mapping[str, Tensor]):
    """Maps of clips by name. `maps[name]` returns values: float32 for a quantised map, otherwise the map as stored.

    Values are computed on every access, on the device of the maps, and are not kept.

    A map that was read in part has only the steps that were read; `part` selects from them by steps of the clip.

    Attributes:
        stored: the numbers as the store has them.
        scales: the scale of each clip and channel of the quantised maps.
        places: where each step is among the read ones, for a map whose read steps are not the first ones;
            `NOWHERE` for a step that was not read.
    """

    stored: Mapping[str, Shaped[Tensor, "u _ _ _ _"]]
    scales: Mapping[str, Float[Tensor, "u _"]] = field(default_factory=dict)
    places: Mapping[str, Int[Tensor, "t"]] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: Mapping[str, Tensor]) -> "Maps":
        """`maps` itself if it is a `Maps`; the maps of a plain mapping are not quantised."""
        return maps if isinstance(maps, Maps) else cls(maps)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored[name]
        return dequantised(stored, self.scales[name], 2) if name in self.scales else stored

    @staticmethod
    def places_of(steps: Sequence[int], num_steps: int) -> Int[Tensor, "t"]:
        """The position of each of `num_steps` steps among the steps that were read."""
        places = torch.full((num_steps,), NOWHERE)
        places[list(steps)] = torch.arange(len(steps))
        return places

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, for example to wait for their copy."""
        return [*self.stored.values(), *self.scales.values(), *self.places.values()]

    def part(self, names: Iterable[str], steps: slice | Int[Tensor, "f"]) -> "Maps":
        """The maps with these names, of these steps.

        Args:
            names: one that the batch lacks is left out.
            steps: a slice must start with the first step. It keeps of a map the read ones, an index takes all.
        """
        stored, places = {}, {}
        for name in names:
            if name in self.places and isinstance(steps, slice):
                stored[name], places[name] = self.stored[name], self.places[name][steps]
            elif name in self.stored:
                stored[name] = self.stored[name][:, self.places[name][steps] if name in self.places else steps]
        return Maps(stored, {name: scale for name, scale in self.scales.items() if name in stored}, places)

    def to(self, device: torch.device | str) -> "Maps":
        """The maps on `device`, copied without waiting for the copy."""
        return Maps(*({name: one.to(device, non_blocking=True) for name, one in maps.items()}
                      for maps in (self.stored, self.scales, self.places)))  # fmt: skip

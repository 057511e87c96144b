"""The visual maps of a batch, quantised until their values are read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from refavs.store.format.quantised import dequantised


@dataclass(frozen=True, eq=False)
class Maps(Mapping[str, Tensor]):
    """Maps of clips by name. `maps[name]` returns values: float32 for a quantised map, otherwise the map as stored.

    Values are computed on every access, on the device of the maps, and are not kept.

    Attributes:
        stored: the numbers as the store has them.
        scales: the scale of each clip and channel of the quantised maps.
    """

    stored: Mapping[str, Shaped[Tensor, "u t _ _ _"]]
    scales: Mapping[str, Float[Tensor, "u _"]] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: Mapping[str, Tensor]) -> "Maps":
        """`maps` itself if it is a `Maps`; the maps of a plain mapping are not quantised."""
        return maps if isinstance(maps, Maps) else cls(maps)

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored[name]
        return dequantised(stored, self.scales[name], 2) if name in self.scales else stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, for example to wait for their copy."""
        return [*self.stored.values(), *self.scales.values()]

    def part(self, names: Iterable[str], seconds: slice | Int[Tensor, "f"]) -> "Maps":
        """The maps with these names, of these seconds."""
        stored = {name: self.stored[name][:, seconds] for name in names}
        return Maps(stored, {name: scale for name, scale in self.scales.items() if name in stored})

    def to(self, device: torch.device | str) -> "Maps":
        """The maps on `device`, copied without waiting for the copy."""
        stored, scales = ({name: one.to(device, non_blocking=True) for name, one in maps.items()}
                          for maps in (self.stored, self.scales))  # fmt: skip
        return Maps(stored, scales)

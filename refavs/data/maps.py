"""The visual maps of a batch: as they are stored until somebody takes their values, on whatever device they lie."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from refavs.store.format.quantised import dequantised


@dataclass(frozen=True, eq=False)
class Maps(Mapping[str, Tensor]):
    """Maps of clips by their name. `maps[name]` are values: of a quantised map float32, else as they are stored.

    Attributes:
        stored: numbers as the store has them.
        scales: the scale of each clip and channel of the maps that are quantised.
    """

    stored: Mapping[str, Shaped[Tensor, "u t _ _ _"]]
    scales: Mapping[str, Float[Tensor, "u _"]] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: Mapping[str, Tensor]) -> "Maps":
        """The same maps; those of a plain mapping are not quantised."""
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
        """All that lies in memory."""
        return [*self.stored.values(), *self.scales.values()]

    def part(self, names: Iterable[str], seconds: slice | Int[Tensor, "f"]) -> "Maps":
        """Some of the maps, in some of the seconds."""
        stored = {name: self.stored[name][:, seconds] for name in names}
        return Maps(stored, {name: scale for name, scale in self.scales.items() if name in stored})

    def to(self, device: torch.device | str) -> "Maps":
        """The same on `device`; a copy there may not be done yet."""
        stored, scales = ({name: one.to(device, non_blocking=True) for name, one in maps.items()}
                          for maps in (self.stored, self.scales))  # fmt: skip
        return Maps(stored, scales)

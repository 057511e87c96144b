"""What the baselines read: standardised maps, and one vector in each step that says what to look for."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.data.maps import Maps
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.protocol import ChosenSteps
from refavs.model.visual import FeatureProjection, Standardisation, Statistics


class MapInput(nn.Module):
    """The stored maps of the distinct clips, which heads that read the same batch standardise once.

    Args:
        as_stored: the maps stay as they are, as a pretrained decoder expects them.
    """

    def __init__(self, sizes: FeatureSizes, as_stored: bool = False) -> None:
        super().__init__()
        self.paths = {size.name: size.path for size in sizes.maps}
        self.inputs = nn.ModuleDict(
            {} if as_stored else {size.name: Standardisation(size.channels) for size in sizes.maps}
        )

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the mean and deviation of the channels of each map."""
        for name in self.inputs:
            cast(Standardisation, self.inputs[name]).set(*statistics[self.paths[name]])

    def forward(
        self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None
    ) -> dict[str, Float[Tensor, "u t _ _ _"]]:
        once, maps = once or Once(), Maps.of(batch.visual)

        def chosen(name: str) -> Callable[[], Tensor]:
            return lambda: self._read(name, (maps if steps is None else maps.part([name], steps.index))[name])

        # The steps that are chosen are the same for all who share this batch.
        return {name: once(("map", name, name in self.inputs, steps is None), chosen(name)) for name in self.paths}

    def _read(self, name: str, maps: Tensor) -> Tensor:
        return cast(Standardisation, self.inputs[name]).maps(maps) if name in self.inputs else maps.float()


class CueInput(nn.Module):
    """The sound of each step, the mean of the expression's tokens, or their sum.

    Follows Ref-AVS (arXiv 2407.10957v1), supplement B.3: a linear projection brings the modality that a method lacks to
    the width of the one that it has, and the two are added. Open there: how the tokens become one vector (here their
    sum, normalised: their mean differs between expressions by a sixth of what it differs by between tokens, too little
    beside a sound), and where the sum is taken.

    Args:
        width: channels of the cue.
        listen: the method's own projection of the sound, from its channels to `width`.
    """

    def __init__(self, sizes: FeatureSizes, width: int, listen: Callable[[int], nn.Module]) -> None:
        super().__init__()
        audio, text = sizes.audio, sizes.text
        self.paths = {name: size.path for name, size in (("audio", audio), ("text", text)) if size is not None}
        self.standardise = Standardisation(audio.channels) if audio else None
        self.listen = listen(audio.channels) if audio else None
        self.read = FeatureProjection(text.channels, width) if text else None

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the mean and deviation of the channels of each stream."""
        if self.standardise is not None:
            self.standardise.set(*statistics[self.paths["audio"]])
        if self.read is not None:
            self.read.standardise.set(*statistics[self.paths["text"]])

    def forward(self, batch: Batch, steps: ChosenSteps | None = None) -> Float[Tensor, "b t c"]:
        parts = []
        audio = batch.audio if steps is None else batch.audio[:, steps.index]
        if self.standardise is not None and self.listen is not None:
            parts.append(batch.of_expressions(self.listen(self.standardise(audio))))
        if self.read is not None:
            valid = rearrange(batch.valid, "b l -> b l 1")
            total = torch.where(valid, self.read.standardise(batch.text), 0.0).sum(dim=1)
            sentence = self.read.project(nn.functional.layer_norm(total, total.shape[-1:]))
            parts.append(rearrange(sentence, "b c -> b 1 c").expand(-1, audio.shape[1], -1))
        return sum(parts[1:], start=parts[0])


def set_statistics(parts: Mapping[str, nn.Module], statistics: Statistics) -> None:
    """Hands the statistics to the inputs among `parts`."""
    for part in parts.values():
        if isinstance(part, MapInput | CueInput):
            part.set_statistics(statistics)

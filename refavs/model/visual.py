"""Turns stored visual maps into tokens for the fusion and maps for the decoder, once per distinct clip."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from refavs.data.maps import Maps
from refavs.errors import ConfigError
from refavs.model.attention import sine_positions
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes
from refavs.model.pixel_decoder import PixelDecoder, PixelDecoderSettings
from refavs.store.format.quantised import scaled
from refavs.store.pooled import pooled, pooled_name

Moments = Float[Tensor, "c"] | Float[np.ndarray, "c"]
Statistics = Mapping[str, tuple[Moments, Moments]]


class Standardisation(nn.Module):
    """Standardises each channel to mean 0 and standard deviation 1; the identity until the statistics are set."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def set(self, mean: Moments, std: Moments) -> None:
        """Sets the statistics of a stream. A constant channel becomes zero."""
        mean, std = torch.as_tensor(mean), torch.as_tensor(std)
        alive = std > 1e-6 * (1 + mean.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(alive, 1 / std.clamp(min=1e-12), 0.0))

    def forward(self, features: Float[Tensor, "*axes c"]) -> Float[Tensor, "*axes c"]:
        return (features.float() - self.mean) * self.scale

    def maps(
        self, stored: Shaped[Tensor, "u t c h w"], scale: Float[Tensor, "u c"] | None = None
    ) -> Float[Tensor, "u t c h w"]:
        """The same for maps, whose channel axis is not the last.

        Args:
            scale: the scales of quantised maps, one per clip and channel.
        """
        # The first operation also converts to float32: one pass over memory costs more than the arithmetic.
        if scale is None:
            mean, factor = (rearrange(part, "c -> c 1 1") for part in (self.mean, self.scale))
            return (stored - mean).mul_(factor)
        factor = rearrange(scale * self.scale, "u c -> u 1 c 1 1")
        return scaled(stored, factor).sub_(rearrange(self.mean * self.scale, "c -> c 1 1"))


class FeatureProjection(nn.Module):
    """Standardises a stored stream and projects it to the model's width."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.standardise = Standardisation(in_channels)
        self.project = nn.Linear(in_channels, channels)

    def forward(self, features: Float[Tensor, "*axes c_in"]) -> Float[Tensor, "*axes c"]:
        return self.project(self.standardise(features))


@dataclass
class VisualFeatures:
    """The visual features of a batch's distinct clips.

    Attributes:
        tokens: tokens of all frames, with positions added.
        mask_features: maps at stride 4 of the decoded frames.
        levels: maps at strides 32, 16 and 8 of the decoded frames, as far as the decoder reads them.
    """

    tokens: Float[Tensor, "u t n c"]
    mask_features: Float[Tensor, "u f cm h w"]
    levels: list[Float[Tensor, "u f _ _ _"]]


def _pixel_decoder(sizes: FeatureSizes, channels: int) -> PixelDecoder:
    """The pixel decoder of a head that reads the backbone's maps."""
    widths = tuple(size.channels for size in sizes.maps)
    return PixelDecoder(PixelDecoderSettings(in_channels=widths, channels=channels, mask_channels=channels))


class VisualInput(nn.Module):
    """Standardises, downsamples and flattens visual features; runs a pixel decoder on a backbone's maps.

    A visual token is the mean of the mask features (stride 4) over a square of `downsample` x `downsample` pixels
    without overlap. By default that is 8 x 8, i.e. 32 x 32 px of the frame and 12 x 12 tokens at 384 px. The paper
    (Sec. 5.1) says 8-fold without saying how, from 64 x 64, which is not a stride of Swin at its 384 px. Sine positions
    are added to the tokens; the paper mentions none, but without them attention cannot distinguish left from right.

    Args:
        as_stored: whether the decoders get the maps as stored, as pretrained ones expect. The tokens are always
            standardised.
    """

    def __init__(
        self, sizes: FeatureSizes, channels: int, downsample: int, num_levels: int, as_stored: bool = False
    ) -> None:
        super().__init__()
        self.downsample, self.num_levels = downsample, num_levels
        finest = sizes.maps[0]
        self.paths = {size.name: size.path for size in sizes.maps}
        standardised = () if as_stored else sizes.maps
        self.inputs = nn.ModuleDict({size.name: Standardisation(size.channels) for size in standardised})
        self.pixel_decoder = None if sizes.has_mask_features else _pixel_decoder(sizes, channels)
        if self.pixel_decoder is not None:
            self.mask_channels, self.level_channels = channels, (channels,) * len(LEVELS)
        else:
            self.mask_channels = finest.channels
            self.level_channels = tuple(sizes.map(name).channels for name in LEVELS[:num_levels])
        if finest.height % downsample or finest.width % downsample:
            raise ConfigError(
                f"visual_downsample={downsample} does not divide the {finest.height} x {finest.width} mask features; "
                "choose a common divisor, e.g. --set model.visual_downsample=1"
            )
        self.grid = (finest.height // downsample, finest.width // downsample)
        self.token_input = Standardisation(self.mask_channels)
        self.project = nn.Identity() if self.mask_channels == channels else nn.Linear(self.mask_channels, channels)

    @property
    def names(self) -> list[str]:
        """Names of the maps that this module reads, and last the pooled one that a batch may have in addition."""
        read = self.paths if self.pixel_decoder is not None else (MASKS, *LEVELS[: self.num_levels])
        return [*read, pooled_name(MASKS, self.downsample)]

    def set_statistics(self, statistics: Statistics) -> None:
        """Sets the statistics of the maps that this module reads.

        A pretrained pixel decoder starts with the statistics of the stored mask features, if the store has them.
        """
        for name in self.inputs:
            cast(Standardisation, self.inputs[name]).set(*statistics[self.paths[name]])
        path = self.paths.get(MASKS)
        if self.pixel_decoder is not None and not self.inputs:
            path = next((path for path in statistics if path.endswith(f"/{MASKS}")), None)
        if path is not None:
            self.token_input.set(*statistics[path])

    def forward(
        self, visual: Mapping[str, Float[Tensor, "u _ _ _ _"]], chosen: Int[Tensor, "f"] | None,
        once: Once | None = None, selection: str = "all",
    ) -> VisualFeatures:  # fmt: skip
        """Tokens of all frames and the maps of the chosen ones.

        Args:
            once: cache of frozen results, shared with the other heads that read the same maps and steps.
            selection: a name for the steps that `visual` has, different for each selection.
        """
        once = once or Once()
        visual = Maps.of(visual)
        decoded, maps = self._maps(visual, chosen, once)
        if decoded is None:
            tokens = once(("tokens", self.downsample, selection), lambda: self._tokens(visual))
        else:
            tokens = self._pooled(decoded, itertools.repeat(None))
        tokens = self.project(tokens)
        tokens = tokens + sine_positions(*self.grid, tokens.shape[-1], tokens.device)
        return VisualFeatures(
            tokens=tokens, mask_features=maps[MASKS], levels=[maps[name] for name in LEVELS[: self.num_levels]]
        )

    def _tokens(self, visual: Maps) -> Float[Tensor, "u t n c"]:
        """The tokens of the stored mask features."""
        stored = visual.stored.get(pooled_name(MASKS, self.downsample))
        if stored is not None:
            return self.token_input(rearrange(stored, "u t c h w -> u t (h w) c"))
        return self._pooled(visual.stored[MASKS], visual.scales.get(MASKS, itertools.repeat(None)))

    def _pooled(
        self, masks: Shaped[Tensor, "u t c h w"], scales: Iterable[Float[Tensor, "c"] | None]
    ) -> Float[Tensor, "u t n c"]:
        # One clip at a time, so that its maps in float32 stay in the processor's cache.
        tokens = [pooled(maps, scale, self.downsample) for maps, scale in zip(masks, scales, strict=False)]
        return self.token_input(rearrange(tokens, "u t c h w -> u t (h w) c"))

    def _maps(
        self, visual: Maps, chosen: Tensor | None, once: Once
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The mask features of all frames from an own pixel decoder, and the decoder's maps of the chosen frames."""
        needed = (MASKS, *LEVELS[: self.num_levels])

        def standardised(name: str) -> Tensor:
            return once((name, name in self.inputs), lambda: self._standardised(
                name, visual if chosen is None else visual.part([name], chosen)))  # fmt: skip

        if self.pixel_decoder is None:
            return None, {name: standardised(name) for name in needed}
        num_clips = next(iter(visual.stored.values())).shape[0]
        pyramid = {name: self._standardised(name, visual) for name in self.paths}
        pyramid = {name: rearrange(maps, "u t c h w -> (u t) c h w") for name, maps in pyramid.items()}
        decoded = {
            name: rearrange(maps, "(u t) c h w -> u t c h w", u=num_clips)
            for name, maps in self.pixel_decoder(pyramid).items()
        }
        return decoded[MASKS], {
            name: decoded[name] if chosen is None else decoded[name][:, chosen] for name in needed
        }

    def _standardised(self, name: str, maps: Maps) -> Tensor:
        if name not in self.inputs:
            return maps[name].float()
        return cast(Standardisation, self.inputs[name]).maps(maps.stored[name], maps.scales.get(name))

"""ReferFormer's pixel decoder: a feature pyramid whose every level reads the words and the whole clip."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.attention import Attention, sine_positions
from refavs.model.heads.parts.expression_input import Words, attended, read_words
from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from refavs.model.heads.parts.recomputed import PART_VALUES

PYRAMID_GROUPS = 8  # of the normalisation behind the pyramid's convolutions
REDUCTIONS = (8, 4, 2, 1)  # of the levels' sides in the self-attention, finest first


class VisionLanguageBlock(nn.Module):
    """The pixels of a clip attend to each other at a lower resolution, then to the words (post-norm)."""

    def __init__(
        self, channels: int, num_heads: int, feedforward_channels: int, dropout: float, reduction: int
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.self_attention, self.cross_attention = (Attention(channels, num_heads) for _ in range(2))
        self.feedforward = FeedForward(channels, feedforward_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(self, maps: Float[Tensor, "b t c h w"], words: Words) -> Float[Tensor, "b t c h w"]:
        num_frames, height, width = maps.shape[1], *maps.shape[-2:]
        attended_maps = clip_attention(self.self_attention, maps, self.reduction)
        places = sine_positions(height, width, maps.shape[2], maps.device)
        frames = (rearrange(one, "b t c h w -> (b t) (h w) c") for one in (maps, attended_maps))
        # As many frames at a time as stay near the processor.
        each = max(1, PART_VALUES // (height * width * self.feedforward.hidden_channels))
        parts = zip(*(one.split(each) for one in (*frames, *words.repeated(num_frames))), strict=True)
        read = [self._frames(pixels, seen, Words(*own), places) for pixels, seen, *own in parts]
        return rearrange(torch.cat(read), "(b t) (h w) c -> b t c h w", t=num_frames, h=height)

    def _frames(
        self, pixels: Float[Tensor, "s n c"], attended_pixels: Float[Tensor, "s n c"], words: Words,
        places: Float[Tensor, "n c"],
    ) -> Float[Tensor, "s n c"]:  # fmt: skip
        pixels = self.norms[0](pixels + self.dropout(attended_pixels))
        pixels = self.norms[1](pixels + self.dropout(read_words(self.cross_attention, pixels + places, words)))
        return self.norms[2](pixels + self.dropout(self.feedforward(pixels)))


def clip_attention(
    attention: Attention, maps: Float[Tensor, "b t c h w"], reduction: int
) -> Float[Tensor, "b t c h w"]:
    """Self-attention over the pixels of all frames, at sides that are `reduction` times smaller."""
    b, t, c, height, width = maps.shape
    size = (max(1, height // reduction), max(1, width // reduction))
    places = rearrange(sine_positions(height, width, c, maps.device), "(h w) c -> 1 c h w", h=height)
    frames = rearrange(maps, "b t c h w -> (b t) c h w")
    placed, values = (
        rearrange(nn.functional.interpolate(one, size=size, mode="nearest"), "(b t) c h w -> b (t h w) c", b=b)
        for one in (frames + places, frames)
    )
    read = attended(attention, placed, placed, values)
    read = rearrange(read, "b (t h w) c -> (b t) c h w", t=t, h=size[0])
    if size != (height, width):
        read = nn.functional.interpolate(read, size=(height, width), mode="bilinear", align_corners=False)
    return rearrange(read, "(b t) c h w -> b t c h w", b=b)


class PyramidConvolutions(nn.Module):
    """The convolutions of a feature pyramid: one into each level, one behind it, and the last to mask features.

    Args:
        in_channels: of each level, finest first.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), nn.GroupNorm(PYRAMID_GROUPS, channels))
            for width in in_channels
        )
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(PYRAMID_GROUPS, channels),
                nn.ReLU(),
            ) for _ in in_channels
        )  # fmt: skip
        self.masks = nn.Conv2d(channels, channels, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
        nn.init.zeros_(cast(Tensor, self.masks.bias))

    def joined(
        self, level: int, finer: Float[Tensor, "b t c h w"], coarser: Float[Tensor, "b t c _ _"] | None
    ) -> Float[Tensor, "b t c h w"]:
        """Adds the enlarged coarser levels to a level and smooths the sum."""
        frames = rearrange(finer, "b t c h w -> (b t) c h w")
        if coarser is not None:
            smaller = rearrange(coarser, "b t c h w -> (b t) c h w")
            frames = frames + nn.functional.interpolate(smaller, size=frames.shape[-2:], mode="nearest")
        return by_clip(self.smooth[level](frames), len(finer))


class LanguagePyramid(nn.Module):
    """Top-down: each level enters by a convolution, reads clip and words, and is added to the coarser ones.

    Args:
        in_channels: of each level, finest first.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_heads: int, feedforward_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.convolutions = PyramidConvolutions(in_channels, channels)
        self.blocks = nn.ModuleList(
            VisionLanguageBlock(channels, num_heads, feedforward_channels, dropout, reduction)
            for reduction in REDUCTIONS
        )

    def forward(
        self, levels: Sequence[Float[Tensor, "s _ _ _"]], words: Words
    ) -> Float[Tensor, "b t c h w"]:
        """Mask features.

        Args:
            levels: maps of all frames, clip after clip; finest first.
        """
        number, joined = len(words.tokens), None
        for level in reversed(range(len(levels))):
            entered = by_clip(self.convolutions.lateral[level](levels[level]), number)
            joined = self.convolutions.joined(level, self.blocks[level](entered, words), joined)
        assert joined is not None
        return by_clip(self.convolutions.masks(rearrange(joined, "b t c h w -> (b t) c h w")), number)


def by_clip(frames: Float[Tensor, "s c h w"], number: int) -> Float[Tensor, "b t c h w"]:
    """The maps of `number` clips."""
    return rearrange(frames, "(b t) c h w -> b t c h w", b=number)

"""Multi-scale deformable attention and the encoder made of it (Deformable DETR, arXiv 2010.04159), in plain PyTorch.

Written here so that the library does not load `transformers` to run a head.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.attention import sine_positions
from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from refavs.model.heads.parts.recomputed import in_parts

Shapes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """Each query reads a few places near its reference point in every level, and weighs them.

    The places are learned offsets in pixels of the level. At the start they lie on rays, one direction for each head,
    and all weigh the same.
    """

    def __init__(self, channels: int, num_heads: int, num_levels: int, num_points: int = 4) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.offsets = nn.Linear(channels, num_heads * num_levels * num_points * 2)
        self.weights = nn.Linear(channels, num_heads * num_levels * num_points)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self._initialise()

    def _initialise(self) -> None:
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        rays = torch.stack([angles.cos(), angles.sin()], dim=-1)
        rays = rays / rays.abs().amax(dim=-1, keepdim=True)
        steps = rearrange(torch.arange(1, self.num_points + 1), "p -> p 1")
        places = repeat(rays, "m xy -> m l p xy", l=self.num_levels, p=self.num_points) * steps
        with torch.no_grad():
            self.offsets.bias.copy_(rearrange(places, "m l p xy -> (m l p xy)"))
        for linear in (self.weights, self.value, self.out):
            nn.init.zeros_(linear.bias)
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
        for linear in (self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self, queries: Float[Tensor, "s q c"], reference: Float[Tensor, "#s q #levels d"],
        source: Float[Tensor, "s n c"], shapes: Shapes,
    ) -> Float[Tensor, "s q c"]:  # fmt: skip
        """Attention of `queries` to `source`.

        Args:
            reference: for each query and level a point (x, y) from 0 to 1, or a box (centre x, y, width, height); the
                offsets are then shares of the box.
            source: the pixels of all levels, level after level and row by row.
            shapes: height and width of each level.
        """
        axes = {"m": self.num_heads, "l": self.num_levels, "p": self.num_points}
        offsets = rearrange(self.offsets(queries), "s q (m l p xy) -> s q m l p xy", xy=2, **axes)
        weights = rearrange(self.weights(queries), "s q (m lp) -> s q m lp", m=self.num_heads).softmax(dim=-1)
        weights = rearrange(weights, "s q m (l p) -> s q m l p", l=self.num_levels)
        centre = rearrange(reference[..., :2], "s q l xy -> s q 1 l 1 xy")
        if reference.shape[-1] == 2:
            size = torch.tensor([(width, height) for height, width in shapes], device=queries.device)
            places = centre + offsets / rearrange(size, "l xy -> l 1 xy")
        else:
            box = rearrange(reference[..., 2:], "s q l xy -> s q 1 l 1 xy")
            places = centre + offsets / self.num_points * box / 2
        values = self.value(source).float()
        # The sampled values are by far the largest tensors of a layer.
        sampled = weights.numel() * (values.shape[-1] // self.num_heads)
        read = partial(_weighted_samples, shapes=shapes)
        return self.out(in_parts(read, values, places.float(), weights.float(), values=sampled))


def _weighted_samples(
    values: Float[Tensor, "s n c"], places: Float[Tensor, "s q m l p 2"], weights: Float[Tensor, "s q m l p"],
    shapes: Shapes,
) -> Float[Tensor, "s q c"]:  # fmt: skip
    """The weighted sum of what each head reads; places outside of a level are zero."""
    num_heads = weights.shape[2]
    total = None
    levels = values.split([height * width for height, width in shapes], dim=1)
    for level, (pixels, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        maps = rearrange(pixels, "s (h w) (m d) -> (s m) d h w", h=height, w=width, m=num_heads)
        # Points before queries: a product over the short axis of points would be many times slower.
        grid = rearrange(2 * places[:, :, :, level] - 1, "s q m p xy -> (s m) p q xy")
        of_points = rearrange(weights[:, :, :, level], "s q m p -> (s m) 1 p q").contiguous()
        weighted = _WeightedSum.apply(
            nn.functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False),
            of_points,
        )
        total = weighted if total is None else total + weighted
    assert total is not None
    return rearrange(total, "(s m) d q -> s q (m d)", m=num_heads)


class _WeightedSum(torch.autograd.Function):
    """The weighted sum over points; the gradient of the sampled values takes their place in memory."""

    @staticmethod
    def forward(ctx: Any, sampled: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(sampled, weights)
        return (sampled * weights).sum(dim=2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        sampled, weights = ctx.saved_tensors
        gradient = gradients[0].contiguous().unsqueeze(2)
        of_weights = (sampled * gradient).sum(dim=1, keepdim=True)
        return torch.mul(weights, gradient, out=torch.empty_like(sampled)), of_weights


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward part, each added and then normalised (post-norm)."""

    def __init__(
        self, channels: int, num_heads: int, feedforward_channels: int, num_levels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, num_heads, num_levels)
        self.attention_norm, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.feedforward = FeedForward(channels, feedforward_channels, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "s n c"], positions: Float[Tensor, "n c"], reference: Float[Tensor, "1 n 1 2"],
        shapes: Shapes,
    ) -> Float[Tensor, "s n c"]:  # fmt: skip
        attended = self.attention(tokens + positions, reference, tokens, shapes)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.norm(tokens + self.dropout(self.feedforward(tokens)))


class DeformableEncoder(nn.Module):
    """Exchanges what maps of several resolutions show."""

    def __init__(
        self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int, num_levels: int,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.level_embeddings = nn.Parameter(torch.randn(num_levels, channels))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(channels, num_heads, feedforward_channels, num_levels, dropout)
            for _ in range(num_layers)
        )

    def forward(self, maps: Sequence[Float[Tensor, "s c _ _"]]) -> Float[Tensor, "s n c"]:
        """The pixels of all maps, map after map and row by row."""
        shapes, device = shapes_of(maps), maps[0].device
        tokens = torch.cat([rearrange(one, "s c h w -> s (h w) c") for one in maps], dim=1)
        positions = torch.cat([
            sine_positions(*shape, tokens.shape[-1], device) + level
            for shape, level in zip(shapes, self.level_embeddings, strict=True)
        ])  # fmt: skip
        reference = pixel_centres(shapes, device)
        for layer in self.layers:
            tokens = layer(tokens, positions, reference, shapes)
        return tokens


def shapes_of(maps: Sequence[Float[Tensor, "s c _ _"]]) -> list[tuple[int, int]]:
    """Height and width of each map."""
    return [(one.shape[-2], one.shape[-1]) for one in maps]


def pixel_centres(shapes: Shapes, device: torch.device | None = None) -> Float[Tensor, "1 n 1 2"]:
    """The centre (x, y) of each pixel from 0 to 1, the same for all levels that are read."""
    centres = []
    for height, width in shapes:
        y, x = ((torch.arange(length, device=device) + 0.5) / length for length in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres.append(rearrange([x, y], "xy h w -> (h w) xy"))
    return rearrange(torch.cat(centres), "n xy -> 1 n 1 xy")


def unflattened(tokens: Float[Tensor, "s n c"], shapes: Shapes) -> list[Float[Tensor, "s c _ _"]]:
    """The maps whose pixels `tokens` are."""
    parts = tokens.split([height * width for height, width in shapes], dim=1)
    return [
        rearrange(part, "s (h w) c -> s c h w", h=height, w=width)
        for part, (height, width) in zip(parts, shapes, strict=True)
    ]

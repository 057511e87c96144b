"""Multi-scale deformable attention and the encoder made of it (Deformable DETR, arXiv 2010.04159), in plain PyTorch.

Written here so that the library does not load `transformers` to run a head.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.attention import sine_positions
from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from refavs.model.heads.parts.recomputed import at_once, fits

Shapes = Sequence[tuple[int, int]]
LARGE = 2**16  # values of a frame
_SAMPLING = (0, 0, False)  # bilinear, zeros outside, corners not aligned, as torch's operations take it


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
        each, keep = at_once(values, sampled), fits(sampled)
        read = _WeightedSamples.apply(values, places.float(), weights.float(), shapes, each, keep)
        return self.out(cast(Tensor, read))


class _WeightedSamples(torch.autograd.Function):
    """The weighted sum of what each head reads, some frames at a time; places outside of a level are zero.

    The sampled values are kept for the backward pass, or sampled once more.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Float[Tensor, "s n c"], places: Float[Tensor, "s q m l p 2"],
        weights: Float[Tensor, "s q m l p"], shapes: Shapes, each: int, keep: bool,
    ) -> Float[Tensor, "s q c"]:  # fmt: skip
        found, kept = [], []
        for rows, *own in zip(*(one.split(each) for one in (values, places, weights)), strict=True):
            total = None
            columns = rows.mT if len(rows) == 1 else _transposed(rows)
            for level in _levels(columns, *own, shapes=shapes):
                sampled = level.sampled()
                weighted = (sampled * level.weights).sum(dim=2)
                total = weighted if total is None else total.add_(weighted)
                kept += [sampled] if keep else []
            assert total is not None
            found.append(_transposed(total.view(len(rows), -1, places.shape[1])))
        ctx.save_for_backward(values, places, weights, *kept)
        ctx.shapes, ctx.each = shapes, each
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, places, weights, *samples = ctx.saved_tensors
        of_values, of_places, of_weights = [], torch.empty_like(places), torch.empty_like(weights)
        inputs = (values, places, weights, gradients[0], of_places, of_weights)
        kept = iter(samples)
        split = zip(*(one.split(ctx.each) for one in inputs), strict=True)
        for rows, *own, gradient, into_places, into_weights in split:
            columns = rearrange(_transposed(gradient), "s (m d) q -> (s m) d 1 q", m=weights.shape[2])
            of_maps = []
            # Columns beside each other: a processor scatters the gradients of pixels faster into them.
            for number, level in enumerate(_levels(_transposed(rows), *own, shapes=ctx.shapes)):
                sampled = next(kept) if samples else level.sampled()
                room = torch.empty_like(sampled) if samples else sampled
                of_points = torch.mul(sampled, columns, out=room).sum(dim=1)
                into_weights[:, :, :, number] = rearrange(of_points, "(s m) p q -> s q m p", s=len(gradient))
                of_map, of_grid = torch.ops.aten.grid_sampler_2d_backward(
                    torch.mul(level.weights, columns, out=room), level.maps, level.grid, *_SAMPLING, [True, True]
                )
                of_maps.append(of_map.view(len(gradient), values.shape[2], -1))
                into_places[:, :, :, number] = rearrange(2 * of_grid, "(s m) p q xy -> s q m p xy", s=len(gradient))
            of_values.append(_transposed(torch.cat(of_maps, dim=2)))
        return torch.cat(of_values), of_places, of_weights, None, None, None


class _Level(NamedTuple):
    """What is read of one level."""

    maps: Float[Tensor, "sm d h w"]
    grid: Float[Tensor, "sm p q 2"]
    weights: Float[Tensor, "sm 1 p q"]

    def sampled(self) -> Float[Tensor, "sm d p q"]:
        """The values of all places."""
        return torch.ops.aten.grid_sampler_2d(self.maps, self.grid, *_SAMPLING)


def _levels(
    columns: Float[Tensor, "s c n"], places: Float[Tensor, "s q m l p 2"], weights: Float[Tensor, "s q m l p"],
    shapes: Shapes,
) -> list[_Level]:  # fmt: skip
    levels = columns.split([height * width for height, width in shapes], dim=2)
    return [
        _Level(
            rearrange(pixels, "s (m d) (h w) -> (s m) d h w", m=weights.shape[2], h=shape[0]),
            # Points before queries: a sum over the short last axis of points would be many times slower.
            rearrange(2 * places[:, :, :, number] - 1, "s q m p xy -> (s m) p q xy"),
            rearrange(weights[:, :, :, number], "s q m p -> (s m) 1 p q").contiguous(),
        )
        for number, (pixels, shape) in enumerate(zip(levels, shapes, strict=True))
    ]


def _transposed(rows: Float[Tensor, "s n c"]) -> Float[Tensor, "s c n"]:
    """A copy; of a large frame a processor makes it faster over two axes than over three."""
    return torch.stack([frame.t().contiguous() for frame in rows]) if rows[0].numel() > LARGE else rows.mT.contiguous()


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

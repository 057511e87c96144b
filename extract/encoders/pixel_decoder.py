"""Mask2Former's pixel decoder for inference, the second half of the visual encoder: the same maps in half the time.

Deformable attention with `grid_sample` takes most of the decoder's time, because it stores every sampled value before
summing. Here a sampling point is four weighted rows of a table, and `embedding_bag` sums the rows as it reads them.
Positions and reference points depend only on the sizes of the maps and are cached.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from refavs.model.pixel_decoder import PixelDecoder, PixelDecoderSettings, build_pixel_decoder

__all__ = ["FrozenPixelDecoder", "PixelDecoder", "PixelDecoderSettings", "build_pixel_decoder"]

Sizes = tuple[tuple[int, int], ...]


class FrozenPixelDecoder(nn.Module):
    """A pixel decoder for inference in any floating-point type; sampling points stay in float32."""

    def __init__(self, decoder: PixelDecoder) -> None:
        super().__init__()
        inner = cast(Any, decoder.decoder)
        self.settings = decoder.settings
        self.projections = inner.input_projections
        self.layers = nn.ModuleList(_Layer(layer) for layer in inner.encoder.layers)
        self.laterals = nn.ModuleList(inner.lateral_convolutions)
        self.outputs = nn.ModuleList(inner.output_convolutions)
        self.mask_projection = inner.mask_projection
        self.level_embed = inner.level_embed
        self._position = inner.position_embedding
        self._known: dict[tuple[Sizes, torch.device, torch.dtype], _Places] = {}

    def forward(self, pyramid: Mapping[str, Float[Tensor, "f _ _ _"]]) -> dict[str, Float[Tensor, "f _ _ _"]]:
        """Runs the decoder on a backbone's maps, given finest first."""
        fine_to_coarse = list(pyramid.values())
        coarse = [project(maps) for project, maps in zip(self.projections, reversed(fine_to_coarse), strict=False)]
        sizes: Sizes = tuple((maps.shape[-2], maps.shape[-1]) for maps in coarse)
        places = self._places(sizes, coarse[0])
        tokens = torch.cat([rearrange(maps, "f c h w -> f (h w) c") for maps in coarse], 1)
        for layer in self.layers:
            tokens = layer(tokens, places)
        parts = tokens.split([height * width for height, width in sizes], 1)
        maps = [rearrange(part, "f (h w) c -> f c h w", h=size[0]) for part, size in zip(parts, sizes, strict=True)]
        finest, finer_maps = maps[-1], fine_to_coarse[-len(maps) - 1 :: -1]
        for lateral, output, finer in zip(self.laterals, self.outputs, finer_maps, strict=True):
            aside = lateral(finer)
            finest = functional.interpolate(finest, size=aside.shape[-2:], mode="bilinear", align_corners=False)
            finest = output(aside + finest)
        named = {f"s{stride}": found for stride, found in zip(reversed(self.settings.strides[1:]), maps, strict=True)}
        return {"mask_features": self.mask_projection(finest), **dict(reversed(named.items()))}

    def _places(self, sizes: Sizes, like: Tensor) -> "_Places":
        key = (sizes, like.device, like.dtype)
        if key not in self._known:
            embeddings = [
                rearrange(self._position(torch.Size((1, 1, *size)), like.device, torch.float32), "1 c h w -> (h w) c")
                + level.float()
                for size, level in zip(sizes, self.level_embed, strict=True)
            ]
            self._known[key] = _Places(sizes, self.settings.num_heads, torch.cat(embeddings).to(like.dtype))
        return self._known[key]


class _Places:
    """Data that depends only on the sizes of the maps: positions, and the offset of each map in the table of values.

    Every map has a border of zeros in the table, so that points outside need no check. A row of the table is one head's
    value at one pixel.

    Attributes:
        position: added to the tokens from which sampling points are computed.
        first_x: x of the sampling point without its offset, in pixels of the map sampled; likewise `first_y`.
    """

    def __init__(self, sizes: Sizes, num_heads: int, position: Float[Tensor, "n c"]) -> None:
        device = position.device
        self.sizes, self.position, self.num_heads = sizes, position, num_heads
        centres = []
        for height, width in sizes:
            y, x = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
            centres.append(torch.stack([x.flatten(), y.flatten()]))
        x, y = (rearrange(part, "n -> n 1") for part in torch.cat(centres, 1))
        heights, widths = (torch.tensor(part, dtype=torch.float64) for part in zip(*sizes, strict=True))
        self.first_x, self.first_y = self._spread(x * widths - 0.5, device), self._spread(y * heights - 0.5, device)
        self.width, self.height = self._spread(widths, device), self._spread(heights, device)
        # Offset of the map's first row and column, after its border.
        starts = [0]
        for height, width in sizes:
            starts.append(starts[-1] + (height + 2) * (width + 2))
        self.rows_per_frame = starts.pop()
        inside = torch.tensor(starts) + widths + 3
        heads = repeat(torch.arange(num_heads), "head -> (head level p)", level=len(sizes), p=_POINTS)
        self.base = (self._spread(inside, device).int() * num_heads + heads.to(device)).int()

    def _spread(self, values: Tensor, device: torch.device) -> Tensor:
        spread = repeat(values, "... level -> ... (head level p)", head=self.num_heads, p=_POINTS)
        return spread.float().contiguous().to(device)

    def table(self, values: Float[Tensor, "f n c"]) -> Float[Tensor, "rows d"]:
        """Values with a border of zeros around every map, and enough zeros after the last for points beyond it."""
        width = max(width for _, width in self.sizes) + 3
        num_rows = len(values) * self.rows_per_frame + width
        table = values.new_zeros(num_rows, values.shape[-1])
        framed = rearrange(table[:-width], "(f n) c -> f n c", f=len(values))
        start = 0
        for part, (height, wide) in zip(values.split([h * w for h, w in self.sizes], 1), self.sizes, strict=True):
            stop = start + (height + 2) * (wide + 2)
            inner = rearrange(framed[:, start:stop], "f (h w) c -> f h w c", w=wide + 2)[:, 1:-1, 1:-1]
            inner.copy_(rearrange(part, "f (h w) c -> f h w c", w=wide))
            start = stop
        return rearrange(table, "row (head d) -> (row head) d", head=self.num_heads)


_POINTS = 4


def _centres(size: int) -> Float[Tensor, " n"]:
    return (torch.arange(size, dtype=torch.float64) + 0.5) / size


class _Layer(nn.Module):
    """One layer of the decoder's encoder: deformable attention, then two linear layers."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self.num_heads, self.num_levels = attention.n_heads, attention.n_levels
        self.points = _points_linear(attention)
        self.value, self.output = attention.value_proj, attention.output_proj
        self.norm, self.last_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.fc1, self.fc2 = layer.fc1, layer.fc2

    def forward(self, tokens: Float[Tensor, "f n c"], places: _Places) -> Float[Tensor, "f n c"]:
        points = self.points(tokens + places.position).float()
        x, y, logits = points.chunk(3, -1)
        weights = rearrange(logits, "f n (head p) -> f n head p", head=self.num_heads).softmax(-1)
        weights = rearrange(weights, "f n head p -> f n (head p)")
        found = _attend(places, self.value(tokens), x + places.first_x, y + places.first_y, weights)
        tokens = self.norm(tokens + self.output(found))
        return self.last_norm(tokens + self.fc2(functional.relu(self.fc1(tokens))))


def _points_linear(attention: Any) -> nn.Linear:
    """A linear layer that outputs x, y and weight of every point, in this order."""
    if attention.n_points != _POINTS:
        raise ValueError(f"the attention samples {attention.n_points} points, this code {_POINTS}")
    weight = rearrange(attention.sampling_offsets.weight, "(point xy) c -> xy point c", xy=2)
    bias = rearrange(attention.sampling_offsets.bias, "(point xy) -> xy point", xy=2)
    joined = nn.Linear(attention.d_model, 3 * weight.shape[1])
    with torch.no_grad():
        joined.weight.copy_(torch.cat([*weight, attention.attention_weights.weight]))
        joined.bias.copy_(torch.cat([*bias, attention.attention_weights.bias]))
    return joined.requires_grad_(False)


def _attend(
    places: _Places, values: Float[Tensor, "f n c"], x: Float[Tensor, "f n p"], y: Float[Tensor, "f n p"],
    weights: Float[Tensor, "f n p"],
) -> Float[Tensor, "f n c"]:  # fmt: skip
    """Weighted sum of bilinear samples at the points (x, y), in pixels; zero outside of the maps."""
    table = places.table(values)
    # Points beyond the border read the border's zeros.
    x, y = (torch.minimum(part.clamp_(min=-1), size) for part, size in ((x, places.width), (y, places.height)))
    left, up = x.floor(), y.floor()
    row = up.mul(places.width + 2).add_(left).int().mul_(places.num_heads).add_(places.base)
    frames = torch.arange(len(values), device=row.device, dtype=torch.int32) * places.rows_per_frame * places.num_heads
    row = row.add_(rearrange(frames, "f -> f 1 1"))
    x, y = x.sub_(left), y.sub_(up)
    bottom = weights * y
    top = weights - bottom
    below = repeat((places.width + 2).int() * places.num_heads, "p -> 1 1 p")
    total = torch.zeros_like(values)
    for rows, both in ((row, top), (row + below, bottom)):
        right = both * x
        total += _sum_rows(table, rows, both - right, places.num_heads)
        total += _sum_rows(table[places.num_heads :], rows, right, places.num_heads)
    return total


def _sum_rows(
    table: Float[Tensor, "rows d"], row: Int[Tensor, "f n p"], weights: Float[Tensor, "f n p"], num_heads: int
) -> Float[Tensor, "f n c"]:
    bags, each = (rearrange(part, "f n (head p) -> (f n head) p", head=num_heads) for part in (row, weights))
    found = functional.embedding_bag(bags, table, per_sample_weights=each.to(table.dtype), mode="sum")
    return rearrange(found, "(f n head) d -> f n (head d)", n=row.shape[1], head=num_heads)

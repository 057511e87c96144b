"""Attention, the transformer layers of the fusion, and sine positions."""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

POSITION_TEMPERATURE = 10000.0
FUSED_KEYS = 128  # with this many keys or more, a CPU uses the fused attention


def attend(
    query: Float[Tensor, "#s m q d"],
    key: Float[Tensor, "s m k d"],
    value: Float[Tensor, "s m k d"],
    bias: Float[Tensor, "#s #m #q k"] | None = None,
) -> Float[Tensor, "s m q d"]:
    """Scaled dot-product attention of m heads; `bias` is added to the scores (-inf where a key must not be seen).

    On a CPU the fused kernel is faster for many keys in float32 (1.8x forward and backward at 2,304 keys). For few keys
    or in bfloat16 it is up to ten times slower than explicit matrix products.
    """
    if query.device.type != "cpu" or (query.dtype == torch.float32 and key.shape[-2] >= FUSED_KEYS):
        query = query.expand(len(key), -1, -1, -1)
        bias = None if bias is None else bias.to(query.dtype)
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-2, -1))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(dim=-1), value)


def hidden_bias(seen: Bool[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Attention bias that hides keys: 0 where `seen` is True, -inf where it is False."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -math.inf)


class Attention(nn.Module):
    """Multi-head attention with separate projections, so that shared keys are projected once."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.project = nn.Linear(channels, 3 * channels)  # rows: queries, keys, values
        self.out = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.out.bias)

    def parts(self) -> list[tuple[Float[Tensor, "c c"], Float[Tensor, "c"]]]:
        """Weight and bias of queries, keys and values; split once, so that their gradients are joined once."""
        return list(zip(self.project.weight.chunk(3), self.project.bias.chunk(3), strict=True))

    def heads(
        self, inputs: Float[Tensor, "s k c"], part: tuple[Float[Tensor, "c c"], Float[Tensor, "c"]],
        offset: Float[Tensor, "c"] | None = None,
    ) -> Float[Tensor, "s m k d"]:  # fmt: skip
        """Projects `inputs`, each with `offset` added, by one of the `parts` and splits the result into heads."""
        weight, bias = part
        if offset is not None:
            bias = bias + weight @ offset
        return self.split(nn.functional.linear(inputs, weight, bias))

    def split(self, inputs: Float[Tensor, "s k c"]) -> Float[Tensor, "s m k d"]:
        return rearrange(inputs, "s k (m d) -> s m k d", m=self.num_heads)

    def join(self, attended: Float[Tensor, "s m k d"]) -> Float[Tensor, "s k c"]:
        return self.out(rearrange(attended, "s m k d -> s k (m d)"))

    def forward(
        self,
        inputs: Float[Tensor, "#s q c"],
        source: Float[Tensor, "s k c"],
        bias: Float[Tensor, "#s #m #q k"] | None = None,
    ) -> Float[Tensor, "s q c"]:
        """Attention of `inputs` to `source`."""
        query, key, value = self.parts()
        return self.join(attend(self.heads(inputs, query), self.heads(source, key), self.heads(source, value), bias))


def feedforward(channels: int, hidden_channels: int, dropout: float = 0.0) -> nn.Sequential:
    """Two linear layers with a ReLU between them."""
    return nn.Sequential(
        nn.Linear(channels, hidden_channels), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden_channels, channels)
    )


class SelfAttentionLayer(nn.Module):
    """Self-attention and a feed-forward block, both residual and pre-norm.

    `forward` runs `project`, attention and `finish`. Callers whose tokens are shared call these steps themselves.
    """

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, num_heads)
        self.feedforward_norm = nn.LayerNorm(channels)
        self.feedforward = feedforward(channels, feedforward_channels, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Float[Tensor, "s k c"], bias: Float[Tensor, "#s 1 1 k"] | None = None
    ) -> Float[Tensor, "s k c"]:
        query, key, value = (self.attention.split(part) for part in self.project(tokens).chunk(3, dim=-1))
        return self.finish(tokens, attend(query, key, value, bias))

    def project(self, tokens: Float[Tensor, "*s k c"]) -> Float[Tensor, "*s k c3"]:
        """Queries, keys and values of the tokens, one after the other in the last axis."""
        return self.attention.project(self.norm(tokens))

    def finish(self, tokens: Float[Tensor, "s k c"], attended: Float[Tensor, "s m k d"]) -> Float[Tensor, "s k c"]:
        """Adds the attention output, then applies the feed-forward block."""
        tokens = tokens + self.dropout(self.attention.join(attended))
        return tokens + self.dropout(self.feedforward(self.feedforward_norm(tokens)))


class CrossAttentionLayer(nn.Module):
    """Queries attend to a source, followed by a feed-forward block (pre-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.source_norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, num_heads)
        self.feedforward_norm = nn.LayerNorm(channels)
        self.feedforward = feedforward(channels, feedforward_channels, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "#s q c"],
        source: Float[Tensor, "s k c"],
        bias: Float[Tensor, "#s 1 1 k"] | None = None,
    ) -> Float[Tensor, "s q c"]:
        """Attends to `source`. Queries that are the same for every source need not be repeated."""
        attended = self.attention(self.norm(queries), self.source_norm(source), bias)
        queries = queries + self.dropout(attended)
        return queries + self.dropout(self.feedforward(self.feedforward_norm(queries)))


def sine_positions(
    height: int, width: int, channels: int, device: torch.device | None = None
) -> Float[Tensor, "n c"]:
    """Sine position embedding of each pixel, in row order: the first half of the channels encodes y, the rest x.

    The values equal those of Mask2Former's position embedding, with which its decoder was trained.
    """
    half = channels // 2
    steps = torch.arange(half, device=device) // 2 * 2 / half
    periods = POSITION_TEMPERATURE**steps
    axes = []
    for length in (height, width):
        place = torch.arange(1, length + 1, device=device) / (length + 1e-6) * 2 * math.pi
        angle = rearrange(place, "p -> p 1") / periods
        waves = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1)
        axes.append(rearrange(waves, "p i two -> p (i two)"))
    y = axes[0].repeat_interleave(width, dim=0)
    x = axes[1].repeat(height, 1)
    return torch.cat([y, x], dim=-1)

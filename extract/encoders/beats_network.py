"""The network of BEATs (arXiv 2212.09058): a transformer with gated relative positions.

The names of the parameters are those of the authors' checkpoints.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

GATE_CHANNELS = 8


@dataclass(frozen=True, kw_only=True)
class BeatsConfig:
    """Sizes, under the names of the checkpoint's `cfg`; the defaults are those of the published networks."""

    input_patch_size: int = 16
    embed_dim: int = 512
    conv_bias: bool = False
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    deep_norm: bool = True


class Beats(nn.Module):
    """Spectrograms to the tokens of their patches, along the bands first."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        patch, width = config.input_patch_size, config.embed_dim
        self.patch_embedding = nn.Conv2d(1, width, patch, stride=patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(width)
        self.post_extract_proj = nn.Linear(width, config.encoder_embed_dim)
        self.encoder = _Encoder(config)

    def forward(self, mels: Float[Tensor, "b frame band"]) -> Float[Tensor, "b n c"]:
        """Runs the network."""
        patches = rearrange(self.patch_embedding(rearrange(mels, "b frame band -> b 1 frame band")),
                            "b c column row -> b (column row) c")  # fmt: skip
        return self.encoder(self.post_extract_proj(self.layer_norm(patches)))


class _Encoder(nn.Module):
    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        convolution = nn.Conv1d(
            width, width, config.conv_pos, padding=config.conv_pos // 2, groups=config.conv_pos_groups
        )
        # The authors' normalisation of weights keeps a length for each place of the kernel.
        self.pos_conv = nn.Sequential(nn.utils.parametrizations.weight_norm(convolution, dim=2))
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        # One table for all layers: checkpoints repeat it under the name of each.
        self.relative_attention_bias = nn.Embedding(config.num_buckets, config.encoder_attention_heads)
        self.num_buckets, self.max_distance = config.num_buckets, config.max_distance

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        length = tokens.shape[1]
        placed = self.pos_conv(rearrange(tokens, "b n c -> b c n"))[..., :length]  # an even kernel gives one too many
        tokens = self.layer_norm(tokens + rearrange(functional.gelu(placed), "b c n -> b n c"))
        places = torch.arange(length, device=tokens.device)
        buckets = distance_buckets(places[None] - places[:, None], self.num_buckets, self.max_distance)
        bias = rearrange(self.relative_attention_bias(buckets), "query key head -> head query key")
        for layer in self.layers:
            tokens = layer(tokens, bias)
        return tokens


def distance_buckets(
    distances: Int[Tensor, "query key"], num_buckets: int, max_distance: int
) -> Int[Tensor, "query key"]:
    """The bucket of each distance between a key and a query: half of them for keys behind the query; near distances
    have one each, farther ones share them by their logarithm."""
    half = num_buckets // 2
    exact = half // 2
    far = distances.abs()
    steps = torch.log(far.float().clamp(min=1) / exact) / math.log(max_distance / exact) * (half - exact)
    shared = (exact + steps.long()).clamp(max=half - 1)
    return (distances > 0).long() * half + torch.where(far < exact, far, shared)


class _Layer(nn.Module):
    """Attention, then feed-forward, each normalised after the sum; DeepNorm scales the skip connections."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.self_attn = _Attention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.past = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0

    def forward(self, tokens: Float[Tensor, "b n c"], bias: Float[Tensor, "head n n"]) -> Float[Tensor, "b n c"]:
        tokens = self.self_attn_layer_norm(self.past * tokens + self.self_attn(tokens, bias))
        return self.final_layer_norm(self.past * tokens + self.fc2(functional.gelu(self.fc1(tokens))))


class _Attention(nn.Module):
    """Attention in which each query scales the bias of its distances by a gate of its own."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.grep_linear = nn.Linear(width // num_heads, GATE_CHANNELS)
        self.grep_a = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, tokens: Float[Tensor, "b n c"], bias: Float[Tensor, "head n n"]) -> Float[Tensor, "b n c"]:
        query, key, value = (rearrange(part(tokens), "b n (head c) -> b head n c", head=self.num_heads)
                             for part in (self.q_proj, self.k_proj, self.v_proj))  # fmt: skip
        gates = rearrange(self.grep_linear(query), "b head n (gate part) -> gate part b head n 1", gate=2)
        outer, inner = gates.sum(1).sigmoid()
        mask = (outer * (inner * self.grep_a - 1) + 2) * bias
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(rearrange(heads, "b head n c -> b n (head c)"))

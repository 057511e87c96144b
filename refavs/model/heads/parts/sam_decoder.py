"""SAM's mask decoder (arXiv 2304.02643): a prompt and a map of the image read each other, and one mask comes out.

The names of the parts are those of SAM's checkpoints in transformers' layout.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.errors import WeightsError
from refavs.model.attention import attend
from refavs.model.pretrained import WeightsFolder, below, mismatch

NUM_MASKS = 4  # the first is the one for a prompt that names one object
TINY = 1e-6
DECODER, NO_MASK = "mask_decoder.", "prompt_encoder.no_mask_embed.weight"
FOURIER = "shared_image_embedding.positional_embedding"


class SamWeightsFolder(WeightsFolder):
    """A checkpoint of SAM in the folder that is named as on the hub."""

    @property
    def repository(self) -> str:
        return f"facebook/{self.folder.name}"


class SamDecoder(nn.Module):
    """One mask, four times as high and wide as the map.

    The other masks and the estimate of their quality are kept, so that SAM's weights fit, but they are not computed and
    not trained.
    """

    def __init__(self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int) -> None:
        super().__init__()
        self.iou_token, self.mask_tokens = nn.Embedding(1, channels), nn.Embedding(NUM_MASKS, channels)
        self.transformer = TwoWayTransformer(channels, num_heads, num_layers, feedforward_channels)
        self.upscale_conv1 = nn.ConvTranspose2d(channels, channels // 4, 2, stride=2)
        self.upscale_conv2 = nn.ConvTranspose2d(channels // 4, channels // 8, 2, stride=2)
        self.upscale_layer_norm = nn.LayerNorm(channels // 4, eps=TINY)
        self.output_hypernetworks_mlps = nn.ModuleList(
            ThreeLayers(channels, channels // 8) for _ in range(NUM_MASKS)
        )
        self.iou_prediction_head = ThreeLayers(channels, NUM_MASKS)
        self.no_mask = nn.Parameter(torch.randn(channels))
        self.fourier: Tensor
        self.register_buffer("fourier", torch.randn(2, channels // 2))
        for unused in (*self.output_hypernetworks_mlps[1:], self.iou_prediction_head):
            unused.requires_grad_(False)

    def forward(
        self, image: Float[Tensor, "s c h w"], prompt: Float[Tensor, "s p c"], adapters: Sequence[nn.Module] = ()
    ) -> Float[Tensor, "s _ _"]:
        """Mask logits.

        Args:
            adapters: for each layer, what is added behind the feed-forward part of the tokens.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompt), -1, -1), prompt.to(own.dtype)], dim=1)
        height, width = image.shape[-2:]
        pixels = rearrange(image, "s c h w -> s (h w) c") + self.no_mask
        tokens, pixels = self.transformer(tokens, pixels, self.positions(height, width), adapters)
        enlarged = self.upscale_conv1(rearrange(pixels, "s (h w) c -> s c h w", h=height))
        enlarged = self.upscale_layer_norm(rearrange(enlarged, "s c h w -> s h w c"))
        enlarged = nn.functional.gelu(rearrange(enlarged, "s h w c -> s c h w"))
        enlarged = nn.functional.gelu(self.upscale_conv2(enlarged))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("sc,schw->shw", weights, enlarged)

    def positions(self, height: int, width: int) -> Float[Tensor, "n c"]:
        """Sine and cosine of random projections of the place of each pixel."""
        y, x = ((torch.arange(length, device=self.fourier.device) + 0.5) / length for length in (height, width))
        y, x = torch.meshgrid(2 * y - 1, 2 * x - 1, indexing="ij")
        angles = 2 * math.pi * (rearrange([x, y], "xy h w -> (h w) xy") @ self.fourier)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def load(self, folder: Path) -> None:
        """Loads the decoder of SAM.

        Raises:
            WeightsError: there is no such checkpoint, it is damaged, or of another size.
        """
        checkpoint = SamWeightsFolder(folder)
        state = checkpoint.tensors(DECODER, NO_MASK, FOURIER)
        found = below(state, DECODER)
        found |= {"fourier": state[FOURIER]} if FOURIER in state else {}
        found |= {"no_mask": state[NO_MASK][0]} if NO_MASK in state else {}
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        if wrong := mismatch(expected, {name: tuple(value.shape) for name, value in found.items()}):
            raise WeightsError(f"the mask decoder of {checkpoint.path} {wrong}; take {checkpoint.repository} with the "
                               "sizes that the options have by default, or --set model.decoder_weights=random")
        self.load_state_dict(found)


class TwoWayTransformer(nn.Module):
    """Layers in which tokens and pixels read each other, and a last look of the tokens at the pixels."""

    def __init__(self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(channels, num_heads, feedforward_channels, first=number == 0) for number in range(num_layers)
        )
        self.final_attn_token_to_image = NarrowAttention(channels, channels // 2, num_heads)
        self.layer_norm_final_attn = nn.LayerNorm(channels)

    def forward(
        self, tokens: Float[Tensor, "s k c"], pixels: Float[Tensor, "s n c"], positions: Float[Tensor, "n c"],
        adapters: Sequence[nn.Module],
    ) -> tuple[Float[Tensor, "s k c"], Float[Tensor, "s n c"]]:  # fmt: skip
        at_start = tokens
        for number, layer in enumerate(self.layers):
            tokens, pixels = layer(tokens, pixels, at_start, positions, adapters[number] if adapters else None)
        read = self.final_attn_token_to_image(tokens + at_start, pixels + positions, pixels)
        return self.layer_norm_final_attn(tokens + read), pixels


class TwoWayLayer(nn.Module):
    """Tokens see each other, then the pixels; pixels see the tokens (post-norm).

    Args:
        first: the tokens see each other without themselves as positions, and what they see replaces them.
    """

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = NarrowAttention(channels, channels, num_heads)
        self.cross_attn_token_to_image = NarrowAttention(channels, channels // 2, num_heads)
        self.cross_attn_image_to_token = NarrowAttention(channels, channels // 2, num_heads)
        self.mlp = TwoLayers(channels, feedforward_channels)
        self.layer_norm1, self.layer_norm2, self.layer_norm3, self.layer_norm4 = (
            nn.LayerNorm(channels, eps=TINY) for _ in range(4)
        )

    def forward(
        self, tokens: Float[Tensor, "s k c"], pixels: Float[Tensor, "s n c"], at_start: Float[Tensor, "s k c"],
        positions: Float[Tensor, "n c"], adapter: nn.Module | None,
    ) -> tuple[Float[Tensor, "s k c"], Float[Tensor, "s n c"]]:  # fmt: skip
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            tokens = tokens + self.self_attn(tokens + at_start, tokens + at_start, tokens)
        tokens, placed = self.layer_norm1(tokens), pixels + positions
        read = self.cross_attn_token_to_image(tokens + at_start, placed, pixels)
        tokens = self.layer_norm2(tokens + read)
        hidden = self.mlp(tokens)
        tokens = self.layer_norm3(tokens + (hidden if adapter is None else hidden + adapter(hidden)))
        read = self.cross_attn_image_to_token(placed, tokens + at_start, tokens)
        return tokens, self.layer_norm4(pixels + read)


class NarrowAttention(nn.Module):
    """Multi-head attention with projections of a width of their own."""

    def __init__(self, channels: int, inner_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, inner_channels) for _ in range(3))
        self.out_proj = nn.Linear(inner_channels, channels)

    def forward(
        self, query: Float[Tensor, "s q c"], key: Float[Tensor, "s k c"], value: Float[Tensor, "s k c"]
    ) -> Float[Tensor, "s q c"]:
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = (rearrange(part, "s k (m d) -> s m k d", m=self.num_heads) for part in parts)
        return self.out_proj(rearrange(attend(*heads), "s m q d -> s q (m d)"))


class TwoLayers(nn.Module):
    """A feed-forward part."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(channels, hidden_channels), nn.Linear(hidden_channels, channels)

    def forward(self, tokens: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
        return self.lin2(self.lin1(tokens).relu())


class ThreeLayers(nn.Module):
    """A perceptron from a token to weights or numbers."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, out_channels)
        self.layers = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Float[Tensor, "s c"]) -> Float[Tensor, "s _"]:
        return self.proj_out(self.layers[0](self.proj_in(tokens).relu()).relu())

"""The mask decoders of SAM (arXiv 2304.02643) and SAM 2 (arXiv 2408.00714), which turn a prompt into one mask.

Prompt and image map attend to each other. The parts have the names of SAM's checkpoints in transformers' layout.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.errors import StoreError, WeightsError
from refavs.model.attention import attend
from refavs.model.pretrained import WeightsFolder, below, mismatch

NUM_MASKS = 4  # the first is the one for a prompt that names one object
TINY = 1e-6
DECODER, NO_MASK = "mask_decoder.", "prompt_encoder.no_mask_embed.weight"
FOURIER, NO_MEMORY = "shared_image_embedding.positional_embedding", "no_memory_embedding"
# SAM 2 renamed some parts. Its encoder has applied the convolutions to the finer maps before they are stored.
SAM2_RENAMES = (
    (r"\.o_proj\.", ".out_proj."), (r"\.mlp\.proj_in\.", ".mlp.lin1."), (r"\.mlp\.proj_out\.", ".mlp.lin2."),
)  # fmt: skip
SAM2_APPLIED = ("conv_s0.", "conv_s1.")


class SamWeightsFolder(WeightsFolder):
    """A checkpoint of SAM in the folder that is named as on the hub."""

    @property
    def repository(self) -> str:
        return f"facebook/{self.folder.name}"


def require_same_sam(folder: Path, stream: str, encoders: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that the store's maps come from the SAM whose decoder is in `folder`.

    Args:
        stream: id of the stream with the maps.
        encoders: fingerprints of the store's encoders.

    Raises:
        StoreError: they come from another encoder.
    """
    found = encoders.get(stream, {}).get("name")
    if found != folder.name:
        raise StoreError(
            f"the store's maps are of {found or stream}, the decoder is that of {folder.name}; extract {folder.name}, "
            "or take --set model.decoder_weights=random"
        )


class SamDecoder(nn.Module):
    """Predicts one mask, four times as high and wide as the map.

    The other masks and the estimate of their quality are kept, so that SAM's weights fit, but they are not computed and
    not trained.
    """

    norm_eps: ClassVar[float] = TINY
    """Epsilon of the normalisations in the layers of the transformer."""

    def __init__(self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int) -> None:
        super().__init__()
        self.iou_token, self.mask_tokens = nn.Embedding(1, channels), nn.Embedding(NUM_MASKS, channels)
        self.transformer = TwoWayTransformer(channels, num_heads, num_layers, feedforward_channels, self.norm_eps)
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
        return self._read(torch.cat([self.iou_token.weight, self.mask_tokens.weight]), image, prompt, adapters)[1]

    def _read(
        self, own: Float[Tensor, "k c"], image: Float[Tensor, "s c h w"], prompt: Float[Tensor, "s p c"],
        adapters: Sequence[nn.Module] = (), finer: Sequence[Float[Tensor, "s n *blocks"]] = (),
    ) -> tuple[Float[Tensor, "s k_p c"], Float[Tensor, "s _ _"]]:  # fmt: skip
        """All tokens after the transformer, and mask logits.

        Args:
            own: the decoder's tokens; those of the masks come last.
            finer: what is added to the maps on the way up, the coarser one first.
        """
        tokens = torch.cat([own.expand(len(prompt), -1, -1), prompt.to(own.dtype)], dim=1)
        height, width = image.shape[-2:]
        pixels = rearrange(image, "s c h w -> s (h w) c") + self.no_mask
        tokens, pixels = self.transformer(tokens, pixels, self.positions(height, width), adapters)
        # A pixel becomes a block of 2 x 2, and each of those again; they stay side by side, so that convolutions are
        # products and nothing is moved until there are masks.
        enlarged = doubled(self.upscale_conv1, pixels)
        enlarged = enlarged + finer[0] if finer else enlarged
        enlarged = doubled(self.upscale_conv2, nn.functional.gelu(self.upscale_layer_norm(enlarged)))
        enlarged = nn.functional.gelu(enlarged + finer[1] if finer else enlarged)
        weights = self.output_hypernetworks_mlps[0](tokens[:, len(own) - NUM_MASKS])
        masks = rearrange(enlarged, "s n j i c -> s (n j i) c") @ rearrange(weights, "s c -> s c 1")
        places = "s (h w y x v u) 1 -> s (h y v) (w x u)"
        return tokens, rearrange(masks, places, h=height, w=width, y=2, x=2, v=2, u=2)

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
        found = self._own(checkpoint.tensors(DECODER, NO_MASK, FOURIER, NO_MEMORY))
        expected = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        if wrong := mismatch(expected, {name: tuple(value.shape) for name, value in found.items()}):
            raise WeightsError(f"the mask decoder of {checkpoint.path} {wrong}; take {checkpoint.repository} with the "
                               "sizes that the options have by default, or --set model.decoder_weights=random")
        self.load_state_dict(found)

    def _own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a checkpoint by the names of this module."""
        found = below(state, DECODER)
        found |= {"fourier": state[FOURIER]} if FOURIER in state else {}
        return found | ({"no_mask": state[NO_MASK][0]} if NO_MASK in state else {})


class Sam2Decoder(SamDecoder):
    """SAM 2's decoder: two finer maps enter on the way up, and a token says whether the object is in the frame.

    Differs: where the mask is unstable, SAM 2 takes another one at inference, which this decoder does not compute.
    """

    norm_eps: ClassVar[float] = 1e-5

    def __init__(self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int) -> None:
        super().__init__(channels, num_heads, num_layers, feedforward_channels)
        self.obj_score_token = nn.Embedding(1, channels)
        self.pred_obj_score_head = ThreeLayers(channels, 1)

    def segment(
        self, image: Float[Tensor, "s c h w"], finer: Sequence[Float[Tensor, "s n *blocks"]],
        prompt: Float[Tensor, "s p c"],
    ) -> tuple[Float[Tensor, "s _ _"], Float[Tensor, "s"]]:  # fmt: skip
        """Mask logits, and a logit that is positive where the frame shows the object.

        Args:
            finer: maps of a quarter and an eighth of the channels, at twice and four times the height and width,
                `in_blocks`.
        """
        own = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens, masks = self._read(own, image, prompt, finer=finer)
        return masks, rearrange(self.pred_obj_score_head(tokens[:, 0]), "s 1 -> s")

    def _own(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for name, value in super()._own(state).items():
            for pattern, replacement in SAM2_RENAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = value
        if "no_mask" in renamed and NO_MEMORY in state:  # both are added to every pixel of the map
            renamed["no_mask"] = renamed["no_mask"] + state[NO_MEMORY][0, 0]
        return {name: value for name, value in renamed.items() if not name.startswith(SAM2_APPLIED)}


def doubled(convolution: nn.ConvTranspose2d, pixels: Float[Tensor, "*s c"]) -> Float[Tensor, "*s 4 c2"]:
    """The four pixels, row by row, that a transposed convolution of 2 x 2 without overlap makes of each."""
    weight = rearrange(convolution.weight, "c d y x -> (y x d) c")
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return nn.functional.linear(pixels, weight, bias).unflatten(-1, (4, -1))


def in_blocks(maps: Float[Tensor, "s c _ _"], scale: int) -> Float[Tensor, "s n *blocks c"]:
    """The pixels of a map `scale` (1, 2 or 4) times as high and wide as the image map, as `doubled` orders them."""
    if scale == 1:
        return rearrange(maps, "s c h w -> s (h w) c")
    if scale == 2:
        return rearrange(maps, "s c (h y) (w x) -> s (h w) (y x) c", y=2, x=2)
    return rearrange(maps, "s c (h y v) (w x u) -> s (h w) (y x) (v u) c", y=2, x=2, v=2, u=2)


def pointwise(convolution: nn.Conv2d, pixels: Float[Tensor, "*s c"]) -> Float[Tensor, "*s d"]:
    """A 1 x 1 convolution of pixels whose channels come last."""
    return nn.functional.linear(pixels, rearrange(convolution.weight, "d c 1 1 -> d c"), convolution.bias)


class TwoWayTransformer(nn.Module):
    """Layers in which tokens and pixels read each other, and a last look of the tokens at the pixels."""

    def __init__(
        self, channels: int, num_heads: int, num_layers: int, feedforward_channels: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayLayer(channels, num_heads, feedforward_channels, norm_eps, first=number == 0)
            for number in range(num_layers)
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
        read = self.final_attn_token_to_image.pixels_read(tokens + at_start, pixels + positions, pixels)
        return self.layer_norm_final_attn(tokens + read), pixels


class TwoWayLayer(nn.Module):
    """Tokens see each other, then the pixels; pixels see the tokens (post-norm).

    Args:
        first: the tokens see each other without themselves as positions, and what they see replaces them.
    """

    def __init__(
        self, channels: int, num_heads: int, feedforward_channels: int, norm_eps: float, first: bool
    ) -> None:
        super().__init__()
        self.first = first
        self.self_attn = NarrowAttention(channels, channels, num_heads)
        self.cross_attn_token_to_image = NarrowAttention(channels, channels // 2, num_heads)
        self.cross_attn_image_to_token = NarrowAttention(channels, channels // 2, num_heads)
        self.mlp = TwoLayers(channels, feedforward_channels)
        self.layer_norm1, self.layer_norm2, self.layer_norm3, self.layer_norm4 = (
            nn.LayerNorm(channels, eps=norm_eps) for _ in range(4)
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
        read = self.cross_attn_token_to_image.pixels_read(tokens + at_start, placed, pixels)
        tokens = self.layer_norm2(tokens + read)
        hidden = self.mlp(tokens)
        tokens = self.layer_norm3(tokens + (hidden if adapter is None else hidden + adapter(hidden)))
        read = self.cross_attn_image_to_token.tokens_read(placed, tokens + at_start, tokens)
        return tokens, self.layer_norm4(pixels + read)


class NarrowAttention(nn.Module):
    """Multi-head attention with projections of a width of their own.

    Where a few tokens and many pixels meet, the projections of the pixels are applied to the tokens instead, which is
    the same product in another order: with 7 tokens and 8 heads, 56 columns for each pixel and not 128, twice.
    """

    def __init__(self, channels: int, inner_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, inner_channels) for _ in range(3))
        self.out_proj = nn.Linear(inner_channels, channels)

    def forward(
        self, query: Float[Tensor, "s q c"], key: Float[Tensor, "s k c"], value: Float[Tensor, "s k c"]
    ) -> Float[Tensor, "s q c"]:
        heads = (self._heads(project(part)) for project, part in (
            (self.q_proj, query), (self.k_proj, key), (self.v_proj, value)
        ))  # fmt: skip
        return self.out_proj(rearrange(attend(*heads), "s m q d -> s q (m d)"))

    def pixels_read(
        self, tokens: Float[Tensor, "s k c"], placed: Float[Tensor, "s n c"], pixels: Float[Tensor, "s n c"]
    ) -> Float[Tensor, "s k c"]:
        """What few tokens read from many pixels, as `forward` has it."""
        scores = self._scores(self._heads(self.q_proj(tokens)), self.k_proj, placed)
        read = rearrange(scores.softmax(dim=-1) @ pixels, "s (m k) c -> s m k c", m=self.num_heads)
        read = read @ rearrange(self.v_proj.weight, "(m d) c -> m c d", m=self.num_heads)
        return self.out_proj(rearrange(read, "s m k d -> s k (m d)") + self.v_proj.bias)

    def tokens_read(
        self, placed: Float[Tensor, "s n c"], key: Float[Tensor, "s k c"], value: Float[Tensor, "s k c"]
    ) -> Float[Tensor, "s n c"]:
        """What many pixels read from few tokens, as `forward` has it."""
        scores = self._scores(self._heads(self.k_proj(key)), self.q_proj, placed)
        # The pixels last, over which a processor computes several softmaxes at a time.
        shares = rearrange(scores, "s (m k) n -> s m k n", m=self.num_heads).softmax(dim=2).flatten(1, 2)
        columns = rearrange(self.out_proj.weight, "c (m d) -> m d c", m=self.num_heads)
        values = (self._heads(self.v_proj(value)) @ columns).flatten(1, 2)
        return torch.baddbmm(self.out_proj.bias, shares.mT, values)

    def _heads(self, projected: Float[Tensor, "s k md"]) -> Float[Tensor, "s m k d"]:
        return rearrange(projected, "s k (m d) -> s m k d", m=self.num_heads)

    def _scores(
        self, tokens: Float[Tensor, "s m k d"], projection: nn.Linear, pixels: Float[Tensor, "s n c"]
    ) -> Float[Tensor, "s mk n"]:
        """Products of projected tokens with pixels that `projection` would project."""
        tokens = tokens * tokens.shape[-1] ** -0.5
        directions = tokens @ rearrange(projection.weight, "(m d) c -> m d c", m=self.num_heads)
        constant = tokens @ rearrange(projection.bias, "(m d) -> m d 1", m=self.num_heads)
        return torch.baddbmm(constant.flatten(1, 2), directions.flatten(1, 2), pixels.mT)


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

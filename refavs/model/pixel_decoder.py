"""Mask2Former's pixel decoder: turns a backbone's pyramid into mask features and maps at strides 8, 16 and 32."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from refavs.machine.torchvision_shim import ensure_torchvision


@dataclass(frozen=True, kw_only=True)
class PixelDecoderSettings:
    """Sizes of a pixel decoder; `in_channels` are those of the pyramid, finest map first."""

    in_channels: tuple[int, ...]
    channels: int
    mask_channels: int
    num_layers: int = 6
    num_heads: int = 8
    feedforward_channels: int = 1024
    strides: tuple[int, ...] = (4, 8, 16, 32)


class PixelDecoder(nn.Module):
    """Computes `mask_features`, `s8`, `s16` and `s32` from a pyramid."""

    def __init__(self, settings: PixelDecoderSettings) -> None:
        super().__init__()
        ensure_torchvision()
        from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoder

        self.settings = settings
        config = Mask2FormerConfig(
            feature_size=settings.channels, mask_feature_size=settings.mask_channels,
            encoder_layers=settings.num_layers, encoder_feedforward_dim=settings.feedforward_channels,
            num_attention_heads=settings.num_heads, feature_strides=list(settings.strides), dropout=0.0,
            common_stride=settings.strides[0],
        )
        with warnings.catch_warnings():
            # The warning is about the speed of a CUDA kernel that is not used here.
            warnings.filterwarnings("ignore", message="You'd better set embed_dim")
            self.decoder = Mask2FormerPixelDecoder(config, feature_channels=list(settings.in_channels))
        nn.init.normal_(self.decoder.level_embed)
        for layer in self.decoder.encoder.layers:
            _initialise(layer.get_submodule("self_attn"))

    def forward(self, pyramid: Mapping[str, Float[Tensor, "s _ _ _"]]) -> dict[str, Float[Tensor, "s _ _ _"]]:
        """Runs the decoder on a backbone's maps, given finest first."""
        output = self.decoder(list(pyramid.values()))
        coarse_to_fine = dict(zip(reversed(self.settings.strides[1:]), output.multi_scale_features, strict=True))
        maps = {f"s{stride}": coarse_to_fine[stride] for stride in self.settings.strides[1:]}
        return {"mask_features": output.mask_features, **maps}


def build_pixel_decoder(settings: PixelDecoderSettings) -> PixelDecoder:
    """Builds the decoder with random weights from torch's global generator."""
    return PixelDecoder(settings)


def _initialise(attention: Any) -> None:
    """Deformable DETR's initialisation: sampling points on rays, one direction per head, with equal attention.

    transformers initialises these only as part of a whole Mask2Former; otherwise one of them is uninitialised memory.
    """
    angles = torch.arange(attention.n_heads) * (2 * math.pi / attention.n_heads)
    rays = torch.stack([angles.cos(), angles.sin()], -1)
    rays = rays / rays.abs().amax(-1, keepdim=True)
    steps = rearrange(torch.arange(1, attention.n_points + 1), "p -> p 1")
    offsets = repeat(rays, "head xy -> head level p xy", level=attention.n_levels, p=attention.n_points) * steps
    nn.init.zeros_(attention.sampling_offsets.weight)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(rearrange(offsets, "head level p xy -> (head level p xy)"))
    for linear in (attention.attention_weights, attention.value_proj, attention.output_proj):
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.xavier_uniform_(attention.value_proj.weight)
    nn.init.xavier_uniform_(attention.output_proj.weight)

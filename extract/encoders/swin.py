"""Swin backbone: turns normalised frames into a pyramid of feature maps at strides 4, 8, 16 and 32.

The network is timm's, wired like Mask2Former's backbone, so that its checkpoints give the same feature maps: windows
are partitioned and shifted in every stage, and the output of every stage has its own norm.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from refavs.errors import ConfigError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision


@dataclass(frozen=True, kw_only=True)
class SwinSettings:
    """Sizes of a Swin backbone; `channels` is the width of the first stage and doubles with each."""

    input_size: int
    window: int
    channels: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    patch_size: int = 4

    def __post_init__(self) -> None:
        """Checks that the maps halve from stage to stage."""
        smallest = self.patch_size * 2 ** (len(self.depths) - 1)
        if len(self.depths) != len(self.num_heads) or self.input_size % smallest:
            raise ConfigError(
                f"a Swin of {len(self.depths)} stages, {len(self.num_heads)} head counts and input size "
                f"{self.input_size} px does not fit; give one head count per stage and a multiple of {smallest} px"
            )

    @property
    def levels(self) -> dict[str, tuple[int, int, int]]:
        """Shape (channels, height, width) of each map of the pyramid, finest first."""
        sides = [self.input_size // (self.patch_size * 2**stage) for stage in range(len(self.depths))]
        return {f"res{stage + 2}": (self.channels * 2**stage, side, side) for stage, side in enumerate(sides)}


class Swin(nn.Module):
    """Computes the maps `res2` .. `res5` of frames, each normalised over its channels.

    Args:
        imagenet: wires it like timm's classifiers, which do not shift windows if the map is a single window and have no
            norms after their stages.
    """

    def __init__(self, settings: SwinSettings, imagenet: bool = False) -> None:
        super().__init__()
        ensure_torchvision()
        from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock

        self.settings = settings
        self.trunk = SwinTransformer(
            img_size=settings.input_size, patch_size=settings.patch_size, window_size=settings.window,
            embed_dim=settings.channels, depths=settings.depths, num_heads=settings.num_heads,
            norm_layer=nn.LayerNorm, drop_path_rate=0.0, num_classes=0, always_partition=not imagenet,
        )
        self.trunk.norm = nn.Identity()
        for block in self.trunk.modules():
            if isinstance(block, SwinTransformerBlock) and not imagenet:
                block._attn = partial(_padded_first, block._attn, block.window_size)  # type: ignore[assignment]
        self.norms = nn.ModuleList(
            nn.Identity() if imagenet else nn.LayerNorm(channels) for channels, _, _ in settings.levels.values()
        )

    def forward(self, frames: Float[Tensor, "f 3 h w"]) -> dict[str, Tensor]:
        """Runs the backbone.

        Args:
            frames: RGB, normalised by ImageNet's mean and standard deviation, of the size in the settings.
        """
        features = self.trunk.patch_embed(frames)
        pyramid = {}
        for name, stage, norm in zip(self.settings.levels, self.trunk.layers.children(), self.norms, strict=True):
            features = stage(features)
            pyramid[name] = rearrange(norm(features), "f h w c -> f c h w")
        return pyramid


def _padded_first(
    attend: Callable[[Tensor], Tensor], window: tuple[int, int], tokens: Float[Tensor, "f h w c"]
) -> Float[Tensor, "f h w c"]:
    """Windowed attention over a map that its windows do not divide: Mask2Former pads it, then shifts; timm shifts it,
    then pads.
    """
    height, width = tokens.shape[1:3]
    below, right = -height % window[0], -width % window[1]
    if not below and not right:
        return attend(tokens)
    return attend(functional.pad(tokens, (0, 0, 0, right, 0, below)))[:, :height, :width]


def build_swin(settings: SwinSettings, imagenet: bool = False) -> Swin:
    """Builds the backbone with random weights from torch's global generator."""
    return Swin(settings, imagenet)


def from_timm(state: Mapping[str, Tensor], swin: Swin) -> dict[str, Tensor]:
    """Renames the weights of a classifier, by timm or Swin's authors, for a `Swin` wired like timm's.

    The maps are then those of timm's `features_only`: the outputs of the stages, without the classifier's norm.
    """
    ensure_torchvision()
    from timm.models.swin_transformer import checkpoint_filter_fn

    renamed = checkpoint_filter_fn(dict(state), swin.trunk)
    return {f"trunk.{name}": value for name, value in renamed.items() if not name.startswith(("norm.", "head."))}


# One row per module with weights: pattern in Mask2Former's checkpoints (names before and after transformers 5) and its
# name here. Query, key and value are joined separately.
_RENAMES = (
    (r"embeddings\.patch_embeddings\.projection\.(.+)", r"trunk.patch_embed.proj.\1"),
    (r"embeddings\.norm\.(.+)", r"trunk.patch_embed.norm.\1"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self|relative_position_bias)\.relative_position_bias_table",
     r"trunk.layers.\1.blocks.\2.attn.relative_position_bias_table"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:output\.dense|o_proj)\.(.+)",
     r"trunk.layers.\1.blocks.\2.attn.proj.\3"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_before\.(.+)", r"trunk.layers.\1.blocks.\2.norm1.\3"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.layernorm_after\.(.+)", r"trunk.layers.\1.blocks.\2.norm2.\3"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.(.+)",
     r"trunk.layers.\1.blocks.\2.mlp.fc1.\3"),
    (r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.(?:output\.dense|mlp\.fc2)\.(.+)",
     r"trunk.layers.\1.blocks.\2.mlp.fc2.\3"),
)
_PROJECTION = re.compile(
    r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.attention\.(?:self\.)?(query|key|value|[qkv]_proj)\.(weight|bias)"
)
_DOWNSAMPLE = re.compile(r"encoder\.layers\.(\d+)\.downsample\.(.+)")
_STAGE_NORM = re.compile(r"hidden_states_norms\.(?:stage)?(\d+)\.(weight|bias)")
_UNUSED = re.compile(r"layernorm\.(weight|bias)|.*relative_position_index|.*\.attn_mask")


def from_mask2former(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the backbone of a Mask2Former checkpoint to the names of `Swin`.

    Args:
        state: weights below `model.pixel_level_module.encoder.`, with that prefix removed.

    Raises:
        WeightsError: a name belongs to no part of a Swin backbone.
    """
    renamed: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = re.sub(r"^(swin|model)\.", "", key)
        if _UNUSED.fullmatch(name):
            continue
        if match := _PROJECTION.fullmatch(name):
            stage, block, part, kind = match.groups()
            target = f"trunk.layers.{stage}.blocks.{block}.attn.qkv.{kind}"
            projections.setdefault(target, {})[part[0]] = value
        elif match := _DOWNSAMPLE.fullmatch(name):
            # timm merges patches on entering a stage, transformers on leaving the one before.
            renamed[f"trunk.layers.{int(match[1]) + 1}.downsample.{match[2]}"] = value
        elif match := _STAGE_NORM.fullmatch(name):
            renamed[f"norms.{int(match[1]) - 1}.{match[2]}"] = value
        else:
            renamed[_renamed(name, key)] = value
    for target, parts in projections.items():
        renamed[target] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return renamed


def _renamed(name: str, key: str) -> str:
    for pattern, replacement in _RENAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    raise WeightsError(
        f"weight {key!r} belongs to no Swin backbone; accepted: a Mask2Former checkpoint with a Swin backbone, such as "
        "facebook/mask2former-swin-base-ade-semantic"
    )

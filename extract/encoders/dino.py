"""DINOv2, with and without registers, and DINOv3: a map of the patches, and the vector of the CLS token."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from einops import rearrange
from torch import Tensor

from extract.encoders.frame_encoder import HubFrameEncoder, Published, Shape
from extract.encoders.networks import of_transformers

SIDE_PX = 384  # or the next multiple of the patch: 28 x 28 patches of 14 px, 24 x 24 of 16 px


class DinoEncoder(HubFrameEncoder):
    """The tokens of the last layer, CLS first and registers next, then one per patch; registers are left out."""

    @property
    def input_size(self) -> int:
        """Height and width of the frames, px."""
        return -(-SIDE_PX // self.config.patch_size) * self.config.patch_size

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """Patches as a map, CLS as a vector."""
        side, channels = self.input_size // self.config.patch_size, self.config.hidden_size
        return {"patches": {"map": (channels, side, side)}, "cls": {"vector": (channels,)}}

    def build(self) -> Any:
        """The network of the checkpoint's generation."""
        return self.files.network(of_transformers("auto.modeling_auto.MODEL_MAPPING")[type(self.config)], self.config)

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """Patches and CLS of each frame."""
        tokens = self.network(pixel_values=frames).last_hidden_state
        first = 1 + getattr(self.config, "num_register_tokens", 0)
        side = self.input_size // self.config.patch_size
        found = {"patches/map": rearrange(tokens[:, first:], "f (h w) c -> f c h w", h=side),
                 "cls/vector": tokens[:, 0]}  # fmt: skip
        return {path: found[path] for path in found if path.split("/")[0] in levels}


def _sizes(channels: int, num_layers: int, num_heads: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": channels, "num_hidden_layers": num_layers, "num_attention_heads": num_heads, **others}


_SMALL, _BASE, _LARGE, _HUGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1280, 32, 20)


def _dinov2(name: str, num_parameters: int, sizes: tuple[int, int, int], registers: bool = False) -> Any:
    published = Published(
        repository=f"facebook/{name}", model_type="dinov2_with_registers" if registers else "dinov2",
        licence="Apache-2.0", num_parameters=num_parameters, size=392, resample="bicubic",
        sizes=_sizes(*sizes, image_size=518, patch_size=14),
    )  # fmt: skip
    return partial(DinoEncoder, name, published)


def _dinov3(name: str, num_parameters: int, sizes: tuple[int, int, int], **others: Any) -> Any:
    published = Published(
        repository=f"facebook/{name}-pretrain-lvd1689m", model_type="dinov3_vit", licence="DINOv3 License",
        num_parameters=num_parameters, size=SIDE_PX, gated=True,
        sizes=_sizes(*sizes, patch_size=16, intermediate_size=4 * sizes[0], num_register_tokens=4, **others),
    )
    return partial(DinoEncoder, name, published)


dinov2_small = _dinov2("dinov2-small", 22_056_576, _SMALL)
dinov2_base = _dinov2("dinov2-base", 86_580_480, _BASE)
dinov2_large = _dinov2("dinov2-large", 304_368_640, _LARGE)
dinov2_small_registers = _dinov2("dinov2-with-registers-small", 22_058_112, _SMALL, registers=True)
dinov2_base_registers = _dinov2("dinov2-with-registers-base", 86_583_552, _BASE, registers=True)
dinov2_large_registers = _dinov2("dinov2-with-registers-large", 304_372_736, _LARGE, registers=True)
dinov3_small = _dinov3("dinov3-vits16", 21_596_544, _SMALL)
dinov3_base = _dinov3("dinov3-vitb16", 85_660_416, _BASE)
dinov3_large = _dinov3("dinov3-vitl16", 303_129_600, _LARGE)
dinov3_huge = _dinov3("dinov3-vith16plus", 840_592_640, _HUGE, use_gated_mlp=True, hidden_act="silu")

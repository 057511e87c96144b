"""The visual stream: Swin and Mask2Former's pixel decoder over the frames of one clip."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from extract.encoders import Precision
from extract.encoders.pixel_decoder import PixelDecoderSettings, build_pixel_decoder
from extract.encoders.swin import SwinSettings, build_swin, from_mask2former
from extract.media import PREPROCESSING, normalised
from extract.weights import (
    TENSOR_FILES,
    WeightSource,
    file_stamp,
    fill,
    from_hub,
    in_folder,
    load_tensors,
    random_stamp,
    randomly,
)
from refavs.config import to_dict
from refavs.store.schema import ArraySpec

LEVELS = ("backbone", "pixel_decoder")
HUB_REPOSITORY = "facebook/mask2former-swin-base-ade-semantic"
_CHECKPOINT_PREFIX = "model.pixel_level_module."


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """The networks, and where their pretrained weights lie.

    Attributes:
        shipped: file in the package with weights of both networks; None where they are Mask2Former's checkpoint.
    """

    name: str
    swin: SwinSettings
    pixel_decoder: PixelDecoderSettings
    num_frames: int
    shipped: Path | None = None


class VisualNetworks(nn.Module):
    """Both networks under the names that shipped weights have; normalised frames to the maps of the pixel decoder."""

    def __init__(self, swin: SwinSettings, pixel_decoder: PixelDecoderSettings) -> None:
        super().__init__()
        self.swin = build_swin(swin)
        self.pixel_decoder = build_pixel_decoder(pixel_decoder)

    def forward(self, frames: Float[Tensor, "f 3 h w"]) -> dict[str, Tensor]:
        """Runs one network after the other."""
        return self.pixel_decoder(self.swin(frames))


@dataclass
class VisualEncoder:
    """Frames of one clip to maps of the levels asked for, float16."""

    settings: VisualSettings
    weights: WeightSource
    levels: tuple[str, ...] = ("pixel_decoder",)
    precision: Precision = "fp32"
    device: str = "cpu"
    stream: str = field(default="visual", init=False)

    def fingerprint(self) -> dict[str, Any]:
        """Facts about both networks; the levels kept do not change their values."""
        stamp = random_stamp(self.weights.seed) if self._weights_file is None else file_stamp(self._weights_file)
        return {
            "name": self.settings.name, "weights": stamp, "preprocessing": PREPROCESSING,
            "input_size": self.settings.swin.input_size, "precision": self.precision, "dtype": "float16",
            "swin": to_dict(self.settings.swin), "pixel_decoder": to_dict(self.settings.pixel_decoder),
        }

    def specs(self) -> Sequence[ArraySpec]:
        """One array per map of each level."""
        shapes = {f"backbone/{name}": shape for name, shape in self.settings.swin.levels.items()}
        widths = self.settings.pixel_decoder
        for name, (_, height, width) in zip(
            ("mask_features", "s8", "s16", "s32"), self.settings.swin.levels.values(), strict=True
        ):
            channels = widths.mask_channels if name == "mask_features" else widths.channels
            shapes[f"pixel_decoder/{name}"] = (channels, height, width)
        return [
            ArraySpec(
                path=f"clips/visual/{name}", shape=(self.settings.num_frames, *shape), dtype="float16",
                axes=("t", "c", "h", "w"), statistics=True,
            )
            for name, shape in shapes.items() if name.split("/")[0] in self.levels
        ]

    @torch.no_grad()
    def encode(self, item: UInt8[np.ndarray, "t h w 3"]) -> dict[str, np.ndarray]:
        """Maps of all frames of one clip, which are always one batch."""
        frames = normalised(torch.from_numpy(item)).to(self.device)
        low_precision = self.precision == "bf16"
        with torch.autocast(self.device, torch.bfloat16) if low_precision else nullcontext():
            pyramid = {name: maps.float() for name, maps in self._networks.swin(frames).items()}
        found: dict[str, Tensor] = {}
        if "backbone" in self.levels:
            found |= {f"clips/visual/backbone/{name}": maps for name, maps in pyramid.items()}
        if "pixel_decoder" in self.levels:
            maps = self._networks.pixel_decoder(pyramid)
            found |= {f"clips/visual/pixel_decoder/{name}": features for name, features in maps.items()}
        return {path: features.half().cpu().contiguous().numpy() for path, features in found.items()}

    @cached_property
    def _weights_file(self) -> Path | None:
        if self.weights.kind == "random":
            return None
        if self.settings.shipped is not None:
            folder = self.weights.folder or self.settings.shipped.parent
            return in_folder(folder, self.settings.shipped.name)
        if self.weights.folder is not None:
            return in_folder(self.weights.folder, *(f"mask2former/{name}" for name in TENSOR_FILES))
        return from_hub(HUB_REPOSITORY, *TENSOR_FILES)

    @cached_property
    def _networks(self) -> VisualNetworks:
        settings = self.settings
        networks = randomly(lambda: VisualNetworks(settings.swin, settings.pixel_decoder), self.weights.seed)
        if self._weights_file is not None:
            state = load_tensors(self._weights_file)
            if self.settings.shipped is None:
                fill(networks, _from_checkpoint(state), self._weights_file)
            else:
                fill(networks, state, self._weights_file)
        return networks.float().eval().requires_grad_(False).to(self.device)


def _from_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Backbone and pixel decoder of a Mask2Former checkpoint, under the names of `VisualNetworks`."""
    inside = {key.removeprefix(_CHECKPOINT_PREFIX): value for key, value in state.items()
              if key.startswith(_CHECKPOINT_PREFIX)}  # fmt: skip
    swin = from_mask2former({k.removeprefix("encoder."): v for k, v in inside.items() if k.startswith("encoder.")})
    decoder = {k.removeprefix("decoder."): v for k, v in inside.items() if k.startswith("decoder.")}
    return {f"swin.{k}": v for k, v in swin.items()} | {f"pixel_decoder.decoder.{k}": v for k, v in decoder.items()}

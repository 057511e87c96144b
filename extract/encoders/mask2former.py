"""Visual encoders for the frames of clips: Swin followed by Mask2Former's pixel decoder, with a level for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from extract.encoders.networks import DTYPES, fill, frozen, load_tensors, randomly, to_host
from extract.encoders.pixel_decoder import FrozenPixelDecoder, PixelDecoderSettings, build_pixel_decoder
from extract.encoders.protocol import Encoder, EncoderSetup, Frames
from extract.encoders.swin import Swin, SwinSettings, build_swin, from_mask2former, from_timm
from extract.encoders.weights import TENSOR_FILES, WeightPart, from_hub, in_folder, weights_stamp
from refavs.config import to_dict
from refavs.store.format.schema import ArraySpec

LEVELS = ("backbone", "pixel_decoder")
PREPROCESSING = "first frame of each second, PIL bilinear to a square, ImageNet mean and deviation"
_CHECKPOINT_PREFIX = "model.pixel_level_module."


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """The networks, and the location of their pretrained weights.

    Attributes:
        pixel_decoder: None for a backbone alone, which is then wired like timm's classifiers.
        repository: repository on the hub; None if the package contains the weights.
        folder: folder of the repository's files within the weights folder.
        shipped: file in the package with the weights of both networks.
    """

    swin: SwinSettings
    pixel_decoder: PixelDecoderSettings | None
    repository: str | None = None
    folder: str = ""
    shipped: Path | None = None


class VisualNetworks(nn.Module):
    """Both networks with the names used in the shipped weights; maps normalised frames to the pixel decoder's maps."""

    def __init__(self, swin: SwinSettings, pixel_decoder: PixelDecoderSettings | None) -> None:
        super().__init__()
        self.swin = build_swin(swin, imagenet=pixel_decoder is None)
        if pixel_decoder is not None:
            self.pixel_decoder = build_pixel_decoder(pixel_decoder)

    def forward(self, frames: Float[Tensor, "f 3 h w"]) -> dict[str, Tensor]:
        """Runs both networks in sequence."""
        return self.pixel_decoder(self.swin(frames))


@dataclass
class VisualEncoder(Encoder):
    """Encodes frames of clips as float16 maps.

    Both networks compute in the precision of the setup; the pixel decoder's sampling points stay in float32.
    """

    name: str
    settings: VisualSettings
    setup: EncoderSetup
    licence: str = "MIT"
    num_parameters: int = 0

    def __post_init__(self) -> None:
        self.modality = "visual"
        self.takes = Frames(size=self.settings.swin.input_size)
        self.weights = self.settings.repository or "this package"

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about the networks of a level; the pixel decoder's maps also depend on the backbone."""
        backbone = {
            "name": self.name, "weights": weights_stamp(self._weights_file, self.setup.weights.seed),
            "preprocessing": PREPROCESSING, "input_size": self.settings.swin.input_size,
            "precision": self.setup.precision, "dtype": "float16", "swin": to_dict(self.settings.swin),
        }  # fmt: skip
        return backbone if level == "backbone" else backbone | {"pixel_decoder": to_dict(self.settings.pixel_decoder)}

    def arrays(self, seconds: int) -> dict[str, list[ArraySpec]]:
        """One array per map of each level."""
        pyramid, widths = self.settings.swin.levels, self.settings.pixel_decoder
        shapes = {"backbone": pyramid}
        if widths is not None:
            names = ("mask_features", "s8", "s16", "s32")
            shapes["pixel_decoder"] = {
                name: (widths.mask_channels if name == names[0] else widths.channels, height, width)
                for name, (_, height, width) in zip(names, pyramid.values(), strict=True)
            }
        return {
            level: [ArraySpec(name=name, shape=(seconds, *shape), dtype="float16", axes=("t", "c", "h", "w"),
                              statistics=True) for name, shape in maps.items()]
            for level, maps in shapes.items()
        }  # fmt: skip

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights file of both networks."""
        settings = self.settings
        fetch = (f"cp {settings.shipped} {{folder}}/" if settings.repository is None
                 else f"hf download {settings.repository} --local-dir {{folder}}/{settings.folder}")  # fmt: skip
        return [WeightPart(name=self.name, find=lambda: self._weights_file, load=lambda: self._frozen, fetch=fetch)]

    @torch.no_grad()
    def encode(
        self, batch: Sequence[UInt8[np.ndarray, "t h w 3"]], levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Computes the maps of each clip.

        A GPU processes the frames of all clips in one pass. A CPU processes one clip at a time: larger batches are not
        faster there, and a clip's maps are then bitwise independent of the batch.

        Args:
            batch: frames of each clip, the same number for each.
            levels: levels to compute, from `LEVELS`.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        if not batch or not levels:
            return [{} for _ in batch]
        if self.setup.device == "cpu":
            return [self._maps(frames, 1, levels)[0] for frames in batch]
        return self._maps(np.concatenate(batch), len(batch), levels)

    def _maps(
        self, frames: UInt8[np.ndarray, "f h w 3"], num_clips: int, levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        swin, pixel_decoder = self._frozen
        assert isinstance(self.takes, Frames)
        inputs = self.takes.normalised(torch.from_numpy(frames).to(self.setup.device))
        pyramid = swin(inputs.to(DTYPES[self.setup.precision]))
        found: dict[str, Tensor] = {}
        if "backbone" in levels:
            found |= {f"backbone/{name}": maps for name, maps in pyramid.items()}
        if "pixel_decoder" in levels and pixel_decoder is not None:
            found |= {f"pixel_decoder/{name}": maps for name, maps in pixel_decoder(pyramid).items()}
        # Convert to float16 and the store's axis order on the device: half the bytes to copy, and no copy afterwards.
        stored = {path: maps.to(torch.float16, memory_format=torch.contiguous_format).chunk(num_clips)
                  for path, maps in found.items()}  # fmt: skip
        # Separate arrays per clip, so that each is freed as soon as it is written.
        clips = [to_host({path: maps[clip] for path, maps in stored.items()}) for clip in range(num_clips)]
        return [{path: maps.numpy() for path, maps in clip.items()} for clip in clips]

    @cached_property
    def _weights_file(self) -> Path | None:
        settings, weights = self.settings, self.setup.weights
        if weights.kind == "random":
            return None
        if settings.shipped is not None:
            return in_folder(weights.folder or settings.shipped.parent, settings.shipped.name)
        if weights.folder is not None:
            return in_folder(weights.folder, *(f"{settings.folder}/{name}" for name in TENSOR_FILES))
        assert settings.repository is not None
        return from_hub(settings.repository, *TENSOR_FILES, fetch=weights.fetch)

    @property
    def _networks(self) -> VisualNetworks:
        """Both networks as loaded, in float32."""
        settings = self.settings
        networks = randomly(lambda: VisualNetworks(settings.swin, settings.pixel_decoder), self.setup.weights.seed)
        if self._weights_file is not None:
            state = load_tensors(self._weights_file)
            if settings.pixel_decoder is None:
                fill(networks.swin, from_timm(state, networks.swin), self._weights_file)
            else:
                fill(networks, state if settings.shipped else _from_checkpoint(state), self._weights_file)
        return networks.float().eval().requires_grad_(False)

    @cached_property
    def _frozen(self) -> tuple[Swin, FrozenPixelDecoder | None]:
        """Both networks, ready to compute."""
        networks, (device, dtype) = self._networks, (self.setup.device, DTYPES[self.setup.precision])
        swin = frozen(networks.swin, device, dtype)
        if self.settings.pixel_decoder is None:
            return swin, None
        return swin, frozen(FrozenPixelDecoder(networks.pixel_decoder), device, dtype)


def _from_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone and pixel decoder of a Mask2Former checkpoint, with the names of `VisualNetworks`."""
    inside = {key.removeprefix(_CHECKPOINT_PREFIX): value for key, value in state.items()
              if key.startswith(_CHECKPOINT_PREFIX)}  # fmt: skip
    swin = from_mask2former({k.removeprefix("encoder."): v for k, v in inside.items() if k.startswith("encoder.")})
    decoder = {k.removeprefix("decoder."): v for k, v in inside.items() if k.startswith("decoder.")}
    return {f"swin.{k}": v for k, v in swin.items()} | {f"pixel_decoder.decoder.{k}": v for k, v in decoder.items()}


_SWIN_BASE = SwinSettings(input_size=384, window=12, channels=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
BASE = VisualSettings(
    swin=_SWIN_BASE,
    pixel_decoder=PixelDecoderSettings(
        in_channels=(128, 256, 512, 1024), channels=256, mask_channels=256, num_layers=6, num_heads=8,
        feedforward_channels=1024,
    ),
    repository="facebook/mask2former-swin-base-ade-semantic", folder="mask2former",
)  # fmt: skip
IMAGENET = VisualSettings(
    swin=_SWIN_BASE, pixel_decoder=None,
    repository="timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k", folder="swin",
)  # fmt: skip
TINY = VisualSettings(
    swin=SwinSettings(input_size=96, window=6, channels=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    pixel_decoder=PixelDecoderSettings(
        in_channels=(32, 64, 128, 256), channels=96, mask_channels=96, num_layers=2, num_heads=4,
        feedforward_channels=256,
    ),
    shipped=Path(__file__).parents[1] / "presets" / "tiny" / "visual.safetensors",
)  # fmt: skip


def mask2former_swin_base_ade(setup: EncoderSetup) -> VisualEncoder:
    """The paper's encoder: Swin-B and the pixel decoder of Mask2Former, trained on ADE20k."""
    return VisualEncoder("mask2former-swin-base-ade", BASE, setup, "other (as the hub says)", 92_424_760)


def swin_base_imagenet(setup: EncoderSetup) -> VisualEncoder:
    """Swin-B with ImageNet weights; a head trains its own pixel decoder on its maps."""
    return VisualEncoder("swin-base-imagenet", IMAGENET, setup, "MIT", 86_876_536)


def tiny_swin(setup: EncoderSetup) -> VisualEncoder:
    """A small Swin and pixel decoder, pretrained on synthetic frames."""
    return VisualEncoder("tiny-swin", TINY, setup, "Apache-2.0", 2_586_318)

"""The visual streams, one per level: Swin and Mask2Former's pixel decoder over the frames of clips."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from extract.choices import LEVELS
from extract.encoders import DTYPES, frozen, to_host
from extract.encoders.pixel_decoder import FrozenPixelDecoder, PixelDecoderSettings, build_pixel_decoder
from extract.encoders.swin import Swin, SwinSettings, build_swin, from_mask2former, from_timm
from extract.encoders.weights import (
    TENSOR_FILES,
    WeightPart,
    WeightSource,
    fill,
    from_hub,
    in_folder,
    load_tensors,
    random_stamp,
    randomly,
)
from extract.media.clip import PREPROCESSING, normalised
from refavs.choices import Precision
from refavs.config import file_stamp, to_dict
from refavs.store.format.schema import ArraySpec

PREFIX = "clips/visual"
HUB_REPOSITORY = "facebook/mask2former-swin-base-ade-semantic"
IMAGENET_REPOSITORY = "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k"
_CHECKPOINT_PREFIX = "model.pixel_level_module."


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """The networks, and where their pretrained weights lie.

    Attributes:
        shipped: file in the package with weights of both networks; None where they are Mask2Former's checkpoint.
        imagenet: the backbone is timm's classifier, and there are no weights of a pixel decoder.
    """

    name: str
    swin: SwinSettings
    pixel_decoder: PixelDecoderSettings
    num_frames: int
    shipped: Path | None = None
    imagenet: bool = False


class VisualNetworks(nn.Module):
    """Both networks under the names that shipped weights have; normalised frames to the maps of the pixel decoder."""

    def __init__(self, swin: SwinSettings, pixel_decoder: PixelDecoderSettings, imagenet: bool = False) -> None:
        super().__init__()
        self.swin = build_swin(swin, imagenet)
        self.pixel_decoder = build_pixel_decoder(pixel_decoder)

    def forward(self, frames: Float[Tensor, "f 3 h w"]) -> dict[str, Tensor]:
        """Runs one network after the other."""
        return self.pixel_decoder(self.swin(frames))


@dataclass
class VisualEncoder:
    """Frames of clips to maps of the levels asked for, float16.

    Attributes:
        levels: those whose arrays and fingerprints the run speaks of.
        precision: type in which both networks compute; sampling points of the pixel decoder stay in float32.
    """

    settings: VisualSettings
    weights: WeightSource
    levels: tuple[str, ...] = ("pixel_decoder",)
    precision: Precision = "fp32"
    device: str = "cpu"

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Facts about the networks behind each level; the pixel decoder's maps depend on the backbone's too."""
        stamp = random_stamp(self.weights.seed) if self._weights_file is None else file_stamp(self._weights_file)
        backbone = {
            "name": self.settings.name, "weights": stamp, "preprocessing": PREPROCESSING,
            "input_size": self.settings.swin.input_size, "precision": self.precision, "dtype": "float16",
            "swin": to_dict(self.settings.swin),
        }  # fmt: skip
        decoder = backbone | {"pixel_decoder": to_dict(self.settings.pixel_decoder)}
        facts = {"backbone": backbone, "pixel_decoder": decoder}
        return {f"visual/{level}": facts[level] for level in LEVELS if level in self.levels}

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
                path=f"{PREFIX}/{name}", shape=(self.settings.num_frames, *shape), dtype="float16",
                axes=("t", "c", "h", "w"), statistics=True,
            )
            for name, shape in shapes.items() if name.split("/")[0] in self.levels
        ]

    def weight_parts(self) -> Sequence[WeightPart]:
        """The file of both networks."""
        shipped = self.settings.shipped
        fetch = (f"hf download {self._repository} --local-dir {{folder}}/{self._subfolder}" if shipped is None
                 else f"cp {shipped} {{folder}}/")  # fmt: skip
        name = "visual, Swin" if self.settings.imagenet else "visual, Swin and pixel decoder"
        return [WeightPart(name=name, find=lambda: self._weights_file, load=lambda: self._frozen, fetch=fetch)]

    @torch.no_grad()
    def encode(
        self, clips: Sequence[UInt8[np.ndarray, "t h w 3"]], levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Maps of each clip, by path.

        A GPU takes the frames of all clips in one pass. A processor takes one clip after the other: more frames at
        once do not make it faster, and the maps of a clip then have the same bytes in any company.

        Args:
            clips: frames of each clip, RGB, of the settings' input size; as many for each.
            levels: which maps to compute, of `LEVELS`.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        if not clips or not levels:
            return [{} for _ in clips]
        if self.device == "cpu":
            return [self._maps(frames, 1, levels)[0] for frames in clips]
        return self._maps(np.concatenate(clips), len(clips), levels)

    def _maps(
        self, frames: UInt8[np.ndarray, "f h w 3"], num_clips: int, levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        swin, pixel_decoder = self._frozen
        pyramid = swin(normalised(torch.from_numpy(frames).to(self.device)).to(DTYPES[self.precision]))
        found: dict[str, Tensor] = {}
        if "backbone" in levels:
            found |= {f"{PREFIX}/backbone/{name}": maps for name, maps in pyramid.items()}
        if "pixel_decoder" in levels:
            found |= {f"{PREFIX}/pixel_decoder/{name}": maps for name, maps in pixel_decoder(pyramid).items()}
        # In float16 and in the store's order of axes before they leave the device: half the bytes, and no copy after.
        stored = {path: maps.to(torch.float16, memory_format=torch.contiguous_format).chunk(num_clips)
                  for path, maps in found.items()}  # fmt: skip
        # Clip by clip, so that one that is written frees its memory while its neighbours wait.
        clips = [to_host({path: maps[clip] for path, maps in stored.items()}) for clip in range(num_clips)]
        return [{path: maps.numpy() for path, maps in clip.items()} for clip in clips]

    @cached_property
    def _weights_file(self) -> Path | None:
        if self.weights.kind == "random":
            return None
        if self.settings.shipped is not None:
            folder = self.weights.folder or self.settings.shipped.parent
            return in_folder(folder, self.settings.shipped.name)
        if self.weights.folder is not None:
            return in_folder(self.weights.folder, *(f"{self._subfolder}/{name}" for name in TENSOR_FILES))
        return from_hub(self._repository, *TENSOR_FILES, fetch=self.weights.fetch)

    @property
    def _subfolder(self) -> str:
        return "swin" if self.settings.imagenet else "mask2former"

    @property
    def _repository(self) -> str:
        return IMAGENET_REPOSITORY if self.settings.imagenet else HUB_REPOSITORY

    @property
    def _networks(self) -> VisualNetworks:
        """Both networks as they are read, in float32."""
        settings = self.settings
        networks = randomly(
            lambda: VisualNetworks(settings.swin, settings.pixel_decoder, settings.imagenet), self.weights.seed
        )
        if self._weights_file is not None:
            state = load_tensors(self._weights_file)
            if self.settings.imagenet:
                fill(networks.swin, from_timm(state, networks.swin), self._weights_file)
            elif self.settings.shipped is None:
                fill(networks, _from_checkpoint(state), self._weights_file)
            else:
                fill(networks, state, self._weights_file)
        return networks.float().eval().requires_grad_(False)

    @cached_property
    def _frozen(self) -> tuple[Swin, FrozenPixelDecoder]:
        """Both networks as they compute."""
        networks, dtype = self._networks, DTYPES[self.precision]
        decoder = FrozenPixelDecoder(networks.pixel_decoder)
        return frozen(networks.swin, self.device, dtype), frozen(decoder, self.device, dtype)


def levels_of(paths: Iterable[str]) -> tuple[str, ...]:
    """The levels to which arrays belong, in the order of `LEVELS`; paths of other streams are passed over."""
    found = {path.removeprefix(f"{PREFIX}/").split("/")[0] for path in paths if path.startswith(f"{PREFIX}/")}
    return tuple(level for level in LEVELS if level in found)


def _from_checkpoint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Backbone and pixel decoder of a Mask2Former checkpoint, under the names of `VisualNetworks`."""
    inside = {key.removeprefix(_CHECKPOINT_PREFIX): value for key, value in state.items()
              if key.startswith(_CHECKPOINT_PREFIX)}  # fmt: skip
    swin = from_mask2former({k.removeprefix("encoder."): v for k, v in inside.items() if k.startswith("encoder.")})
    decoder = {k.removeprefix("decoder."): v for k, v in inside.items() if k.startswith("decoder.")}
    return {f"swin.{k}": v for k, v in swin.items()} | {f"pixel_decoder.decoder.{k}": v for k, v in decoder.items()}

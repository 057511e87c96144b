"""Visual encoders for the frames of clips: Swin followed by Mask2Former's pixel decoder, with a level for each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from extract.encoders.frame_encoder import FrameEncoder, Shape, described, preprocessing
from extract.encoders.hub_folder import CONFIG, PREPROCESSOR, HubFolder
from extract.encoders.networks import DTYPES, fill, frozen, load_tensors, randomly
from extract.encoders.pixel_decoder import FrozenPixelDecoder, PixelDecoderSettings, build_pixel_decoder
from extract.encoders.protocol import EncoderSetup, Frames
from extract.encoders.swin import Swin, SwinSettings, build_swin, from_mask2former, from_timm
from extract.encoders.weights import OtherArchitecture, WeightPart, in_folder, weights_stamp
from refavs.config import nearest, to_dict
from refavs.errors import ConfigError
from refavs.machine.torchvision_shim import ensure_torchvision

VISUAL_LEVELS = ("backbone", "pixel_decoder")
PREPROCESSING = "first frame of each second, PIL bilinear to a square, ImageNet mean and deviation"
DIVISOR = 32  # of the frames: the coarsest stride
AS_THE_HUB_SAYS = "other (as the hub says)"
_CHECKPOINT_PREFIX = "model.pixel_level_module."


@dataclass(frozen=True, kw_only=True)
class VisualSettings:
    """The networks, and the location of their pretrained weights.

    Attributes:
        pixel_decoder: None for a backbone alone, which is then wired like timm's classifiers.
        repository: repository on the hub; None if the package contains the weights.
        folder: folder of the repository's files within the weights folder.
        shipped: file in the package with the weights of both networks.
        fixed: the sizes are these whatever the files of the repository say.
    """

    swin: SwinSettings
    pixel_decoder: PixelDecoderSettings | None
    repository: str | None = None
    folder: str = ""
    shipped: Path | None = None
    fixed: bool = True


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
class VisualEncoder(FrameEncoder):
    """Encodes frames of clips as float16 maps; the pixel decoder's sampling points stay in float32."""

    name: str
    published: VisualSettings
    setup: EncoderSetup
    licence: str = "MIT"
    num_parameters: int = 0

    def __post_init__(self) -> None:
        published = self.published
        self.weights = published.repository or "this package"
        self.files = HubFolder(repository=published.repository or "", source=self.setup.weights, name=published.folder)

    @cached_property
    def settings(self) -> VisualSettings:
        """The published sizes, or those in the checkpoint's own files."""
        return self.published if self.published.fixed else _settings(self.files, self.published)

    @cached_property
    def takes(self) -> Frames:  # type: ignore[override]
        """Squares; ImageNet's mean and deviation, unless the checkpoint has others."""
        usual = Frames(size=self.settings.swin.input_size)
        return usual if self.published.fixed else preprocessing(self.files, usual)

    def facts(self, level: str) -> dict[str, Any]:
        """Facts about the networks of a level; the pixel decoder's maps also depend on the backbone."""
        backbone = {
            "name": self.name, "weights": self._stamp,
            "preprocessing": PREPROCESSING if self.published.fixed else described(self.takes),
            "input_size": self.settings.swin.input_size,
            "precision": self.setup.precision, "dtype": "float16", "swin": to_dict(self.settings.swin),
        }  # fmt: skip
        return backbone if level == "backbone" else backbone | {"pixel_decoder": to_dict(self.settings.pixel_decoder)}

    def shapes(self) -> dict[str, dict[str, Shape]]:
        """The maps of each network."""
        pyramid, widths = self.settings.swin.levels, self.settings.pixel_decoder
        shapes: dict[str, dict[str, Shape]] = {"backbone": dict(pyramid)}
        if widths is not None:
            names = ("mask_features", "s8", "s16", "s32")
            shapes["pixel_decoder"] = {
                name: (widths.mask_channels if name == names[0] else widths.channels, height, width)
                for name, (_, height, width) in zip(names, pyramid.values(), strict=True)
            }
        return shapes

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights file of both networks."""
        if self.published.shipped is not None:
            return [WeightPart(name=self.name, find=lambda: self._shipped, load=lambda: self._frozen,
                               fetch=f"cp {self.published.shipped} {{folder}}/")]  # fmt: skip
        return self.files.parts(self.name, lambda: self._frozen, *(() if self.published.fixed else (CONFIG,)))

    def features(self, frames: Tensor, levels: Sequence[str]) -> dict[str, Tensor]:
        """The maps of each frame."""
        swin, pixel_decoder = self._frozen
        pyramid = swin(frames)
        found: dict[str, Tensor] = {}
        if "backbone" in levels:
            found |= {f"backbone/{name}": maps for name, maps in pyramid.items()}
        if "pixel_decoder" in levels and pixel_decoder is not None:
            found |= {f"pixel_decoder/{name}": maps for name, maps in pixel_decoder(pyramid).items()}
        return found

    @cached_property
    def _shipped(self) -> Path | None:
        """The file that comes with the package."""
        weights, shipped = self.setup.weights, self.published.shipped
        if weights.kind == "random" or shipped is None:
            return None
        return in_folder(weights.folder or shipped.parent, shipped.name)

    @property
    def _stamp(self) -> str:
        if self.published.shipped is not None:
            return weights_stamp(self._shipped, self.setup.weights.seed)
        return self.files.stamp()

    def build(self) -> VisualNetworks:
        """Both networks as loaded, in float32."""
        settings, seed = self.settings, self.setup.weights.seed
        networks = randomly(lambda: VisualNetworks(settings.swin, settings.pixel_decoder), seed)
        if self._shipped is not None:
            fill(networks, load_tensors(self._shipped), self._shipped)
        elif settings.shipped is None and (files := self.files.tensor_files()):
            state = self.files.state()
            if settings.pixel_decoder is None:
                fill(networks.swin, from_timm(state, networks.swin), files[0])
            else:
                fill(networks, _from_checkpoint(state), files[0])
        return networks.float().eval().requires_grad_(False)

    @cached_property
    def _frozen(self) -> tuple[Swin, FrozenPixelDecoder | None]:
        """Both networks, ready to compute."""
        networks, (device, dtype) = self.build(), (self.setup.device, DTYPES[self.setup.precision])
        swin = frozen(networks.swin, device, dtype)
        if self.settings.pixel_decoder is None:
            return swin, None
        return swin, frozen(FrozenPixelDecoder(networks.pixel_decoder), device, dtype)


def _settings(files: HubFolder, published: VisualSettings) -> VisualSettings:
    """The sizes in a checkpoint's config, and the size of the frames in its preprocessing."""
    if files.source.folder is None and files.source.kind == "random":
        return published
    ensure_torchvision()
    from transformers.models.mask2former.configuration_mask2former import Mask2FormerConfig

    told = files.settings({})
    if not told:
        return published
    config = files.config(Mask2FormerConfig, told)
    backbone, size = config.backbone_config, files.settings({}, PREPROCESSOR).get("size")
    if backbone.model_type != "swin":
        raise OtherArchitecture(f"{CONFIG} of {files.folder or files.repository} has a backbone "
                                f"{backbone.model_type!r}; accepted: swin")  # fmt: skip
    sides = size if isinstance(size, dict) else {"height": size}
    side = sides.get("height") or sides.get("shortest_edge") or published.swin.input_size
    swin = SwinSettings(
        input_size=-(-int(side) // DIVISOR) * DIVISOR, window=backbone.window_size, channels=backbone.embed_dim,
        depths=tuple(backbone.depths), num_heads=tuple(backbone.num_heads), patch_size=backbone.patch_size,
    )
    decoder = PixelDecoderSettings(
        in_channels=tuple(channels for channels, _, _ in swin.levels.values()), channels=config.feature_size,
        mask_channels=config.mask_feature_size, num_layers=config.encoder_layers,
        num_heads=config.num_attention_heads, feedforward_channels=config.encoder_feedforward_dim,
    )  # fmt: skip
    return replace(published, swin=swin, pixel_decoder=decoder)


def _from_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone and pixel decoder of a Mask2Former checkpoint, with the names of `VisualNetworks`."""
    inside = {key.removeprefix(_CHECKPOINT_PREFIX): value for key, value in state.items()
              if key.startswith(_CHECKPOINT_PREFIX)}  # fmt: skip
    swin = from_mask2former({k.removeprefix("encoder."): v for k, v in inside.items() if k.startswith("encoder.")})
    decoder = {k.removeprefix("decoder."): v for k, v in inside.items() if k.startswith("decoder.")}
    return {f"swin.{k}": v for k, v in swin.items()} | {f"pixel_decoder.decoder.{k}": v for k, v in decoder.items()}


_SWIN_BASE = SwinSettings(input_size=384, window=12, channels=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_DECODER_BASE = PixelDecoderSettings(
    in_channels=(128, 256, 512, 1024), channels=256, mask_channels=256, num_layers=6, num_heads=8,
    feedforward_channels=1024,
)  # fmt: skip
BASE = VisualSettings(
    swin=_SWIN_BASE, pixel_decoder=_DECODER_BASE,
    repository="facebook/mask2former-swin-base-ade-semantic", folder="mask2former",
)
IMAGENET = VisualSettings(
    swin=_SWIN_BASE, pixel_decoder=None,
    repository="timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k", folder="swin",
)  # fmt: skip
_SWINS = {
    "tiny": SwinSettings(input_size=384, window=7, channels=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "small": SwinSettings(input_size=384, window=7, channels=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "base": _SWIN_BASE,
    "large": SwinSettings(input_size=384, window=12, channels=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
_NUM_PARAMETERS = {"tiny": 32_942_202, "small": 54_260_106, "base": 92_424_760, "large": 200_991_348}
TINY = VisualSettings(
    swin=SwinSettings(input_size=96, window=6, channels=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    pixel_decoder=PixelDecoderSettings(
        in_channels=(32, 64, 128, 256), channels=96, mask_channels=96, num_layers=2, num_heads=4,
        feedforward_channels=256,
    ),
    shipped=Path(__file__).parents[1] / "presets" / "tiny" / "visual.safetensors",
)  # fmt: skip


# The paper's encoder: Swin-B and the pixel decoder of Mask2Former, trained on ADE20k.
mask2former_swin_base_ade = partial(
    VisualEncoder, "mask2former-swin-base-ade", BASE, licence=AS_THE_HUB_SAYS, num_parameters=92_424_760
)
# Its Swin-B with ImageNet weights; a head trains its own pixel decoder on its maps.
swin_base_imagenet = partial(
    VisualEncoder, "swin-base-imagenet", IMAGENET, licence="MIT", num_parameters=86_876_536
)
# A small Swin and pixel decoder, pretrained on synthetic frames.
tiny_swin = partial(VisualEncoder, "tiny-swin", TINY, licence="Apache-2.0", num_parameters=2_586_318)


def mask2former(setup: EncoderSetup, model: str) -> VisualEncoder:
    """Any Mask2Former with a Swin, by its name on the hub, as mask2former:swin-tiny-coco-panoptic.

    Sizes are those of the checkpoint's own files; without files, 384 px and the Swin that the name tells.
    """
    data, task = "(?:IN21k-)?(?:ade|coco|cityscapes|mapillary-vistas)", "(?:semantic|panoptic|instance)"
    match = re.fullmatch(rf"swin-(\w+)-{data}-{task}", model)
    if match is None or match[1] not in _SWINS:
        known = [f"swin-{size}-{task}" for size in _SWINS for task in
                 ("ade-semantic", "coco-panoptic", "coco-instance", "cityscapes-semantic")]  # fmt: skip
        raise ConfigError(f"no Mask2Former is called {model!r}; {nearest(model, known)}")
    swin = _SWINS[match[1]]
    decoder = replace(_DECODER_BASE, in_channels=tuple(channels for channels, _, _ in swin.levels.values()))
    name = f"mask2former-{model}"
    published = VisualSettings(swin=swin, pixel_decoder=decoder, repository=f"facebook/{name}", fixed=False)
    return VisualEncoder(name, published, setup, AS_THE_HUB_SAYS, _NUM_PARAMETERS[match[1]])


mask2former_tiny, mask2former_small, mask2former_base, mask2former_large = (
    partial(mask2former, model=f"swin-{size}-coco-panoptic") for size in _SWINS
)

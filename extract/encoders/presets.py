"""Named sets of encoder sizes: `base` as in the paper, `imagenet` with another backbone, `released` with the text
encoder and the audio windows of the paper's public release, `tiny` for demonstrations."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.choices import LEVELS
from extract.encoders import ClipEncoder, ItemEncoder, refuse_precision
from extract.encoders.pixel_decoder import PixelDecoderSettings
from extract.encoders.roberta import RobertaEncoder, RobertaSettings
from extract.encoders.swin import SwinSettings
from extract.encoders.vggish import VGGishEncoder, VGGishSettings
from extract.encoders.visual import VisualEncoder, VisualSettings
from extract.encoders.weights import WeightSource
from refavs.choices import Precision
from refavs.config import nearest
from refavs.errors import ConfigError

SHIPPED = Path(__file__).parents[1] / "presets"
TOKENIZER = SHIPPED / "tiny" / "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sizes of every frozen encoder, and how much work one shard is.

    Attributes:
        levels: visual maps that are stored where the user does not say: those that the preset's head reads.
        rows_per_shard: by table. A shard is computed, written and repeated as a whole.
    """

    name: str
    visual: VisualSettings
    audio: VGGishSettings
    text: RobertaSettings
    levels: tuple[str, ...] = ("pixel_decoder",)
    rows_per_shard: dict[str, int]

    @property
    def swin(self) -> SwinSettings:
        """Sizes of the backbone."""
        return self.visual.swin

    @property
    def pixel_decoder(self) -> PixelDecoderSettings:
        """Sizes of the pixel decoder."""
        return self.visual.pixel_decoder

    @property
    def input_size(self) -> int:
        """Side of the frames that the visual encoder takes, and of the stored masks, px."""
        return self.visual.swin.input_size

    @property
    def num_frames(self) -> int:
        """Seconds taken of a clip, one frame each."""
        return self.visual.num_frames


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="base",
            visual=VisualSettings(
                name="swin_base_patch4_window12_384, mask2former pixel decoder",
                swin=SwinSettings(
                    input_size=384, window=12, channels=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)
                ),
                pixel_decoder=PixelDecoderSettings(
                    in_channels=(128, 256, 512, 1024), channels=256, mask_channels=256, num_layers=6, num_heads=8,
                    feedforward_channels=1024,
                ),
                num_frames=10,
            ),
            audio=VGGishSettings(num_frames=10),
            text=RobertaSettings(
                length=25, channels=768, num_layers=12, num_heads=12, feedforward_channels=3072, vocabulary=50265,
                tokenizer=TOKENIZER,
            ),
            rows_per_shard={"clips": 4, "objects": 64, "text": 128},
        ),
        Preset(
            name="tiny",
            visual=VisualSettings(
                name="tiny swin, mask2former pixel decoder",
                swin=SwinSettings(
                    input_size=96, window=6, channels=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)
                ),
                pixel_decoder=PixelDecoderSettings(
                    in_channels=(32, 64, 128, 256), channels=96, mask_channels=96, num_layers=2, num_heads=4,
                    feedforward_channels=256,
                ),
                num_frames=10,
                shipped=SHIPPED / "tiny" / "visual.safetensors",
            ),
            audio=VGGishSettings(num_frames=10, always_random=True),
            text=RobertaSettings(
                length=16, channels=128, num_layers=2, num_heads=4, feedforward_channels=512, vocabulary=1024,
                tokenizer=TOKENIZER, always_random=True,
            ),
            rows_per_shard={"clips": 8, "objects": 128, "text": 256},
        ),
    )
}
PRESETS["imagenet"] = dataclasses.replace(
    PRESETS["base"], name="imagenet", levels=("backbone",), visual=dataclasses.replace(
        PRESETS["base"].visual, name="swin_base_patch4_window12_384 of timm, ImageNet", imagenet=True
    ),
)  # fmt: skip

PRESETS["released"] = dataclasses.replace(
    PRESETS["base"], name="released", levels=("backbone",), text=dataclasses.replace(
        PRESETS["base"].text, num_layers=6, repository="distilbert/distilroberta-base", keeps_padding=True
    ), audio=dataclasses.replace(PRESETS["base"].audio, windows="back_to_back"),
)  # fmt: skip


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The encoders of one run, by what they are given, and the device on which they compute."""

    visual: ClipEncoder
    audio: ItemEncoder[Any, Any]
    text: RobertaEncoder
    device: str = "cpu"

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Fingerprint of each stream."""
        parts = [encoder.fingerprints() for encoder in (self.visual, self.audio, self.text)]
        return {stream: facts for part in parts for stream, facts in part.items()}


def build_encoders(
    preset: Preset, weights: WeightSource, levels: tuple[str, ...], precision: Precision, device: str = "cpu"
) -> Encoders:
    """The encoders of a preset; cheap, weights are read when they are first used.

    Args:
        precision: of Swin, pixel decoder and VGGish; RoBERTa stays in fp32.

    Raises:
        ConfigError: a level that does not exist, or none at all; or a precision that the device does not compute in.
    """
    for level in levels:
        if level not in LEVELS:
            raise ConfigError(f"unknown level {level!r} in --levels; {nearest(level, LEVELS)}")
    if not levels:
        raise ConfigError(f"--levels names no level; accepted: {', '.join(LEVELS)}, or both joined by a comma")
    if preset.visual.imagenet and "pixel_decoder" in levels:
        raise ConfigError(f"preset {preset.name} has no pixel decoder; give --levels backbone, and train one in the "
                          "head by model.trained=fusion+transformer_decoder+pixel_decoder")
    refuse_precision(precision, device)
    return Encoders(
        visual=VisualEncoder(preset.visual, weights, levels, precision, device),
        audio=VGGishEncoder(preset.audio, weights, precision, device),
        text=RobertaEncoder(preset.text, weights, device), device=device,
    )

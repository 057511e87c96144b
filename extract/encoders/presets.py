"""Presets: named lists of streams with the settings of their store."""

from dataclasses import dataclass

from refavs.config import nearest
from refavs.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A list of streams.

    Attributes:
        about: description for the help.
        streams: `<encoder>` or `<encoder>/<level>`.
        mask_size: default side of the stored masks in pixels.
    """

    about: str
    streams: tuple[str, ...]
    mask_size: int = 384


PRESETS = {
    "base": Preset(
        about="the paper's, Swin-B 384 with Mask2Former's pixel decoder",
        streams=("mask2former-swin-base-ade/pixel_decoder", "vggish", "roberta-base"),
    ),
    "imagenet": Preset(
        about="the same without a pixel decoder, Swin-B with the weights of ImageNet",
        streams=("swin-base-imagenet/backbone", "vggish", "roberta-base"),
    ),
    "released": Preset(
        about="the backbone of base with the text encoder and the audio windows of the paper's public release",
        streams=("mask2former-swin-base-ade/backbone", "vggish-back-to-back", "distilroberta-base"),
    ),
    "tiny": Preset(
        about="small networks for demonstrations",
        streams=("tiny-swin/pixel_decoder", "tiny-vggish", "tiny-roberta"), mask_size=96,
    ),
}  # fmt: skip


def preset_named(name: str) -> Preset:
    """The preset with that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]

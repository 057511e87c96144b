"""Named sets of encoder sizes: `base` as in the paper, `tiny` for demonstrations and tests."""

from dataclasses import dataclass
from pathlib import Path

from extract.encoders.pixel_decoder import PixelDecoderSettings
from extract.encoders.swin import SwinSettings
from refavs.config import nearest
from refavs.errors import ConfigError

SHIPPED = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The sizes of every frozen encoder, and the shape of what they are given."""

    name: str
    input_size: int
    num_frames: int
    swin: SwinSettings
    pixel_decoder: PixelDecoderSettings


def _preset(name: str, swin: SwinSettings, **pixel_decoder: int) -> Preset:
    in_channels = tuple(channels for channels, _, _ in swin.levels.values())
    return Preset(
        name=name, input_size=swin.input_size, num_frames=10, swin=swin,
        pixel_decoder=PixelDecoderSettings(in_channels=in_channels, **pixel_decoder),
    )


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset(
            "base",
            SwinSettings(input_size=384, window=12, channels=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
            channels=256, mask_channels=256, num_layers=6, num_heads=8, feedforward_channels=1024,
        ),
        _preset(
            "tiny",
            SwinSettings(input_size=96, window=6, channels=48, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24)),
            channels=96, mask_channels=96, num_layers=2, num_heads=4, feedforward_channels=256,
        ),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {nearest(name, PRESETS)}")
    return PRESETS[name]

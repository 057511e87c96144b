"""Encoders by name: those of this package, one line each, and those that installed packages add."""

from collections.abc import Mapping

from extract.encoders.protocol import Encoder, EncoderSetup
from refavs.plugins import all_entries, entry_named

GROUP = "refavs.encoders"
BUILT_IN: Mapping[str, str] = {
    "mask2former-swin-base-ade": "extract.encoders.mask2former:mask2former_swin_base_ade",
    "swin-base-imagenet": "extract.encoders.mask2former:swin_base_imagenet",
    "tiny-swin": "extract.encoders.mask2former:tiny_swin",
    "vggish": "extract.encoders.vggish:vggish",
    "vggish-back-to-back": "extract.encoders.vggish:vggish_back_to_back",
    "tiny-vggish": "extract.encoders.vggish:tiny_vggish",
    "roberta-base": "extract.encoders.roberta:roberta_base",
    "distilroberta-base": "extract.encoders.roberta:distilroberta_base",
    "tiny-roberta": "extract.encoders.roberta:tiny_roberta",
}


def make_encoder(name: str, setup: EncoderSetup) -> Encoder:
    """Creates the encoder with that name; does not load weights.

    Raises:
        ConfigError: the name is unknown, or its package cannot be imported.
    """
    return entry_named(name, GROUP, BUILT_IN)(setup)


def all_encoders(setup: EncoderSetup) -> dict[str, Encoder]:
    """All encoders by name; warns about packages that cannot be imported."""
    return {name: make(setup) for name, make in all_entries(GROUP, BUILT_IN).items()}

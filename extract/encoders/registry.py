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
    "languagebind-audio": "extract.encoders.languagebind:languagebind_audio",
    "clap-htsat-unfused": "extract.encoders.clap:clap_audio",
    "clap-htsat-fused": "extract.encoders.clap:clap_audio_fused",
    "ast-audioset": "extract.encoders.ast_audioset:ast_audioset",
    "beats-iter3-plus": "extract.encoders.beats:beats_audioset",
    "whisper-tiny": "extract.encoders.whisper:whisper_tiny",
    "whisper-base": "extract.encoders.whisper:whisper_base",
    "whisper-small": "extract.encoders.whisper:whisper_small",
    "whisper-medium": "extract.encoders.whisper:whisper_medium",
    "whisper-large-v3": "extract.encoders.whisper:whisper_large_v3",
    "roberta-base": "extract.encoders.roberta:roberta_base",
    "roberta-large": "extract.encoders.roberta:roberta_large",
    "distilroberta-base": "extract.encoders.roberta:distilroberta_base",
    "bert-base-uncased": "extract.encoders.bert:bert_base_uncased",
    "flan-t5-small": "extract.encoders.flan_t5:flan_t5_small",
    "flan-t5-base": "extract.encoders.flan_t5:flan_t5_base",
    "flan-t5-large": "extract.encoders.flan_t5:flan_t5_large",
    "flan-t5-xl": "extract.encoders.flan_t5:flan_t5_xl",
    "clip-text-base-patch32": "extract.encoders.clip_text:clip_text_base",
    "clip-text-large-patch14": "extract.encoders.clip_text:clip_text_large",
    "languagebind-text": "extract.encoders.clip_text:languagebind_text",
    "clap-text-unfused": "extract.encoders.clap:clap_text",
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

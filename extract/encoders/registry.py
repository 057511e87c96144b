"""Encoders by name: those of this package, one line each, and those that installed packages add."""

from collections.abc import Mapping
from inspect import signature
from typing import Any

from extract.encoders.protocol import Encoder, EncoderSetup
from refavs.errors import ConfigError
from refavs.plugins import all_entries, entries_of, entry_named

GROUP = "refavs.encoders"
BUILT_IN: Mapping[str, str] = {
    "mask2former-swin-base-ade": "extract.encoders.mask2former:mask2former_swin_base_ade",
    "mask2former-swin-tiny-coco-panoptic": "extract.encoders.mask2former:mask2former_tiny",
    "mask2former-swin-small-coco-panoptic": "extract.encoders.mask2former:mask2former_small",
    "mask2former-swin-base-coco-panoptic": "extract.encoders.mask2former:mask2former_base",
    "mask2former-swin-large-coco-panoptic": "extract.encoders.mask2former:mask2former_large",
    "mask2former": "extract.encoders.mask2former:mask2former",
    "swin-base-imagenet": "extract.encoders.mask2former:swin_base_imagenet",
    "tiny-swin": "extract.encoders.mask2former:tiny_swin",
    "timm": "extract.encoders.timm_backbone:timm_backbone",
    "dinov2-small": "extract.encoders.dino:dinov2_small",
    "dinov2-base": "extract.encoders.dino:dinov2_base",
    "dinov2-large": "extract.encoders.dino:dinov2_large",
    "dinov2-with-registers-small": "extract.encoders.dino:dinov2_small_registers",
    "dinov2-with-registers-base": "extract.encoders.dino:dinov2_base_registers",
    "dinov2-with-registers-large": "extract.encoders.dino:dinov2_large_registers",
    "dinov3-vits16": "extract.encoders.dino:dinov3_small",
    "dinov3-vitb16": "extract.encoders.dino:dinov3_base",
    "dinov3-vitl16": "extract.encoders.dino:dinov3_large",
    "dinov3-vith16plus": "extract.encoders.dino:dinov3_huge",
    "clip-vit-base-patch32": "extract.encoders.clip_vision:clip_base_32",
    "clip-vit-base-patch16": "extract.encoders.clip_vision:clip_base_16",
    "clip-vit-large-patch14": "extract.encoders.clip_vision:clip_large_14",
    "pvt-v2-b2": "extract.encoders.pvt:pvt_v2_b2",
    "pvt-v2-b5": "extract.encoders.pvt:pvt_v2_b5",
    "sam-vit-base": "extract.encoders.sam:sam_base",
    "sam-vit-large": "extract.encoders.sam:sam_large",
    "sam-vit-huge": "extract.encoders.sam:sam_huge",
    "sam2.1-hiera-tiny": "extract.encoders.sam2:sam2_tiny",
    "sam2.1-hiera-small": "extract.encoders.sam2:sam2_small",
    "sam2.1-hiera-base-plus": "extract.encoders.sam2:sam2_base_plus",
    "sam2.1-hiera-large": "extract.encoders.sam2:sam2_large",
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

    Args:
        name: of an entry, or `<entry>:<model>` where the entry is a family, whose factory takes the model as well.
            `<entry>-<model>`, as its streams are called, names the same encoder.
        setup: the user's choices.

    Raises:
        ConfigError: the name is unknown, or its package cannot be imported.
    """
    entries = entries_of(GROUP, BUILT_IN)
    entry, model = name, ""
    if name not in entries:
        entry, _, model = name.partition(":" if ":" in name else "-")
    if model and entry in entries and is_family(make := entry_named(entry, GROUP, BUILT_IN)):
        return make(setup, model)
    make = entry_named(name, GROUP, BUILT_IN)
    if is_family(make):
        raise ConfigError(f"{name} is a family of encoders; name one of them, {name}:MODEL: {summary(make)}")
    return make(setup)


def all_encoders(setup: EncoderSetup) -> dict[str, Encoder]:
    """All encoders by name; warns about packages that cannot be imported."""
    return {name: make(setup) for name, make in all_entries(GROUP, BUILT_IN).items() if not is_family(make)}


def all_families() -> dict[str, str]:
    """What each family contains, by its name."""
    return {name: summary(make) for name, make in all_entries(GROUP, BUILT_IN).items() if is_family(make)}


def is_family(make: Any) -> bool:
    """Whether a factory takes a model beside the setup."""
    required = [each for each in signature(make).parameters.values() if each.default is each.empty]
    return len(required) == 2


def summary(make: Any) -> str:
    """The first line of a factory's documentation."""
    return (make.__doc__ or "").partition("\n")[0].rstrip(".")

"""Folders of fake pretrained weights in the hub's layout: right names and sizes, random values of order 1."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from extract.encoders.hub_text import TextSettings
from extract.encoders.mask2former import VisualSettings
from extract.encoders.tokenizer import train_tokenizer
from refavs.machine.torchvision_shim import ensure_torchvision


def randomise(module: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights so large that every map has order 1, where small ones hide a wrong wiring; biases and norms likewise."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if id(parameter) in embeddings or name.endswith("level_embed"):
                centre, spread = 0.0, 1.0
            elif parameter.ndim > 1:
                centre, spread = 0.0, gain * parameter[0].numel() ** -0.5
            else:
                centre, spread = float("norm" in name.lower() and name.endswith("weight")), 0.3
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))


def mask2former_config(visual: VisualSettings, **options: Any) -> Any:
    """transformers' description of a Mask2Former with the Swin and the pixel decoder of `visual`."""
    ensure_torchvision()
    from transformers import Mask2FormerConfig, SwinConfig

    swin, pixel_decoder = visual.swin, visual.pixel_decoder
    assert pixel_decoder is not None
    backbone = SwinConfig(
        image_size=swin.input_size, embed_dim=swin.channels, depths=list(swin.depths), num_heads=list(swin.num_heads),
        window_size=swin.window, drop_path_rate=0.0,
        out_features=[f"stage{stage + 1}" for stage in range(len(swin.depths))],
    )
    return Mask2FormerConfig(
        backbone_config=backbone, feature_size=pixel_decoder.channels, mask_feature_size=pixel_decoder.mask_channels,
        encoder_layers=pixel_decoder.num_layers, encoder_feedforward_dim=pixel_decoder.feedforward_channels,
        num_attention_heads=pixel_decoder.num_heads, hidden_dim=pixel_decoder.channels, dropout=0.0, **options,
    )


def write_mask2former(folder: Path, visual: VisualSettings, seed: int = 0, **options: Any) -> nn.Module:
    """Saves a `Mask2FormerForUniversalSegmentation` as the hub has it into `folder`, and returns it."""
    ensure_torchvision()
    from transformers import Mask2FormerForUniversalSegmentation

    model = Mask2FormerForUniversalSegmentation(mask2former_config(visual, **options)).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    return model


def write_roberta(folder: Path, settings: TextSettings, texts: list[str], seed: int = 0) -> nn.Module:
    """Saves a RoBERTa with its language head, as the hub has it, and a tokenizer trained on `texts`."""
    ensure_torchvision()
    from transformers import RobertaConfig, RobertaForMaskedLM

    model = RobertaForMaskedLM(RobertaConfig(**settings.config)).eval()
    randomise(model, seed)
    model.save_pretrained(folder)
    train_tokenizer(texts, 400).save(str(folder / "tokenizer.json"))
    return model

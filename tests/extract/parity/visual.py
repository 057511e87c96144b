"""Visual encoders against the reference classes: small relatives, saved as the hub has them and read by our path."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from extract.encoders.frame_encoder import FrameEncoder
from extract.encoders.protocol import EncoderSetup, Frames
from extract.encoders.registry import make_encoder
from extract.encoders.weights import WeightSource
from tests.support.small_networks import WRITERS

Reference = Callable[[Any, Tensor], Mapping[str, Tensor]]


def small_encoder(name: str, root: Path) -> tuple[FrameEncoder, Any]:
    """An encoder with the weights of its small relative, and the network that these were saved from."""
    model = WRITERS[name](root)
    encoder = make_encoder(name, EncoderSetup(weights=WeightSource(folder=root)))
    assert isinstance(encoder, FrameEncoder)
    return encoder, model


def difference(found: Tensor, expected: Tensor) -> float:
    """Greatest difference relative to the greatest value expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def compared(name: str, reference: Reference, root: Path) -> float:
    """The greatest difference of any array."""
    encoder, model = small_encoder(name, root)
    assert isinstance(encoder.takes, Frames)
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (2, *encoder.takes.shape), dtype=torch.uint8, generator=generator)
    frames[..., 3:] = 255
    inputs = encoder.takes.normalised(frames)
    found = encoder.features(inputs, list(encoder.shapes()))
    expected = reference(model, inputs)
    assert found.keys() == expected.keys()
    return max(difference(found[path], expected[path]) for path in found)


def dino(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    tokens = model(pixel_values=inputs).last_hidden_state
    side = inputs.shape[-1] // model.config.patch_size
    return {"patches/map": rearrange(tokens[:, -side * side :], "f (h w) c -> f c h w", h=side),
            "cls/vector": tokens[:, 0]}  # fmt: skip


def clip(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    states = model.vision_model(pixel_values=inputs, output_hidden_states=True).hidden_states
    last, before = (rearrange(part[:, 1:], "f (h w) c -> f c h w", h=4) for part in (states[-1], states[-2]))
    pooled = model.get_image_features(pixel_values=inputs).pooler_output
    return {"patches/map": last, "penultimate/map": before, "pooled/vector": pooled}


def pvt(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    states = model.pvt_v2(pixel_values=inputs, output_hidden_states=True).hidden_states
    return {f"res{number + 2}": maps for number, maps in enumerate(states)}


def sam(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    return {"map": model.get_image_embeddings(inputs)}


def sam2(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    fine, middle, coarse = model.get_image_embeddings(inputs)
    without = coarse - rearrange(model.no_memory_embedding, "1 1 c -> c 1 1")
    return {"high_resolution/s4": fine, "high_resolution/s8": middle, "image/map": without}


def mask2former(model: Any, inputs: Tensor) -> dict[str, Tensor]:
    found = model.model.pixel_level_module(inputs, output_hidden_states=True)
    pyramid = {f"backbone/res{number + 2}": maps for number, maps in enumerate(found.encoder_hidden_states)}
    s32, s16, s8 = found.decoder_hidden_states
    decoded = {"mask_features": found.decoder_last_hidden_state, "s8": s8, "s16": s16, "s32": s32}
    return pyramid | {f"pixel_decoder/{name}": maps for name, maps in decoded.items()}


def timm(model: Any, inputs: Tensor, first: int | None = None) -> dict[str, Tensor]:
    maps = model.forward_intermediates(inputs, intermediates_only=True, output_fmt="NCHW")
    return {"map": maps[-1]} if first is None else {f"res{first + n}": each for n, each in enumerate(maps)}


_REFERENCES: dict[str, Reference] = {"dino": dino, "clip": clip, "pvt": pvt, "sam-": sam, "sam2": sam2,
                                     "mask2former": mask2former}  # fmt: skip
CASES: dict[str, Callable[[Path], float]] = {
    name: partial(compared, name, reference)
    for start, reference in _REFERENCES.items() for name in WRITERS if name.startswith(start)
} | {
    "timm:test_resnet.r160_in1k": partial(compared, "timm:test_resnet.r160_in1k", partial(timm, first=1)),
    "timm:test_vit.r160_in1k": partial(compared, "timm:test_vit.r160_in1k", timm),
    "timm:swin_tiny_patch4_window7_224.ms_in1k": partial(
        compared, "timm:swin_tiny_patch4_window7_224.ms_in1k", partial(timm, first=2)
    ),
}  # fmt: skip

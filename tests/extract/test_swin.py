"""The backbone and pixel decoder against Mask2Former's own modules in transformers."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from extract.encoders.mask2former import BASE, IMAGENET, TINY, VisualEncoder, VisualSettings
from extract.encoders.pixel_decoder import FrozenPixelDecoder, PixelDecoderSettings, build_pixel_decoder
from extract.encoders.protocol import EncoderSetup, Frames
from extract.encoders.swin import SwinSettings, build_swin, from_mask2former, from_timm
from extract.encoders.weights import WeightSource
from refavs.errors import ConfigError, WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise

# As in preset base, the last map is exactly one window: the case in which timm by itself would not shift.
SWIN = SwinSettings(input_size=64, window=4, channels=32, depths=(2, 2, 2), num_heads=(2, 4, 8))
PIXEL_DECODER = PixelDecoderSettings(
    in_channels=(32, 64, 128, 256), channels=64, mask_channels=48, num_layers=2, num_heads=4, feedforward_channels=80
)
FOUR_STAGES = dataclasses.replace(SWIN, input_size=128, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 8))


def reference(settings: SwinSettings, pixel_decoder: PixelDecoderSettings) -> nn.Module:
    """transformers' pixel level module with weights large enough that maps are of order 1."""
    ensure_torchvision()
    from transformers import Mask2FormerConfig, SwinConfig
    from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelLevelModule

    backbone = SwinConfig(
        image_size=settings.input_size, embed_dim=settings.channels, depths=list(settings.depths),
        num_heads=list(settings.num_heads), window_size=settings.window, drop_path_rate=0.0,
        out_features=[f"stage{i + 1}" for i in range(len(settings.depths))],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=pixel_decoder.channels, mask_feature_size=pixel_decoder.mask_channels,
        encoder_layers=pixel_decoder.num_layers, num_attention_heads=pixel_decoder.num_heads,
        encoder_feedforward_dim=pixel_decoder.feedforward_channels, dropout=0.0,
    )
    module = Mask2FormerPixelLevelModule(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            spread = 0.1 if parameter.ndim > 1 else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    return module


def part(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in module.state_dict().items() if k.startswith(prefix)}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return reference(FOUR_STAGES, PIXEL_DECODER)


def test_swin_equals_the_backbone_of_mask2former(module: nn.Module) -> None:
    swin = build_swin(FOUR_STAGES).eval()
    swin.load_state_dict(from_mask2former(part(module, "encoder.")))
    frames = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        ours, theirs = swin(frames), module.encoder(frames).feature_maps
    assert [tuple(v.shape[1:]) for v in ours.values()] == list(FOUR_STAGES.levels.values())
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(ours.values(), theirs, strict=True))


def test_pixel_decoder_equals_mask2former(module: nn.Module) -> None:
    decoder = build_pixel_decoder(PIXEL_DECODER).eval()
    decoder.decoder.load_state_dict(part(module, "decoder."))
    pyramid = {name: torch.randn(2, *shape) for name, shape in FOUR_STAGES.levels.items()}
    with torch.no_grad():
        ours, theirs = decoder(pyramid), module.decoder(list(pyramid.values()))
        frozen = FrozenPixelDecoder(decoder)(pyramid)
    assert list(ours) == list(frozen) == ["mask_features", "s8", "s16", "s32"]
    coarse_to_fine = zip(("s32", "s16", "s8"), theirs.multi_scale_features, strict=True)
    for name, expected in (("mask_features", theirs.mask_features), *coarse_to_fine):
        assert relative_error(ours[name], expected) < 1e-6
        assert relative_error(frozen[name], expected) < 1e-5


def test_frozen_pixel_decoder_samples_outside_of_the_maps_as_zero(module: nn.Module) -> None:
    """Offsets of many maps' widths, in every direction."""
    decoder = build_pixel_decoder(PIXEL_DECODER).eval()
    decoder.decoder.load_state_dict(part(module, "decoder."))
    for layer in decoder.decoder.encoder.layers:
        bias = layer.self_attn.sampling_offsets.bias
        nn.init.uniform_(bias, -40, 40)
    pyramid = {name: torch.randn(2, *shape) for name, shape in FOUR_STAGES.levels.items()}
    with torch.no_grad():
        ours, theirs = FrozenPixelDecoder(decoder)(pyramid), decoder(pyramid)
    assert all(relative_error(ours[name], expected) < 1e-5 for name, expected in theirs.items())


def test_swin_shifts_windows_where_the_map_is_one_window() -> None:
    swin = build_swin(SWIN)
    last_block = swin.trunk.layers[-1].blocks[-1]
    assert tuple(last_block.window_size) == (4, 4) and tuple(last_block.shift_size) == (2, 2)


def test_conversion_reads_names_of_older_checkpoints(module: nn.Module) -> None:
    old = {}
    for key, value in part(module, "encoder.").items():
        key = key.removeprefix("swin.")
        for new, name in (
            ("attention.q_proj", "attention.self.query"), ("attention.k_proj", "attention.self.key"),
            ("attention.v_proj", "attention.self.value"), ("attention.o_proj", "attention.output.dense"),
            ("attention.relative_position_bias.", "attention.self."), ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ):
            key = key.replace(new, name)
        old[key] = value
    new_form, old_form = from_mask2former(part(module, "encoder.")), from_mask2former(old)
    assert new_form.keys() == old_form.keys() == build_swin(FOUR_STAGES).state_dict().keys()
    assert all(torch.equal(new_form[key], old_form[key]) for key in new_form)


def test_conversion_refuses_other_architectures() -> None:
    with pytest.raises(WeightsError, match=r"stem\.conv1.*accepted: a Mask2Former checkpoint with a Swin"):
        from_mask2former({"stem.conv1.weight": torch.zeros(1)})


def test_visual_encoder_reads_a_checkpoint_of_mask2former(module: nn.Module, tmp_path: Path) -> None:
    prefix = "model.pixel_level_module."
    (tmp_path / "mask2former").mkdir()
    checkpoint = {prefix + name: value for name, value in module.state_dict().items()}
    save_file(checkpoint | {"class_predictor.bias": torch.zeros(3)}, tmp_path / "mask2former" / "model.safetensors")
    settings = VisualSettings(swin=FOUR_STAGES, pixel_decoder=PIXEL_DECODER, repository="a/b", folder="mask2former")
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    encoder = VisualEncoder("small", settings, EncoderSetup(weights=WeightSource(folder=tmp_path)))
    found = encoder.encode([frames], ["pixel_decoder"])[0]
    inputs = Frames(size=128).normalised(torch.from_numpy(frames))
    with torch.no_grad():
        expected = module(inputs).decoder_last_hidden_state
    assert relative_error(torch.from_numpy(found["pixel_decoder/mask_features"]).float(), expected) < 1e-3


def test_swin_settings_refuse_sizes_that_do_not_halve() -> None:
    with pytest.raises(ConfigError, match=r"input size 100 px does not fit; .* a multiple of 32 px"):
        dataclasses.replace(FOUR_STAGES, input_size=100)


def test_pixel_decoder_starts_from_defined_weights() -> None:
    def state() -> dict[str, Tensor]:
        torch.manual_seed(0)
        return build_pixel_decoder(PIXEL_DECODER).state_dict()

    first, second = state(), state()
    assert all(torch.equal(first[key], second[key]) and first[key].isfinite().all() for key in first)
    offsets = rearrange(
        first["decoder.encoder.layers.0.self_attn.sampling_offsets.bias"],
        "(head level point xy) -> head level point xy", head=4, level=3, xy=2,
    )
    assert torch.allclose(offsets[0, 0, :, 0], torch.arange(1.0, 5.0))
    assert torch.allclose(offsets[0, 0, :, 1], torch.zeros(4))


def test_encoders_have_the_sizes_of_the_paper() -> None:
    assert BASE.swin.levels == {
        "res2": (128, 96, 96), "res3": (256, 48, 48), "res4": (512, 24, 24), "res5": (1024, 12, 12)
    }
    assert TINY.swin.levels["res2"][1:] == (24, 24) and TINY.swin.input_size == 96


@pytest.mark.parametrize("authors", [False, True], ids=["timm", "authors"])
def test_imagenet_swin_of_a_folder_equals_timms_own(tmp_path: Path, authors: bool) -> None:
    """Its last stage is one window, where timm does not shift. The authors' files merge patches a stage earlier."""
    theirs = timms(FOUR_STAGES)
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    if authors:
        state = {re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): value
                 for name, value in state.items()}  # fmt: skip
    (tmp_path / "swin").mkdir()
    save_file(state, tmp_path / "swin" / "model.safetensors")
    settings = VisualSettings(swin=FOUR_STAGES, pixel_decoder=None, repository="timm/small", folder="swin")
    encoder = VisualEncoder("small", settings, EncoderSetup(weights=WeightSource(folder=tmp_path)))
    frames = np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
    inputs = Frames(size=128).normalised(torch.from_numpy(frames))
    with torch.no_grad():
        expected = theirs.forward_intermediates(inputs, intermediates_only=True)
        found = encoder.build().swin(inputs)
    stored = encoder.encode([frames], ["backbone"])[0]
    for (name, ours), maps in zip(found.items(), expected, strict=True):
        assert 0.3 < maps.std() < 10 and relative_error(ours, maps) < 1e-5
        assert relative_error(torch.from_numpy(stored[f"backbone/{name}"]).float(), maps) < 1e-3


@pytest.mark.slow
def test_imagenet_swin_of_the_paper_equals_timms_own() -> None:
    ensure_torchvision()
    import timm

    theirs = timm.create_model("swin_base_patch4_window12_384", pretrained=False).eval()
    randomise(theirs, seed=3)
    swin = build_swin(IMAGENET.swin, imagenet=True).eval()
    swin.load_state_dict(from_timm(theirs.state_dict(), swin))
    frames = torch.randn(1, 3, 384, 384)
    with torch.no_grad():
        expected = theirs.forward_intermediates(frames, intermediates_only=True)
        for ours, maps in zip(swin(frames).values(), expected, strict=True):
            assert 0.3 < maps.std() < 30 and relative_error(ours, maps) < 1e-5


def timms(settings: SwinSettings) -> nn.Module:
    ensure_torchvision()
    from timm.models.swin_transformer import SwinTransformer

    theirs = SwinTransformer(
        img_size=settings.input_size, patch_size=settings.patch_size, window_size=settings.window,
        embed_dim=settings.channels, depths=settings.depths, num_heads=settings.num_heads, num_classes=5,
    ).eval()
    randomise(theirs, seed=3)
    return theirs


def test_imagenet_swin_has_no_pixel_decoder() -> None:
    setup = EncoderSetup(weights=WeightSource(kind="random"))
    base, imagenet = (VisualEncoder("a", settings, setup).arrays(10) for settings in (BASE, IMAGENET))
    assert imagenet == {"backbone": base["backbone"]} and BASE.swin == IMAGENET.swin

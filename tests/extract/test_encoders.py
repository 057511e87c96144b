"""What every encoder promises, and each one's own behaviour."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.encoders import Encoder
from extract.encoders.roberta import FEATURES, VALID
from extract.encoders.vggish import PATCH_SAMPLES, log_mel_patches
from extract.media import SAMPLE_RATE_HZ, normalised
from extract.presets import Encoders, build_encoders, preset_named
from extract.weights import WeightSource
from refavs.errors import ConfigError, WeightsError

TINY = preset_named("tiny")


def encoders(levels: tuple[str, ...] = ("backbone", "pixel_decoder"), **weights: Any) -> Encoders:
    return build_encoders(TINY, WeightSource(**{"kind": "random", **weights}), levels, "fp32")


@pytest.fixture(scope="module")
def shared() -> Encoders:
    return encoders()


def frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)


def sound(seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(10 * SAMPLE_RATE_HZ)).astype(np.float32)


INPUTS: dict[str, Callable[[int], Any]] = {
    "visual": frames, "audio": sound, "text": lambda seed: ["The loudest object.", "The star."][seed]
}


@pytest.mark.parametrize("stream", list(INPUTS))
def test_encoder_keeps_its_contract(shared: Encoders, stream: str) -> None:
    encoder = getattr(shared, stream)
    first = encoder.encode(INPUTS[stream](0))
    assert isinstance(encoder, Encoder) and encoder.stream == stream
    assert [spec.path for spec in encoder.specs()] == list(first)
    for spec in encoder.specs():
        assert first[spec.path].shape == spec.shape and first[spec.path].dtype == spec.dtype
        assert np.isfinite(first[spec.path]).all()
    fingerprint = encoder.fingerprint()
    assert {"name", "weights", "preprocessing", "input_size", "dtype"} <= set(fingerprint)
    assert fingerprint["weights"] == "random:0"
    # Independent of company, of the process and of torch's generator.
    torch.manual_seed(99)
    encoder.encode(INPUTS[stream](1))
    other = pickle.loads(pickle.dumps(getattr(encoders(), stream)))
    for again in (encoder, other):
        found = again.encode(INPUTS[stream](0))
        assert all(np.array_equal(found[path], first[path]) for path in first)
    changed = encoder.encode(INPUTS[stream](1))
    assert any(not np.array_equal(changed[path], first[path]) for path in first)


@pytest.mark.parametrize("stream", list(INPUTS))
def test_fingerprint_and_features_change_with_the_seed(shared: Encoders, stream: str) -> None:
    one, other = getattr(shared, stream), getattr(encoders(seed=1), stream)
    assert one.fingerprint() != other.fingerprint()
    first, second = one.encode(INPUTS[stream](0)), other.encode(INPUTS[stream](0))
    assert any(not np.array_equal(first[path], second[path]) for path in first)


def test_visual_levels_select_arrays_and_leave_values_alone(shared: Encoders) -> None:
    both = shared.visual.encode(frames())
    for level in ("backbone", "pixel_decoder"):
        encoder = encoders(levels=(level,)).visual
        found = encoder.encode(frames())
        assert list(found) == [path for path in both if f"/{level}/" in path]
        assert all(np.array_equal(found[path], both[path]) for path in found)
        assert encoder.fingerprint() == shared.visual.fingerprint()


def test_visual_maps_are_those_of_the_networks(shared: Encoders) -> None:
    found = shared.visual.encode(frames())
    networks = shared.visual._networks
    with torch.no_grad():
        pyramid = networks.swin(normalised(torch.from_numpy(frames())))
        maps = networks.pixel_decoder(pyramid)
    for name, expected in {**{f"backbone/{k}": v for k, v in pyramid.items()},
                           **{f"pixel_decoder/{k}": v for k, v in maps.items()}}.items():  # fmt: skip
        assert np.array_equal(found[f"clips/visual/{name}"], expected.half().numpy())


def test_visual_bf16_is_close_to_fp32_and_has_its_own_fingerprint(shared: Encoders) -> None:
    low = build_encoders(TINY, WeightSource(kind="random"), ("pixel_decoder",), "bf16").visual
    assert low.fingerprint()["precision"] == "bf16" and low.fingerprint() != shared.visual.fingerprint()
    path = "clips/visual/pixel_decoder/mask_features"
    one, other = (encoder.encode(frames())[path].astype(np.float64).ravel() for encoder in (low, shared.visual))
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


def test_audio_bf16_is_close_to_fp32(shared: Encoders) -> None:
    low = build_encoders(TINY, WeightSource(kind="random"), ("pixel_decoder",), "bf16").audio
    one, other = (encoder.encode(sound())["clips/audio/vggish"].ravel() for encoder in (low, shared.audio))
    assert low.fingerprint() != shared.audio.fingerprint() and one.dtype == np.float32
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


def test_shipped_weights_are_those_of_preset_tiny() -> None:
    encoders_ = build_encoders(TINY, WeightSource(), ("pixel_decoder",), "fp32")
    stamps = {stream: facts["weights"] for stream, facts in encoders_.fingerprints().items()}
    assert stamps["visual"].startswith("sha256:") and stamps["audio"] == stamps["text"] == "random:0"
    assert all(np.isfinite(maps).all() and maps.any() for maps in encoders_.visual.encode(frames()).values())


def test_visual_weights_of_a_folder_are_used_and_named(shared: Encoders, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(value) for name, value in shared.visual._networks.state_dict().items()}
    save_file(state, tmp_path / "visual.safetensors")
    encoder = encoders(kind="pretrained", folder=tmp_path).visual
    assert encoder.fingerprint()["weights"].startswith("sha256:")
    assert not any(maps.any() for maps in encoder.encode(frames()).values())


def test_visual_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file({"swin.stem": torch.zeros(3)}, tmp_path / "visual.safetensors")
    encoder = encoders(kind="pretrained", folder=tmp_path).visual
    with pytest.raises(WeightsError, match=r"visual\.safetensors belong to another architecture: .*--weights-dir"):
        encoder.encode(frames())


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown level 'backbones' in --levels; did you mean 'backbone'\?"):
        encoders(levels=("backbones",))
    with pytest.raises(ConfigError, match=r"--levels names no level; accepted: backbone, pixel_decoder"):
        encoders(levels=())


def test_audio_second_is_independent_of_the_others(shared: Encoders) -> None:
    whole = sound()
    only_third = np.zeros_like(whole)
    window = slice(2 * SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ + PATCH_SAMPLES)
    only_third[window] = whole[window]
    one, other = (shared.audio.encode(item)["clips/audio/vggish"] for item in (whole, only_third))
    np.testing.assert_allclose(one[2], other[2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(one[3], other[3], rtol=1e-2)


def test_audio_front_end_is_that_of_vggish() -> None:
    from torchvggish.vggish_input import waveform_to_examples

    patches = log_mel_patches(sound(), 10)
    assert patches.shape == (10, 1, 96, 64)
    # One patch on its own: exactly as many samples as its 96 windows reach.
    window = sound()[4 * SAMPLE_RATE_HZ : 4 * SAMPLE_RATE_HZ + PATCH_SAMPLES].astype(np.float64)
    expected = waveform_to_examples(window, SAMPLE_RATE_HZ)
    assert expected.shape == (1, 1, 96, 64)
    assert torch.allclose(patches[4:5], expected.detach())


def test_text_features_of_padding_are_zero(shared: Encoders) -> None:
    found = shared.text.encode("The star.")
    count = shared.text.num_tokens("The star.")
    assert found[VALID].tolist() == [position < count for position in range(16)]
    assert found[FEATURES][:count].any(axis=1).all() and not found[FEATURES][count:].any()


def test_text_that_is_too_long_is_named(shared: Encoders) -> None:
    long = "The object that was making a sound before the star and the disc started to be heard again."
    assert shared.text.overlong(["The star.", long]) == {long: shared.text.num_tokens(long)}
    assert shared.text.num_tokens(long) > 16 and shared.text.encode(long)[VALID].all()


def test_text_of_any_script_is_encoded(shared: Encoders) -> None:
    found = [shared.text.encode(text)[FEATURES] for text in ("é", "猫の声", "")]
    assert all(np.isfinite(features).all() for features in found) and not np.array_equal(found[0], found[1])


def test_base_text_with_random_weights_says_that_its_tokenizer_is_the_packages() -> None:
    text = build_encoders(preset_named("base"), WeightSource(kind="random"), ("backbone",), None).text
    assert "of this package" in text.fingerprint()["preprocessing"]
    assert text.specs()[0].shape == (25, 768)

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
from extract.encoders.pixel_decoder import FrozenPixelDecoder
from extract.encoders.presets import Encoders, build_encoders, preset_named
from extract.encoders.roberta import FEATURES, VALID
from extract.encoders.vggish import PATCH_SAMPLES, log_mel_patches
from extract.encoders.visual import VisualEncoder, levels_of
from extract.encoders.weights import WeightSource
from extract.media.clip import SAMPLE_RATE_HZ, normalised
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


LEVELS = ("backbone", "pixel_decoder")
INPUTS: dict[str, Callable[[int], Any]] = {
    "visual": frames, "audio": sound, "text": lambda seed: ["The loudest object.", "The star."][seed]
}
STREAMS = {"visual": ["visual/backbone", "visual/pixel_decoder"], "audio": ["audio"], "text": ["text"]}


def encode(encoder: Any, item: Any, levels: tuple[str, ...] = LEVELS) -> dict[str, np.ndarray]:
    if isinstance(encoder, VisualEncoder):
        return encoder.encode([item], levels)[0]
    return encoder.encode([encoder.prepare(item)])[0]


def cosines(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    flat = {path: (one[path].astype(np.float64).ravel(), other[path].astype(np.float64).ravel()) for path in one}
    return {path: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for path, (a, b) in flat.items()}


@pytest.mark.long
@pytest.mark.parametrize("kind", list(INPUTS))
def test_encoder_keeps_its_contract(shared: Encoders, kind: str) -> None:
    encoder = getattr(shared, kind)
    first = encode(encoder, INPUTS[kind](0))
    assert isinstance(encoder, Encoder)
    assert [spec.path for spec in encoder.specs()] == list(first)
    for spec in encoder.specs():
        assert first[spec.path].shape == spec.shape and first[spec.path].dtype == spec.dtype
        assert np.isfinite(first[spec.path]).all()
    fingerprints = encoder.fingerprints()
    assert list(fingerprints) == STREAMS[kind]
    for fingerprint in fingerprints.values():
        assert {"name", "weights", "preprocessing", "input_size", "precision", "dtype"} <= set(fingerprint)
        assert fingerprint["weights"] == "random:0"
    # Independent of company, of the process and of torch's generator.
    torch.manual_seed(99)
    encode(encoder, INPUTS[kind](1))
    other = pickle.loads(pickle.dumps(getattr(encoders(), kind)))
    for again in (encoder, other):
        found = encode(again, INPUTS[kind](0))
        assert all(np.array_equal(found[path], first[path]) for path in first)
    changed = encode(encoder, INPUTS[kind](1))
    assert any(not np.array_equal(changed[path], first[path]) for path in first)


@pytest.mark.long
@pytest.mark.parametrize("kind", list(INPUTS))
def test_fingerprints_and_features_change_with_the_seed(shared: Encoders, kind: str) -> None:
    one, other = getattr(shared, kind), getattr(encoders(seed=1), kind)
    changed = other.fingerprints()
    assert all(facts != changed[stream] for stream, facts in one.fingerprints().items())
    first, second = encode(one, INPUTS[kind](0)), encode(other, INPUTS[kind](0))
    assert any(not np.array_equal(first[path], second[path]) for path in first)


@pytest.mark.long
def test_visual_levels_select_arrays_and_leave_values_alone(shared: Encoders) -> None:
    both = encode(shared.visual, frames())
    for level in LEVELS:
        encoder = encoders(levels=(level,)).visual
        assert [spec.path for spec in encoder.specs()] == [path for path in both if f"/{level}/" in path]
        assert encoder.fingerprints() == {f"visual/{level}": shared.visual.fingerprints()[f"visual/{level}"]}
        found = encode(shared.visual, frames(), (level,))
        assert list(found) == [path for path in both if f"/{level}/" in path]
        assert all(np.array_equal(found[path], both[path]) for path in found)
    assert shared.visual.encode([frames()], []) == [{}] and shared.visual.encode([], LEVELS) == []


@pytest.mark.long
def test_visual_backbone_alone_runs_no_pixel_decoder(shared: Encoders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenPixelDecoder, "forward", lambda *_: pytest.fail("the pixel decoder ran"))
    assert len(encode(shared.visual, frames(), ("backbone",))) == 4


def test_visual_fingerprint_of_the_pixel_decoder_names_the_backbone(shared: Encoders) -> None:
    facts = shared.visual.fingerprints()
    backbone, pixel_decoder = facts["visual/backbone"], facts["visual/pixel_decoder"]
    assert backbone.items() <= pixel_decoder.items() and set(pixel_decoder) - set(backbone) == {"pixel_decoder"}


@pytest.mark.long
def test_visual_clips_of_a_batch_have_the_bytes_they_have_alone(shared: Encoders) -> None:
    clips = [frames(seed) for seed in range(3)]
    for clip, found in zip(clips, shared.visual.encode(clips, LEVELS), strict=True):
        alone = encode(shared.visual, clip)
        assert list(found) == list(alone) and all(np.array_equal(found[path], alone[path]) for path in alone)


@pytest.mark.long
def test_visual_frames_of_all_clips_in_one_pass_are_dealt_back_to_their_clips(shared: Encoders) -> None:
    """As on a GPU, where the size of the batch may move the last bit."""
    clips = [frames(seed) for seed in range(2)]
    together = shared.visual._maps(np.concatenate(clips), 2, LEVELS)
    for clip, found in zip(clips, together, strict=True):
        for path, maps in encode(shared.visual, clip).items():
            assert found[path].flags.c_contiguous
            np.testing.assert_allclose(found[path], maps, atol=4e-3, rtol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_clips_are_encoded_on_one_device(monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    """As on a GPU: the device without memory stands for it, and refuses every tensor that stayed on the processor."""
    there = build_encoders(TINY, WeightSource(kind="random"), LEVELS, precision, "meta")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    maps = there.visual.encode([frames(0), frames(1)], LEVELS)[1]
    heard = there.audio.encode([there.audio.prepare(sound(seed)) for seed in (0, 1)])[1]
    for encoder, arrays in ((there.visual, maps), (there.audio, heard)):
        expected = {spec.path: (spec.shape, spec.dtype) for spec in encoder.specs()}
        assert {path: (array.shape, str(array.dtype)) for path, array in arrays.items()} == expected


def test_visual_maps_are_those_of_the_networks(shared: Encoders) -> None:
    found = encode(shared.visual, frames())
    networks = shared.visual._networks
    with torch.no_grad():
        pyramid = networks.swin(normalised(torch.from_numpy(frames())))
        maps = networks.pixel_decoder(pyramid)
    for name, expected in pyramid.items():
        assert np.array_equal(found[f"clips/visual/backbone/{name}"], expected.half().numpy())
    for name, expected in maps.items():
        stored = torch.from_numpy(found[f"clips/visual/pixel_decoder/{name}"]).float()
        assert (stored - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.long
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_visual_bf16_is_close_to_fp32_and_has_its_own_fingerprint(weights: Any) -> None:
    low, high = (build_encoders(TINY, WeightSource(kind=weights), LEVELS, precision).visual
                 for precision in ("bf16", "fp32"))  # fmt: skip
    names = [{facts["precision"] for facts in encoder.fingerprints().values()} for encoder in (low, high)]
    assert names == [{"bf16"}, {"fp32"}]
    found = cosines(encode(low, frames()), encode(high, frames()))
    assert len(found) == 8 and min(found.values()) > 0.9995


@pytest.mark.long
def test_audio_bf16_is_close_to_fp32(shared: Encoders) -> None:
    low = build_encoders(TINY, WeightSource(kind="random"), ("pixel_decoder",), "bf16").audio
    one, other = (encode(encoder, sound()) for encoder in (low, shared.audio))
    assert low.fingerprints() != shared.audio.fingerprints() and one["clips/audio/vggish"].dtype == np.float32
    assert min(cosines(one, other).values()) > 0.999


def test_fp16_is_refused_where_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"--precision fp16 needs a GPU, .*; take fp32 or bf16, or --device cuda"):
        build_encoders(TINY, WeightSource(kind="random"), LEVELS, "fp16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    low = build_encoders(TINY, WeightSource(), LEVELS, "fp16").visual
    high = build_encoders(TINY, WeightSource(), LEVELS, "fp32").visual
    assert min(cosines(encode(low, frames()), encode(high, frames())).values()) > 0.9999
    assert build_encoders(TINY, WeightSource(kind="random"), LEVELS, "fp16", "cuda").visual.precision == "fp16"


def test_levels_of_arrays_are_in_the_order_of_the_levels() -> None:
    paths = ["clips/visual/pixel_decoder/s8", "clips/audio/vggish", "clips/visual/backbone/res2", "objects/mask"]
    assert levels_of(paths) == LEVELS and levels_of(paths[:2]) == ("pixel_decoder",)
    assert levels_of(["objects/mask"]) == ()


def test_shipped_weights_are_those_of_preset_tiny() -> None:
    encoders_ = build_encoders(TINY, WeightSource(), ("pixel_decoder",), "fp32")
    stamps = {stream: facts["weights"] for stream, facts in encoders_.fingerprints().items()}
    assert stamps["visual/pixel_decoder"].startswith("sha256:") and stamps["audio"] == stamps["text"] == "random:0"
    assert all(np.isfinite(maps).all() and maps.any() for maps in encode(encoders_.visual, frames()).values())


def test_visual_weights_of_a_folder_are_used_and_named(shared: Encoders, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(value) for name, value in shared.visual._networks.state_dict().items()}
    save_file(state, tmp_path / "visual.safetensors")
    encoder = encoders(kind="pretrained", folder=tmp_path).visual
    assert encoder.fingerprints()["visual/backbone"]["weights"].startswith("sha256:")
    assert not any(maps.any() for maps in encode(encoder, frames()).values())


def test_visual_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file({"swin.stem": torch.zeros(3)}, tmp_path / "visual.safetensors")
    encoder = encoders(kind="pretrained", folder=tmp_path).visual
    with pytest.raises(WeightsError, match=r"visual\.safetensors belong to another architecture: .*--weights-dir"):
        encode(encoder, frames())


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown level 'backbones' in --levels; did you mean 'backbone'\?"):
        encoders(levels=("backbones",))
    with pytest.raises(ConfigError, match=r"--levels names no level; accepted: backbone, pixel_decoder"):
        encoders(levels=())


@pytest.mark.long
def test_audio_second_is_independent_of_the_others(shared: Encoders) -> None:
    whole = sound()
    only_third = np.zeros_like(whole)
    window = slice(2 * SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ + PATCH_SAMPLES)
    only_third[window] = whole[window]
    one, other = (encode(shared.audio, item)["clips/audio/vggish"] for item in (whole, only_third))
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


def test_audio_windows_of_the_release_follow_each_other() -> None:
    from torchvggish.vggish_input import waveform_to_examples

    whole = sound()
    patches = log_mel_patches(whole, 10, 0.96)
    # torchvggish frames the whole sound and cuts the frames into patches of 96; it leaves out a patch that is not full.
    expected = waveform_to_examples(whole.astype(np.float64), SAMPLE_RATE_HZ).detach()
    assert len(expected) == 10 and torch.allclose(patches, expected, atol=1e-6)
    assert not torch.allclose(patches[9], log_mel_patches(whole, 10)[9], atol=1e-2)
    ends_early = log_mel_patches(whole[: 9 * SAMPLE_RATE_HZ], 10, 0.96)
    assert torch.allclose(ends_early[:9], expected[:9], atol=1e-6) and torch.isfinite(ends_early[9]).all()


@pytest.mark.long
def test_audio_is_signed_and_its_rectified_form_is_that_of_torchvggish(shared: Encoders) -> None:
    from torch import nn

    found = torch.from_numpy(encode(shared.audio, sound())["clips/audio/vggish"])
    assert (found < 0).any() and "signed" in shared.audio.fingerprints()["audio"]["output"]
    network = shared.audio._network
    rectified = nn.Sequential(*list(network.embeddings)[:-1], nn.ReLU())
    with torch.no_grad():
        hidden = network.features(shared.audio.prepare(sound())).permute(0, 2, 3, 1).flatten(1)
        assert torch.allclose(found.relu(), rectified(hidden), atol=1e-6)


def test_preset_released_takes_the_windows_of_the_release() -> None:
    released, base = (build_encoders(preset_named(name), WeightSource(kind="random"), ("backbone",), "fp32").audio
                      for name in ("released", "base"))  # fmt: skip
    assert ".96t" in released.fingerprints()["audio"]["preprocessing"]
    assert released.fingerprints() != base.fingerprints()


def test_text_features_of_padding_are_zero(shared: Encoders) -> None:
    found = encode(shared.text, "The star.")
    count = shared.text.num_tokens("The star.")
    assert found[VALID].tolist() == [position < count for position in range(16)]
    assert found[FEATURES][:count].any(axis=1).all() and not found[FEATURES][count:].any()


def test_texts_of_one_pass_are_as_by_themselves(shared: Encoders) -> None:
    items = [shared.text.prepare(text) for text in ("The star.", "The loudest object before the disc.", "")]
    for item, found in zip(items, shared.text._features(items), strict=True):  # as on a GPU
        (alone,) = shared.text.encode([item])
        np.testing.assert_allclose(found[FEATURES], alone[FEATURES], atol=2e-3)
        assert np.array_equal(found[VALID], alone[VALID])


def test_text_that_is_too_long_is_named(shared: Encoders) -> None:
    long = "The object that was making a sound before the star and the disc started to be heard again."
    assert shared.text.overlong(["The star.", long]) == {long: shared.text.num_tokens(long)}
    assert shared.text.num_tokens(long) > 16 and encode(shared.text, long)[VALID].all()


def test_text_of_any_script_is_encoded(shared: Encoders) -> None:
    found = [encode(shared.text, text)[FEATURES] for text in ("é", "猫の声", "")]
    assert all(np.isfinite(features).all() for features in found) and not np.array_equal(found[0], found[1])


def test_base_text_with_random_weights_says_that_its_tokenizer_is_the_packages() -> None:
    text = build_encoders(preset_named("base"), WeightSource(kind="random"), ("backbone",), "fp32").text
    assert "of this package" in text.fingerprints()["text"]["preprocessing"]
    assert text.specs()[0].shape == (25, 768)

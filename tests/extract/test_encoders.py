"""The contract of every encoder, and the specific behaviour of each."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.encoders import clip_text, flan_t5, roberta
from extract.encoders.clip_text import ClipTextEncoder
from extract.encoders.contract import check_encoder
from extract.encoders.flan_t5 import FlanT5Encoder
from extract.encoders.hub_folder import HubFolder
from extract.encoders.listing import described
from extract.encoders.mask2former import VISUAL_LEVELS, VisualEncoder
from extract.encoders.networks import refuse_precision
from extract.encoders.pixel_decoder import FrozenPixelDecoder
from extract.encoders.protocol import Encoder, EncoderSetup
from extract.encoders.registry import BUILT_IN, all_encoders, all_families, make_encoder
from extract.encoders.roberta import RobertaEncoder
from extract.encoders.vggish import PATCH_SAMPLES, SAMPLE_RATE_HZ, VGGishEncoder, log_mel_patches
from extract.encoders.weights import WeightSource
from refavs.errors import ConfigError, WeightsError
from tests.support.quick_networks import built_once

TINY = {"visual": "tiny-swin", "audio": "tiny-vggish", "text": "tiny-roberta"}


def make(name: str, precision: Any = "fp32", device: str = "cpu", **weights: Any) -> Any:
    source = WeightSource(**{"kind": "random", **weights})
    return make_encoder(name, EncoderSetup(weights=source, precision=precision, device=device))


@pytest.fixture(scope="module", autouse=True)
def swin_built_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        built_once(patch)
        yield


@pytest.fixture(scope="module")
def visual() -> VisualEncoder:
    return make("tiny-swin")


@pytest.fixture(scope="module")
def audio() -> VGGishEncoder:
    return make("tiny-vggish")


@pytest.fixture(scope="module")
def text() -> RobertaEncoder:
    return make("tiny-roberta")


def frames(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (10, 96, 96, 3), dtype=np.uint8)


def sound(seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(10 * SAMPLE_RATE_HZ)).astype(np.float32)


INPUTS = {"visual": frames, "audio": sound, "text": lambda seed=0: ["The loudest object.", "The star."][seed]}


def encode(encoder: Encoder, item: Any, levels: tuple[str, ...] = VISUAL_LEVELS) -> Any:
    return encoder.encode([encoder.prepare(item)], levels if encoder.modality == "visual" else [""])[0]


def cosines(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    flat = {path: (one[path].astype(np.float64).ravel(), other[path].astype(np.float64).ravel()) for path in one}
    return {path: float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for path, (a, b) in flat.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", list(TINY.values()))
def test_encoder_keeps_its_contract(name: str) -> None:
    torch.manual_seed(99)  # nothing depends on it
    check_encoder(make(name))


def test_every_encoder_is_made_without_weights_and_says_what_it_is() -> None:
    encoders = all_encoders(EncoderSetup(weights=WeightSource(fetch=False)))
    assert encoders.keys() | all_families().keys() == BUILT_IN.keys() and all(all_families().values())
    for name, encoder in encoders.items():
        assert encoder.name == name and isinstance(encoder, Encoder) and encoder.num_parameters > 0
        assert encoder.licence != "unknown" and len(described(name, encoder)) == 1 + len(encoder.arrays(10))


@pytest.mark.long
@pytest.mark.parametrize("most", [50e6, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_parameters_are_counted_right(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    def without_memory(hub: HubFolder, kind: Any, config: Any, unused: Any = (), **options: Any) -> torch.nn.Module:
        with torch.device("meta"):
            return kind(config, **options)

    def hollow(build: Any, seed: int | None) -> torch.nn.Module:
        with torch.device("meta"):
            return build()

    monkeypatch.setattr(HubFolder, "network", without_memory)
    monkeypatch.setattr("extract.encoders.mask2former.randomly", hollow)
    setup = EncoderSetup(weights=WeightSource(kind="random", seed=None), device="meta")
    for name, encoder in all_encoders(setup).items():
        network: Any = encoder
        if encoder.num_parameters > most:
            continue
        network = network.build() if encoder.modality == "visual" else network._network
        assert sum(weights.numel() for weights in network.parameters()) == encoder.num_parameters, name


def test_unknown_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refavs\.encoders has no 'vgish'; did you mean 'vggish'\?"):
        make("vgish")


@pytest.mark.long
@pytest.mark.parametrize("kind", list(TINY))
def test_fingerprints_and_features_change_with_the_seed(kind: str) -> None:
    one, other = make(TINY[kind]), make(TINY[kind], seed=1)
    assert all(one.facts(level)["weights"] == "random:0" for level in one.arrays(10))
    assert all(one.facts(level) != other.facts(level) for level in one.arrays(10))
    first, second = encode(one, INPUTS[kind](0)), encode(other, INPUTS[kind](0))
    assert any(not np.array_equal(first[path], second[path]) for path in first)


@pytest.mark.long
def test_visual_backbone_alone_runs_no_pixel_decoder(visual: VisualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenPixelDecoder, "forward", lambda *_: pytest.fail("the pixel decoder ran"))
    assert len(encode(visual, frames(), ("backbone",))) == 4


def test_visual_fingerprint_of_the_pixel_decoder_names_the_backbone(visual: VisualEncoder) -> None:
    backbone, pixel_decoder = visual.facts("backbone"), visual.facts("pixel_decoder")
    assert backbone.items() <= pixel_decoder.items() and set(pixel_decoder) - set(backbone) == {"pixel_decoder"}


@pytest.mark.long
def test_visual_clips_of_a_batch_have_the_bytes_they_have_alone(visual: VisualEncoder) -> None:
    clips = [frames(seed) for seed in range(3)]
    for clip, found in zip(clips, visual.encode(clips, VISUAL_LEVELS), strict=True):
        alone = encode(visual, clip)
        assert list(found) == list(alone) and all(np.array_equal(found[path], alone[path]) for path in alone)


@pytest.mark.long
def test_frames_of_all_clips_in_one_pass_are_returned_per_clip(visual: VisualEncoder) -> None:
    """As on a GPU, where the size of the batch may move the last bit."""
    clips = [frames(seed) for seed in range(2)]
    together = visual._clips(np.concatenate(clips), 2, VISUAL_LEVELS)
    for clip, found in zip(clips, together, strict=True):
        for path, maps in encode(visual, clip).items():
            assert found[path].flags.c_contiguous
            np.testing.assert_allclose(found[path], maps, atol=4e-3, rtol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_clips_are_encoded_on_one_device(monkeypatch: pytest.MonkeyPatch, precision: Any) -> None:
    """As on a GPU: the device without memory stands for it, and refuses every tensor that stayed on the processor."""
    seen, heard = make("tiny-swin", precision, "meta"), make("tiny-vggish", precision, "meta")
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))
    maps = seen.encode([frames(0), frames(1)], VISUAL_LEVELS)[1]
    features = heard.encode([heard.prepare(sound(seed)) for seed in (0, 1)], [""])[1]
    for encoder, arrays in ((seen, maps), (heard, features)):
        expected = {f"{level}/{spec.name}".lstrip("/"): (spec.shape, spec.dtype)
                    for level, specs in encoder.arrays(10).items() for spec in specs}  # fmt: skip
        assert {path: (array.shape, str(array.dtype)) for path, array in arrays.items()} == expected


def test_visual_maps_are_those_of_the_networks(visual: VisualEncoder) -> None:
    found = encode(visual, frames())
    networks = visual.build()
    with torch.no_grad():
        pyramid = networks.swin(visual.takes.normalised(torch.from_numpy(frames())))  # pyright: ignore
        maps = networks.pixel_decoder(pyramid)
    for name, expected in pyramid.items():
        assert np.array_equal(found[f"backbone/{name}"], expected.half().numpy())
    for name, expected in maps.items():
        stored = torch.from_numpy(found[f"pixel_decoder/{name}"]).float()
        assert (stored - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.long
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_visual_bf16_is_close_to_fp32_and_has_its_own_fingerprint(weights: Any) -> None:
    low, high = (make("tiny-swin", precision, kind=weights) for precision in ("bf16", "fp32"))
    found = [{encoder.facts(level)["precision"] for level in VISUAL_LEVELS} for encoder in (low, high)]
    assert found == [{"bf16"}, {"fp32"}]
    found = cosines(encode(low, frames()), encode(high, frames()))
    assert len(found) == 8 and min(found.values()) > 0.9995


@pytest.mark.long
def test_audio_bf16_is_close_to_fp32(audio: VGGishEncoder) -> None:
    low = make("tiny-vggish", "bf16")
    one, other = (encode(encoder, sound()) for encoder in (low, audio))
    assert low.facts("") != audio.facts("") and one["features"].dtype == np.float32
    assert min(cosines(one, other).values()) > 0.999


def test_fp16_is_refused_where_it_would_be_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"--precision fp16 needs a GPU, .*; use fp32 or bf16, or --device cuda"):
        refuse_precision("fp16", "cpu")
    refuse_precision("fp16", "cuda")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: True)
    refuse_precision("fp16", "cpu")
    low, high = (make("tiny-swin", precision, kind="pretrained") for precision in ("fp16", "fp32"))
    assert min(cosines(encode(low, frames()), encode(high, frames())).values()) > 0.9999


def test_shipped_weights_are_those_of_the_tiny_swin() -> None:
    seen, *others = (make(name, kind="pretrained") for name in TINY.values())
    assert seen.facts("backbone")["weights"].startswith("sha256:")
    assert [encoder.facts("")["weights"] for encoder in others] == ["random:0"] * 2
    assert all(np.isfinite(maps).all() and maps.any() for maps in encode(seen, frames()).values())


def test_visual_weights_of_a_folder_are_used_and_named(visual: VisualEncoder, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(value) for name, value in visual.build().state_dict().items()}
    save_file(state, tmp_path / "visual.safetensors")
    encoder = make("tiny-swin", kind="pretrained", folder=tmp_path)
    assert encoder.facts("backbone")["weights"].startswith("sha256:")
    assert not any(maps.any() for maps in encode(encoder, frames()).values())


def test_visual_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_file({"swin.stem": torch.zeros(3)}, tmp_path / "visual.safetensors")
    encoder = make("tiny-swin", kind="pretrained", folder=tmp_path)
    with pytest.raises(WeightsError, match=r"visual\.safetensors belong to another architecture: .*--weights-dir"):
        encode(encoder, frames())


@pytest.mark.long
def test_audio_second_is_independent_of_the_others(audio: VGGishEncoder) -> None:
    whole = sound()
    only_third = np.zeros_like(whole)
    window = slice(2 * SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ + PATCH_SAMPLES)
    only_third[window] = whole[window]
    one, other = (encode(audio, item)["features"] for item in (whole, only_third))
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
def test_audio_is_signed_and_its_rectified_form_is_that_of_torchvggish(audio: VGGishEncoder) -> None:
    from torch import nn

    found = torch.from_numpy(encode(audio, sound())["features"])
    assert (found < 0).any() and "signed" in audio.facts("")["output"]
    network: Any = audio._network
    rectified = nn.Sequential(*list(network.embeddings)[:-1], nn.ReLU())
    with torch.no_grad():
        hidden = network.features(audio.prepare(sound())).permute(0, 2, 3, 1).flatten(1)
        assert torch.allclose(found.relu(), rectified(hidden), atol=1e-6)


def test_windows_of_the_release_have_their_own_fingerprint() -> None:
    released, base = (make(name).facts("") for name in ("vggish-back-to-back", "vggish"))
    assert ".96t" in released["preprocessing"] and released["preprocessing"] != base["preprocessing"]


def test_text_features_of_padding_are_zero(text: RobertaEncoder) -> None:
    found = encode(text, "The star.")
    count = text.num_tokens("The star.")
    assert found["valid"].tolist() == [position < count for position in range(16)]
    assert found["features"][:count].any(axis=1).all() and not found["features"][count:].any()


def test_texts_of_one_pass_are_as_by_themselves(text: RobertaEncoder) -> None:
    items = [text.prepare(each) for each in ("The star.", "The loudest object before the disc.", "")]
    for item, found in zip(items, text._features(items, [""]), strict=True):  # as on a GPU
        (alone,) = text.encode([item], [""])
        np.testing.assert_allclose(found["features"], alone["features"], atol=2e-3)
        assert np.array_equal(found["valid"], alone["valid"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["roberta", "flan-t5", "clip"])
def test_text_has_the_same_bytes_in_any_company_order_and_number_of_threads(name: str) -> None:
    """At the width of the base networks, where sums are split in many ways."""
    encoder = wide_text(name)
    items = [[5 + (7 * number + place) % 900 for place in range(length)]
             for number, length in enumerate([3, 9, 9, 4, 9, 11, 9, 9, 9, 9, 25, 9, 9, 9, 3])]  # fmt: skip
    levels, before = list(encoder.levels), torch.get_num_threads()
    alone = [encoder.encode([item], levels)[0] for item in items]
    try:
        for num_threads in (1, 3):
            torch.set_num_threads(num_threads)
            for order in (range(15), [*range(14, -1, -1)], [4, 4, 10, 1, 2], [8]):
                for place, found in zip(order, encoder.encode([items[place] for place in order], levels), strict=True):
                    assert all(np.array_equal(found[key], array) for key, array in alone[place].items())
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


def wide_text(name: str) -> Any:
    """A text encoder with one layer of the published width, and few words."""
    make, settings, changed = {
        "roberta": (RobertaEncoder, roberta.BASE, {"num_hidden_layers": 1, "vocab_size": 1024}),
        "flan-t5": (FlanT5Encoder, flan_t5.flan_t5_base.args[1], {"num_layers": 1, "vocab_size": 1024}),
        "clip": (ClipTextEncoder, clip_text.LARGE, {"num_hidden_layers": 1, "vocab_size": 1024}),
    }[name]
    small = dataclasses.replace(settings, config={**settings.config, **changed})
    return make(name, small, EncoderSetup(weights=WeightSource(kind="random")))


def test_text_that_is_too_long_is_named(text: RobertaEncoder) -> None:
    long = "The object that was making a sound before the star and the disc started to be heard again."
    count = text.num_tokens(long)
    assert text.remarks(["The star."]) == [] and text.remarks(["The star.", long]) == [
        "tiny-roberta: 1 expressions have more than 16 tokens and are truncated:", f"  {count} tokens: {long!r}"]
    assert count > 16 and encode(text, long)["valid"].all()


def test_text_of_any_script_is_encoded(text: RobertaEncoder) -> None:
    found = [encode(text, each)["features"] for each in ("é", "猫の声", "")]
    assert all(np.isfinite(features).all() for features in found) and not np.array_equal(found[0], found[1])


def test_base_text_with_random_weights_says_that_its_tokenizer_is_the_packages() -> None:
    text = make("roberta-base")
    assert "of this package" in text.facts("")["preprocessing"] and text.facts("")["name"] == "roberta-base"
    assert text.arrays(10)[""][0].shape == (25, 768) and make("distilroberta-base").facts("")["padding"] == "kept"

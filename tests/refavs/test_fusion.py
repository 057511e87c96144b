"""The fusion transformers against plain NumPy, and that padding has no influence."""

import numpy as np
import pytest
import torch
from torch import nn

from refavs.model.attention import FUSED_KEYS, attend, hidden_bias, sine_positions
from refavs.model.heads.parts.fusion import BimodalFusion, MultimodalIntegration, QueryPrompting

CHANNELS, HEADS, SIZES = 8, 2, {"num_layers": 2, "num_heads": 2, "feedforward_channels": 12, "dropout": 0.0}
EACH = torch.arange(2)  # every expression has a clip of its own
VALID = torch.tensor([[True, True, False], [True, True, True]])


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(
    queries: np.ndarray, source: np.ndarray, seen: np.ndarray, weights: dict[str, np.ndarray], name: str
) -> np.ndarray:
    """One sequence; keys that are not `seen` are left out rather than masked."""
    matrix, bias = weights[f"{name}.project.weight"], weights[f"{name}.project.bias"]
    source = source[seen]
    inputs = zip((queries, source, source), np.split(matrix, 3), np.split(bias, 3), strict=True)
    parts = [x @ m.T + b for x, m, b in inputs]
    joined, depth = [], CHANNELS // HEADS
    for head in range(HEADS):
        q, k, v = (part[:, head * depth : (head + 1) * depth] for part in parts)
        scores = np.exp(q @ k.T / np.sqrt(depth))
        joined.append(scores / scores.sum(-1, keepdims=True) @ v)
    return np.concatenate(joined, -1) @ weights[f"{name}.out.weight"].T + weights[f"{name}.out.bias"]


def feedforward(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    hidden = np.maximum(x @ weights[f"{name}.0.weight"].T + weights[f"{name}.0.bias"], 0)
    return hidden @ weights[f"{name}.3.weight"].T + weights[f"{name}.3.bias"]


def self_layers(x: np.ndarray, seen: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    for layer in (f"layers.{index}" for index in range(SIZES["num_layers"])):
        normed = norm(x, weights, f"{layer}.norm")
        x = x + attention(normed, normed, seen, weights, f"{layer}.attention")
        x = x + feedforward(norm(x, weights, f"{layer}.feedforward_norm"), weights, f"{layer}.feedforward")
    return x


def double(module: nn.Module) -> nn.Module:
    """The module in double precision, every weight random, so that no bias hides at zero."""
    torch.manual_seed(1)
    for weight in module.parameters():
        nn.init.normal_(weight, std=0.5)
    return module.double().eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_bimodal_fusion_equals_numpy() -> None:
    fusion = double(BimodalFusion(CHANNELS, **SIZES))
    modality, text = noise(2, 4, 5, CHANNELS), noise(2, 3, CHANNELS)
    features, aware = fusion(modality, text, VALID, EACH)
    for row in range(2):
        seen = np.concatenate([np.ones(5, bool), VALID[row].numpy()])
        for step in range(4):
            expected = self_layers(np.concatenate([modality[row, step], text[row]]), seen, values(fusion))
            np.testing.assert_allclose(features[row, step].detach(), expected[:5], atol=1e-10)
            np.testing.assert_allclose(aware[row, step].detach(), expected[5:], atol=1e-10)


def test_bimodal_fusion_without_text_sees_the_modality_alone() -> None:
    fusion = double(BimodalFusion(CHANNELS, **SIZES))
    modality = noise(2, 4, 5, CHANNELS)
    features, aware = fusion(modality, None, VALID[:, :0], EACH)
    expected = self_layers(modality[1, 2].numpy(), np.ones(5, bool), values(fusion))
    np.testing.assert_allclose(features[1, 2].detach(), expected, atol=1e-10)
    assert aware is None


def test_multimodal_integration_equals_numpy() -> None:
    integration = double(MultimodalIntegration(CHANNELS, **SIZES, modality_tokens=True, audio=True))
    audio, visual, text = noise(2, 4, 1, CHANNELS), noise(2, 4, 5, CHANNELS), noise(2, 4, 3, CHANNELS)
    cues, seen = integration(audio, visual, text, VALID)
    weights = values(integration)
    for row in range(2):
        tokens = np.concatenate([
            audio[row, 2], weights["audio_token"][None], visual[row, 2], weights["visual_token"][None], text[row, 2]
        ])
        np.testing.assert_array_equal(seen[row], np.concatenate([np.ones(8, bool), VALID[row]]))
        expected = self_layers(tokens, seen[row].numpy(), weights)
        np.testing.assert_allclose(cues[row, 2].detach(), expected, atol=1e-10)


def test_query_prompting_equals_numpy() -> None:
    prompting = double(QueryPrompting(CHANNELS, **SIZES, num_queries=4))
    cues = noise(2, 4, 3, CHANNELS)
    prompted, weights = prompting(cues, VALID), values(prompting)
    for row in range(2):
        expected, source = weights["queries"], cues[row, 1].numpy()
        for layer in ("layers.0", "layers.1"):
            normed = norm(expected, weights, f"{layer}.norm")
            keys = norm(source, weights, f"{layer}.source_norm")
            expected = expected + attention(normed, keys, VALID[row].numpy(), weights, f"{layer}.attention")
            expected = expected + feedforward(
                norm(expected, weights, f"{layer}.feedforward_norm"), weights, f"{layer}.feedforward"
            )
        np.testing.assert_allclose(prompted[row, 1].detach(), expected, atol=1e-10)


@pytest.mark.parametrize("num_keys", [6, FUSED_KEYS])
def test_attend_equals_the_formula(num_keys: int) -> None:
    query, key, value = noise(1, 3, 4, 5), noise(2, 3, num_keys, 5), noise(2, 3, num_keys, 5) + 1
    bias = hidden_bias(torch.arange(num_keys) < torch.tensor([[[[3]]], [[[num_keys]]]]))
    query, key, value = query.float(), key.float(), value.float()
    scores = torch.einsum("smqd,smkd->smqk", query.expand(2, -1, -1, -1), key) / 5**0.5 + bias
    torch.testing.assert_close(attend(query, key, value, bias), scores.softmax(-1) @ value)


def test_sine_positions_differ_everywhere() -> None:
    positions = sine_positions(5, 7, 16)
    distances = torch.cdist(positions, positions) + torch.eye(35)
    assert positions.shape == (35, 16) and distances.min() > 0.1

"""Multi-scale deformable attention against its formula, written out place by place."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from refavs.model.heads.parts.deformable import DeformableAttention, DeformableEncoder, pixel_centres, unflattened

SHAPES = [(4, 3), (2, 2)]
CHANNELS, HEADS, POINTS = 8, 2, 3


def bilinear(pixels: Tensor, height: int, width: int, x: float, y: float) -> Tensor:
    """The value of row-by-row pixels at a place from 0 to 1; zero outside."""
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(pixels.shape[-1])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * pixels[i * width + j]
    return total


def written_out(attention: DeformableAttention, query: Tensor, reference: Tensor, source: Tensor) -> Tensor:
    """One query, one level after the other."""
    levels = attention.value(source).split([h * w for h, w in SHAPES])
    offsets = attention.offsets(query).reshape(HEADS, len(SHAPES), POINTS, 2)
    weights = attention.weights(query).reshape(HEADS, -1).softmax(dim=-1).reshape(HEADS, len(SHAPES), POINTS)
    width = CHANNELS // HEADS
    read = torch.zeros(HEADS, width)
    for head in range(HEADS):
        for level, (h, w) in enumerate(SHAPES):
            for point in range(POINTS):
                shift = offsets[head, level, point]
                scale = torch.tensor([1 / w, 1 / h]) if len(reference) == 2 else reference[2:] / (2 * POINTS)
                x, y = (reference[:2] + shift * scale).tolist()
                pixels = levels[level][:, head * width : (head + 1) * width]
                read[head] += weights[head, level, point] * bilinear(pixels, h, w, x, y)
    return attention.out(read.flatten())


@pytest.mark.parametrize("box", [False, True])
def test_attention_equals_its_formula(box: bool) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CHANNELS, HEADS, len(SHAPES), POINTS)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    source, queries = torch.randn(2, 16, CHANNELS), torch.randn(2, 5, CHANNELS)
    reference = torch.rand(2, 5, len(SHAPES), 4 if box else 2)
    found = attention(queries, reference, source, SHAPES)
    with torch.no_grad():
        for sample in range(2):
            for query in range(5):
                wanted = written_out(attention, queries[sample, query], reference[sample, query, 0], source[sample])
                alike = reference[sample, query : query + 1, :1].expand(1, len(SHAPES), -1)
                own = attention(
                    queries[sample : sample + 1, query : query + 1], alike[None], source[sample : sample + 1], SHAPES
                )
                torch.testing.assert_close(own[0, 0], wanted, atol=1e-5, rtol=1e-4)
    assert found.shape == (2, 5, CHANNELS)


def test_gradient_reaches_places_weights_and_values() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CHANNELS, HEADS, len(SHAPES), POINTS)
    source = torch.randn(2, 16, CHANNELS, requires_grad=True)
    attention(torch.randn(2, 16, CHANNELS), pixel_centres(SHAPES), source, SHAPES).square().sum().backward()
    assert source.grad is not None and bool(source.grad.any())
    assert all(p.grad is not None and bool(p.grad.any()) for p in attention.parameters())


def test_heads_start_in_directions_of_their_own() -> None:
    attention = DeformableAttention(16, 4, 1, 2)
    places = attention.offsets.bias.detach().reshape(4, 2, 2)
    wanted = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(places[:, 0], wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(places[:, 1], 2 * wanted, atol=1e-6, rtol=0)


def test_encoder_keeps_the_order_of_maps_and_pixels() -> None:
    torch.manual_seed(0)
    encoder = DeformableEncoder(CHANNELS, HEADS, 1, 16, num_levels=2)
    maps = [torch.randn(2, CHANNELS, *shape) for shape in SHAPES]
    layer: Any = encoder.layers[0]
    for linear in (layer.attention.out, layer.feedforward[-1]):
        for one in linear.parameters():
            torch.nn.init.zeros_(one)
    for found, given in zip(unflattened(encoder(maps), SHAPES), maps, strict=True):
        normalised = torch.nn.functional.layer_norm(given.movedim(1, -1), (CHANNELS,)).movedim(-1, 1)
        torch.testing.assert_close(found, normalised, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("large", [0, 2**16])
def test_frames_in_parts_are_those_of_all(monkeypatch: pytest.MonkeyPatch, at_once: int, large: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(CHANNELS, HEADS, len(SHAPES), POINTS)
    source, queries = torch.randn(2, 3, 16, CHANNELS).requires_grad_().unbind()
    reference, results = torch.rand(3, 16, len(SHAPES), 2), []
    for kept in (2**24, 0):
        monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
        of_frames = at_once * 16 * len(SHAPES) * POINTS * CHANNELS
        monkeypatch.setattr("refavs.model.heads.parts.recomputed.PART_VALUES", of_frames)
        monkeypatch.setattr("refavs.model.heads.parts.deformable.LARGE", 2**16 if kept else large)
        read = attention(queries, reference, source, SHAPES)
        used = [queries, source, *attention.parameters()]
        results.append([read.detach(), *torch.autograd.grad(read.square().sum(), used)])
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)

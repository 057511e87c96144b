"""AVSegFormer against its formulas, written out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refavs.model.heads.avsegformer import AVSegFormerOutput, dice_of
from refavs.model.heads.parts.baseline_options import AVSegFormerOptions
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, small_head

SMALL = AVSegFormerOptions(
    channels=32, num_queries=4, num_heads=2, generator_layers=2, encoder_layers=1, decoder_layers=2,
    generator_feedforward_channels=16, feedforward_channels=16, mask_channels=24,
)  # fmt: skip
HEADS, WIDTH = 2, 16


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Head by head, of one frame."""
    parts = []
    for head in range(HEADS):
        own = slice(head * WIDTH, (head + 1) * WIDTH)
        scores = query[:, own] @ key[:, own].T / WIDTH**0.5
        parts.append(scores.softmax(dim=1) @ value[:, own])
    return torch.cat(parts, dim=1)


def plain(one: Any, queries: Tensor, source: Tensor) -> Tensor:
    return attention(queries @ one.query.weight.T, source @ one.key.weight.T, source @ one.value.weight.T) @ (
        one.out.weight.T
    )


def biased(one: Any, queries: Tensor, source: Tensor) -> Tensor:
    weights, biases = one.project.weight.chunk(3), one.project.bias.chunk(3)
    query, key, value = (
        read @ weight.T + bias for read, weight, bias in zip((queries, source, source), weights, biases, strict=True)
    )
    return one.out(attention(query, key, value))


@pytest.mark.long
def test_forward_equals_the_formulas_for_one_frame() -> None:
    head, batch = small_head(SMALL)
    with torch.no_grad():
        words = batch.text[1, :2].sum(dim=0)
        sentence = head.cue.read.project(nn.functional.layer_norm(words, words.shape))
        cue = head.cue.listen(batch.audio[0, 1]) + sentence
        res2, *coarser = (head.projections[name](one[0, 1:].float()) for name, one in batch.visual.items())
        memory = head.encoder(coarser[::-1])
        finest = memory[0, -64:].T.reshape(1, 32, 8, 8)
        features = head.smooth(head.lateral(res2) + nn.functional.interpolate(finest, scale_factor=2, mode="bilinear"))
        queries = head.query_embeddings
        for layer in head.generator:
            queries = layer.norms[0](queries + plain(layer.self_attention, queries, queries))
            queries = layer.norms[1](queries + plain(layer.cross_attention, queries, cue[None]))
            queries = layer.norms[2](queries + layer.feedforward(queries))
        queries = queries + head.queries
        for layer in head.decoder:
            queries = layer.norms[0](queries + biased(layer.self_attention, queries, queries))
            queries = layer.norms[1](queries + biased(layer.cross_attention, queries, memory[0]))
            queries = layer.norms[2](queries + layer.feedforward(queries))
        pixels = features[0].flatten(1).T
        gate = head.gate.out(attention(
            head.gate.query(cue[None]), head.gate.key(pixels), head.gate.value(pixels)
        )).sigmoid()  # fmt: skip
        gated = features * gate[0, :, None, None]
        masks = torch.einsum("qc,chw->hwq", queries, gated[0])
        first, second, last = head.mixing.layers
        mixed = gated + last(second(first(masks).relu()).relu()).movedim(-1, 0)
        enlarged = nn.functional.interpolate(head.masks.narrow(mixed), scale_factor=4, mode="bilinear")
        found = head(batch)
        torch.testing.assert_close(found.logits[1, 1], head.masks.fine(enlarged)[0, 0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.features[1, 1], gated[0].mean(dim=0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("faithful", [False, True])
def test_loss_equals_its_formulas(faithful: bool) -> None:
    head, batch = small_head(replace(SMALL, faithful=faithful))
    torch.manual_seed(1)
    logits, features = torch.randn(3, 2, 64, 64), torch.randn(3, 2, 16, 16)
    assert batch.mask is not None
    found = head.loss(AVSegFormerOutput(logits, features), Target(masks=batch.mask), PIXELS)
    enlarged = nn.functional.interpolate(features, size=(64, 64), mode="bilinear", align_corners=False)
    wanted = []
    for maps in (logits, enlarged):
        of_frames = []
        for prob, label in zip(maps.sigmoid().flatten(0, 1), batch.mask.flatten(0, 1).float(), strict=True):
            above, below = 2 * (prob * label).sum(), (prob**2).sum() + (label**2).sum()
            of_frames.append(1 - above / (below + 0.002) if faithful else 1 - (above + 1) / (below + 1))
        wanted.append(torch.stack(of_frames).mean())
    torch.testing.assert_close(found["dice"], wanted[0])
    torch.testing.assert_close(found["feature_dice"], wanted[1])
    bce = nn.functional.binary_cross_entropy_with_logits(logits, batch.mask.float())
    torch.testing.assert_close(found["bce"], bce)
    torch.testing.assert_close(found["total"], wanted[0] + 0.1 * wanted[1] + (0 if faithful else bce))


@pytest.mark.parametrize(("smooth", "learns"), [(True, True), (False, False)])
def test_frame_without_an_object_has_a_gradient_where_dice_is_smoothed(smooth: bool, learns: bool) -> None:
    logits = torch.zeros(1, 1, 16, requires_grad=True)
    dice_of(logits, torch.zeros(1, 1, 16), smooth).sum().backward()
    assert logits.grad is not None and bool(logits.grad.any()) == learns

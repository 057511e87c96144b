"""ReferFormer against its formulas, written out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refavs.model.attention import Attention, sine_positions
from refavs.model.heads.parts.box_decoder import BoxDecoder
from refavs.model.heads.parts.clip_matching import ClipPrediction, boxes_of, generalised_iou
from refavs.model.heads.parts.clip_queries import ClipOutput
from refavs.model.heads.parts.dynamic_masks import DynamicMasks
from refavs.model.heads.parts.expression_input import Words, word_places
from refavs.model.heads.parts.language_pyramid import VisionLanguageBlock
from refavs.model.heads.parts.rvos_options import ReferFormerOptions
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, small_head

SMALL = ReferFormerOptions(
    channels=32, num_queries=3, num_heads=2, encoder_layers=1, decoder_layers=2, feedforward_channels=16, dropout=0.0
)


def plain(attention: Attention) -> nn.MultiheadAttention:
    """PyTorch's own attention with the same weights."""
    width = attention.project.in_features
    module = nn.MultiheadAttention(width, attention.num_heads, batch_first=True)
    weights = {"in_proj_weight": attention.project.weight, "in_proj_bias": attention.project.bias}
    module.load_state_dict(weights | {f"out_proj.{name}": one for name, one in attention.out.named_parameters()})
    return module


def make_words() -> Words:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    return Words(torch.randn(2, 3, 32), word_places(valid, 32), valid)


@pytest.mark.parametrize(("reduction", "at_once"), [(1, 2**22), (2, 2 * 24 * 16), (8, 1)])
def test_block_equals_its_formulas(monkeypatch: pytest.MonkeyPatch, reduction: int, at_once: int) -> None:
    monkeypatch.setattr("refavs.model.heads.parts.language_pyramid.PART_VALUES", at_once)
    torch.manual_seed(0)
    block, words = VisionLanguageBlock(32, 2, 16, 0.0, reduction), make_words()
    maps = torch.randn(2, 3, 32, 4, 6)
    with torch.no_grad():
        found = block(maps, words)
        places = sine_positions(4, 6, 32).T.reshape(32, 4, 6)
        size = (max(1, 4 // reduction), max(1, 6 // reduction))
        small = nn.functional.interpolate(maps.flatten(0, 1), size=size).unflatten(0, (2, 3))
        placed = nn.functional.interpolate((maps + places).flatten(0, 1), size=size).unflatten(0, (2, 3))
        values, keys = (one.permute(0, 1, 3, 4, 2).flatten(1, 3) for one in (small, placed))
        read = plain(block.self_attention)(keys, keys, values)[0]
        read = read.unflatten(1, (3, *size)).permute(0, 1, 4, 2, 3).flatten(0, 1)
        read = nn.functional.interpolate(read, size=(4, 6), mode="bilinear").unflatten(0, (2, 3))
        pixels = block.norms[0]((maps + read).permute(0, 1, 3, 4, 2).flatten(1, 3))
        where = sine_positions(4, 6, 32).repeat(3, 1)
        read = plain(block.cross_attention)(
            pixels + where, words.tokens + words.places, words.tokens, key_padding_mask=~words.valid
        )[0]
        pixels = block.norms[1](pixels + read)
        first, _, _, second = block.feedforward
        pixels = block.norms[2](pixels + second(first(pixels).relu()))
        wanted = pixels.unflatten(1, (3, 4, 6)).permute(0, 1, 4, 2, 3)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_places_of_words_do_not_depend_on_the_padding() -> None:
    long = word_places(torch.tensor([[True, True, False, False]]), 8)
    torch.testing.assert_close(long[:, :2], word_places(torch.tensor([[True, True]]), 8))
    angle = torch.tensor(0.5) * 2 * torch.pi
    torch.testing.assert_close(long[0, 0, :2], torch.stack([angle.sin(), angle.cos()]), atol=1e-5, rtol=0)


def test_dynamic_masks_equal_convolutions_of_repeated_features() -> None:
    torch.manual_seed(0)
    head = DynamicMasks(16)
    queries, features, centres = torch.randn(1, 2, 3, 16), torch.randn(1, 2, 16, 5, 6), torch.rand(1, 2, 3, 2)
    found = head(queries, features, centres)
    y, x = torch.meshgrid(torch.arange(5) * 4 + 2, torch.arange(6) * 4 + 2, indexing="ij")
    for frame in range(2):
        for query in range(3):
            made = head.controller(queries[0, frame, query])
            first, second, third, *biases = made.split([18 * 8, 64, 8, 8, 8, 1])
            centre = centres[0, frame, query] * torch.tensor([24.0, 20.0])
            offsets = torch.stack([centre[0] - x, centre[1] - y])
            hidden = torch.cat([features[0, frame], offsets])[None]
            hidden = nn.functional.conv2d(hidden, first.reshape(8, 18, 1, 1), biases[0]).relu()
            hidden = nn.functional.conv2d(hidden, second.reshape(8, 8, 1, 1), biases[1]).relu()
            wanted = nn.functional.conv2d(hidden, third.reshape(1, 8, 1, 1), biases[2])
            torch.testing.assert_close(found[0, frame, query], wanted[0, 0], atol=1e-4, rtol=1e-4)


def test_decoder_equals_its_formulas() -> None:
    torch.manual_seed(0)
    decoder = BoxDecoder(32, 3, 2, 2, 16, 2, 0.0)
    for box in decoder.boxes:
        nn.init.normal_(box[-1].weight, std=0.1)  # type: ignore[index]
    memory, shapes, content = torch.randn(2, 20, 32), [(4, 4), (2, 2)], torch.randn(2, 1, 32)
    with torch.no_grad():
        found = decoder(content, memory, shapes)
        queries = content.repeat(1, 3, 1)
        reference = decoder.reference(decoder.positions).sigmoid().repeat(2, 1, 1)
        for number, layer in enumerate(decoder.layers):
            one: Any = layer
            placed = queries + decoder.positions
            queries = one.norms[0](queries + plain(one.self_attention)(placed, placed, queries)[0])
            where = reference[:, :, None].repeat(1, 1, 2, 1)
            queries = one.norms[1](queries + one.cross_attention(queries + decoder.positions, where, memory, shapes))
            queries = one.norms[2](queries + one.feedforward(queries))
            change = decoder.boxes[number](queries)
            change[..., : reference.shape[-1]] += torch.log(reference / (1 - reference))
            reference = change.sigmoid()
            torch.testing.assert_close(found[number].queries, queries)
            torch.testing.assert_close(found[number].boxes, reference)
            torch.testing.assert_close(found[number].class_logits, decoder.classes[number](queries)[..., 0])


def test_forward_joins_its_parts() -> None:
    head, batch = small_head(SMALL)
    head.eval()
    with torch.no_grad():
        found = head(batch)
        words = head.expression.resize(batch.text) + head.expression.listen(batch.audio).mean(1)[batch.clip][:, None]
        tokens = Words(words, word_places(batch.valid, 32), batch.valid)
        sentence = head.expression.resize(batch.text[1, :2].mean(dim=0)) + head.expression.listen(batch.audio[0, 1])
        maps = [one.float()[batch.clip].flatten(0, 1) for one in batch.visual.values()]
        fused = []
        for projection, one in zip(head.projections, (*maps[1:], maps[-1]), strict=True):
            projected = projection(one)
            pixels = projected.unflatten(0, (3, 2)).permute(0, 1, 3, 4, 2).flatten(1, 3)
            read = plain(head.fusion)(pixels, words + tokens.places, words, key_padding_mask=~batch.valid)[0]
            read = (pixels * read).unflatten(1, (2, *projected.shape[-2:])).permute(0, 1, 4, 2, 3).flatten(0, 1)
            fused.append(read)
        memory = head.encoder(fused)
        features = pyramid_of(head, memory, maps[0], tokens)
        shapes = [(8, 8), (4, 4), (2, 2), (1, 1)]
        wanted = head.decoder(sentence[None, None], memory[3:4], shapes)[-1]  # expression 1, step 1
        torch.testing.assert_close(found.layers[-1].boxes[1, 1], wanted.boxes[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.layers[-1].class_logits[1, 1], wanted.class_logits[0], atol=1e-4, rtol=1e-3)
        masks = head.masks(wanted.queries[None], features[None, 3:4], wanted.boxes[None, ..., :2])
        torch.testing.assert_close(found.layers[-1].mask_logits[1, 1], masks[0, 0], atol=1e-3, rtol=1e-3)


def pyramid_of(head: Any, memory: Tensor, finest: Tensor, words: Words) -> Tensor:
    """Mask features of all frames."""
    parts = memory.split([64, 16, 4, 1], dim=1)
    levels = [part.transpose(1, 2).unflatten(2, (side, side)) for part, side in zip(parts, (8, 4, 2), strict=False)]
    convolutions, joined = head.pyramid.convolutions, None
    for level, maps in reversed([*enumerate([finest, *levels])]):
        maps = convolutions.lateral[level](maps)
        maps = head.pyramid.blocks[level](maps.unflatten(0, (3, 2)), words).flatten(0, 1)
        if joined is not None:
            maps = maps + nn.functional.interpolate(joined, scale_factor=2)
        joined = convolutions.smooth[level](maps)
    assert joined is not None
    return convolutions.masks(joined)


def focal_of(logits: Tensor, labels: Tensor) -> Tensor:
    probs = logits.sigmoid()
    right = probs * labels + (1 - probs) * (1 - labels)
    alpha = 0.25 * labels + 0.75 * (1 - labels)
    return -alpha * (1 - right) ** 2 * right.log()


def dice_of(logits: Tensor, labels: Tensor) -> Tensor:
    probs = logits.sigmoid()
    return 1 - (2 * (probs * labels).sum() + 1) / (probs.sum() + labels.sum() + 1)


def predictions(num_frames: int) -> list[ClipPrediction]:
    torch.manual_seed(1)
    return [ClipPrediction(torch.randn(3, num_frames, 3), torch.rand(3, num_frames, 3, 4) * 0.5 + 0.25,
                           torch.randn(3, num_frames, 3, 16, 16)) for _ in range(2)]  # fmt: skip


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("partly", [False, True])
def test_loss_equals_its_formulas(faithful: bool, partly: bool) -> None:
    head, batch = small_head(replace(SMALL, faithful=faithful), num_steps=3)
    layers = predictions(3)
    assert batch.mask is not None
    labelled = torch.ones(3, 3, dtype=torch.bool)
    labelled[0, 1] = labelled[2, 0] = not partly
    target = Target(masks=batch.mask, labelled=labelled if partly else None)
    found = head.loss(ClipOutput(layers, torch.zeros(3, 3)), target, PIXELS)
    shown = batch.mask.flatten(2).any(dim=2) & labelled
    masks, boxes = batch.mask[:, :, 2::4, 2::4].float(), boxes_of(batch.mask)
    total, sums = torch.zeros(()), torch.zeros(5)
    for layer in layers:
        sums = torch.zeros(5)
        for row in range(3):
            known = labelled[row]
            if not shown[row].any():
                if not faithful:
                    sums[0] += focal_of(layer.class_logits[row, known], torch.zeros(int(known.sum()), 3)).sum()
                continue
            true = torch.where(shown[row][:, None], boxes[row], 0.0)[known]
            costs = []
            for query in range(3):
                probs = layer.class_logits[row, shown[row], query].sigmoid()
                positive = 0.25 * (1 - probs) ** 2 * -(probs + 1e-8).log()
                negative = 0.75 * probs**2 * -(1 - probs + 1e-8).log()
                logits, label = layer.mask_logits[row, known, query], masks[row, known]
                box = layer.boxes[row, known, query]
                costs.append(
                    2 * (positive - negative).mean() + 5 * (box - true).abs().sum(dim=1).mean()
                    - 2 * generalised_iou(box, true).mean() + 2 * focal_of(logits, label).mean()
                    + 5 * (dice_of(logits, label) - 1)
                )  # fmt: skip
            query = int(torch.stack(costs).argmin())
            classes = torch.zeros(3, 3)
            classes[shown[row], query] = 1
            box, logits = layer.boxes[row, known, query], layer.mask_logits[row, known, query]
            sums += torch.stack([
                focal_of(layer.class_logits[row, known], classes[known]).sum(), (box - true).abs().sum(),
                (1 - generalised_iou(box, true)).sum(), focal_of(logits, masks[row, known]).mean(),
                dice_of(logits, masks[row, known]),
            ])  # fmt: skip
        sums = sums / shown.sum()
        total = total + (sums * torch.tensor([2.0, 5.0, 2.0, 2.0, 5.0])).sum()
    torch.testing.assert_close(found["total"], total)
    torch.testing.assert_close(torch.stack([found[name] for name in head.losses]), sums)


def test_boxes_hold_their_masks() -> None:
    masks = torch.zeros(1, 2, 8, 16, dtype=torch.bool)
    masks[0, 0, 2:4, 4:16] = True
    masks[0, 1, 7, 0] = True
    wanted = torch.tensor([[10 / 16, 3 / 8, 12 / 16, 2 / 8], [0.5 / 16, 7.5 / 8, 1 / 16, 1 / 8]])
    torch.testing.assert_close(boxes_of(masks)[0], wanted)


@pytest.mark.parametrize(("one", "other", "wanted"), [
    ([0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], 1.0),
    ([0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5], -0.5),  # they touch at a corner: half of the common box is empty
    ([0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 1.0], 0.5),
    ([0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], -(0.75**2 - 0.25) / 0.75**2),
])  # fmt: skip
def test_generalised_iou(one: list[float], other: list[float], wanted: float) -> None:
    assert float(generalised_iou(torch.tensor(one), torch.tensor(other))) == pytest.approx(wanted, abs=1e-5)


def test_best_query_is_that_of_all_steps() -> None:
    head, _ = small_head(replace(SMALL, min_score=0.0))
    layer = predictions(2)[0]
    scores = torch.tensor([[0.1, 0.5, 0.2], [0.9, 0.0, 0.0], [0.0, 0.0, 0.4]])
    found = head.probs(ClipOutput([layer], scores))
    wanted = torch.stack([layer.mask_logits[row, :, query].sigmoid() for row, query in enumerate((1, 0, 2))])
    torch.testing.assert_close(found, wanted)

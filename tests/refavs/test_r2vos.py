"""R2VOS against its formulas, written out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from refavs.model.attention import sine_positions
from refavs.model.heads.parts.dual_pyramid import DualBlock, SentenceDecoder, pooled
from refavs.model.heads.parts.rvos_options import R2VOSOptions
from refavs.model.heads.r2vos import Pairs, relation_of
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, small_head
from tests.refavs.test_referformer import make_words, plain

SMALL = R2VOSOptions(
    channels=32, num_queries=3, num_heads=2, encoder_layers=1, decoder_layers=1, feedforward_channels=16, dropout=0.0
)


def test_block_equals_its_formulas() -> None:
    torch.manual_seed(0)
    block, words = DualBlock(32, 2, 16, 0.0), make_words()
    maps = torch.randn(2, 3, 32, 2, 4)
    with torch.no_grad():
        found_maps, found_words = block(maps, words)
        pixels, where = maps.permute(0, 1, 3, 4, 2).flatten(1, 3), sine_positions(2, 4, 32).repeat(3, 1)
        pixels = block.norms[0](pixels + plain(block.self_attention)(pixels + where, pixels + where, pixels)[0])
        read = plain(block.from_words)(
            pixels + where, words.tokens + words.places, words.tokens, key_padding_mask=~words.valid
        )[0]
        keys, values = block.pixel_source(pixels).split(32, dim=-1)
        shown = plain(block.from_pixels)(block.word_queries(words.tokens) + words.places, keys + where, values)[0]
        pixels = block.norms[1](pixels + read)
        pixels = block.norms[2](pixels + block.feedforward(pixels))
        tokens = block.word_norms[0](words.tokens + shown)
        tokens = block.word_norms[1](tokens + block.word_feedforward(tokens))
    torch.testing.assert_close(found_maps.permute(0, 1, 3, 4, 2).flatten(1, 3), pixels, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_words, tokens, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7])
def test_words_are_pooled_as_without_padding(length: int) -> None:
    tokens = torch.randn(1, 8, 4)
    valid = torch.arange(8)[None] < length
    wanted = nn.functional.adaptive_avg_pool1d(tokens[:, :length].transpose(1, 2), 3).transpose(1, 2)
    torch.testing.assert_close(pooled(tokens, valid), wanted)


def test_sentence_decoder_equals_that_of_pytorch() -> None:
    torch.manual_seed(0)
    decoder = SentenceDecoder(32, 2, 16, 0.0)
    module = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(32, 2, 16, dropout=0.0, batch_first=True), 3, nn.LayerNorm(32)
    )
    for own, theirs in zip(decoder.layers, module.layers, strict=True):
        one: Any = own
        other: Any = theirs
        other.self_attn, other.multihead_attn = plain(one.self_attention), plain(one.cross_attention)
        other.linear1, other.linear2 = one.feedforward[0], one.feedforward[3]
    maps = torch.randn(2, 3, 32, 2, 2)
    pixels = maps.permute(0, 1, 3, 4, 2).flatten(1, 3) + sine_positions(2, 2, 32).repeat(3, 1)
    with torch.no_grad():
        wanted = module(decoder.query.expand(2, 1, -1), pixels)[:, 0]
        torch.testing.assert_close(decoder(maps), wanted, atol=1e-5, rtol=1e-4)


def test_coarsest_level_is_filtered_by_the_words() -> None:
    head, _ = small_head(SMALL)
    pyramid, words, level = head.pyramid, make_words(), torch.randn(4, 32, 2, 2)
    with torch.no_grad():
        found = pyramid.coarsest(level, words).flatten(0, 1)
        maps, tokens = pyramid.block(pyramid.convolutions.lateral[-1](level).unflatten(0, (2, 2)), words)
        filters, maps = pyramid.filters(pooled(tokens, words.valid)), maps.flatten(0, 1)
        entered = pyramid.enter(maps)
        for frame in range(4):
            selected = torch.cat([entered[frame] * one[:, None, None] for one in filters[frame // 2]])
            wanted = pyramid.convolutions.smooth[-1](maps[frame : frame + 1] + pyramid.leave(selected[None]))
            torch.testing.assert_close(found[frame], wanted[0], atol=1e-5, rtol=1e-4)


def test_queries_start_from_sentence_and_guess() -> None:
    head, batch = small_head(SMALL)
    head.eval()
    with torch.no_grad():
        found, expression = head(batch), head.expression(batch)
        encoded = head.encoded(batch, expression.words, None, None)
        features, guessed = head.pyramid(encoded.levels, expression.words)
        both = torch.cat([expression.sentence, guessed[:, None].expand(-1, 2, -1)], dim=2)
        wanted = head.predicted(expression.sentence + head.mixing(both), encoded, features, None)
        logits = head.judge(torch.cat([expression.sentence.mean(dim=1), guessed], dim=1))[:, 0]
    torch.testing.assert_close(found.layers[-1].mask_logits, wanted.layers[-1].mask_logits)
    torch.testing.assert_close(found.pairs.logits, logits)


def entropy(logit: Tensor, label: float) -> Tensor:
    prob = logit.sigmoid()
    return -(label * prob.log() + (1 - label) * (1 - prob).log())


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other + 1e-6).square().sum().sqrt()


def test_losses_of_sentences_equal_their_formulas() -> None:
    """The third expression has no object."""
    head, batch = small_head(SMALL)
    pairs = Pairs(torch.randn(3, 4) * 0.1, torch.randn(3, 4) * 0.1, torch.randn(3))
    output = replace(head(batch), pairs=pairs)
    assert batch.mask is not None
    found = head.loss(output, Target(masks=batch.mask), PIXELS)
    judged = torch.stack([entropy(pairs.logits[row], float(row == 2)) for row in range(3)]).mean()
    contrast = (0.5 - distance(pairs.guessed[2], pairs.sentences[2])).clamp(min=0) / 3
    torch.testing.assert_close(found["pairs"], judged)
    torch.testing.assert_close(found["contrast"], contrast)
    assert float(contrast) > 0 and float(found["relation"]) == 0


def test_published_losses_of_sentences_equal_their_formulas() -> None:
    head, batch = small_head(replace(SMALL, faithful=True))
    pairs, others = (Pairs(torch.randn(3, 4) * 0.1, torch.randn(3, 4) * 0.1, torch.randn(3)) for _ in range(2))
    output = replace(head.train()(batch), pairs=pairs, others=others)
    assert batch.mask is not None
    found = head.loss(output, Target(masks=batch.mask), PIXELS)
    judged = sum(entropy(pairs.logits[row], 0) + entropy(others.logits[row], 1) for row in range(2)) / 6
    near = [(0.5 - distance(others.guessed[row], others.sentences[row])).clamp(min=0) for row in range(2)]
    torch.testing.assert_close(found["pairs"], judged)
    torch.testing.assert_close(found["contrast"], torch.stack(near).sum() / 3)
    assert torch.equal(found["relation"], relation_of(pairs, torch.tensor([True, True, False])))


def test_relation_equals_its_formulas() -> None:
    torch.manual_seed(0)
    pairs, wanted = Pairs(torch.randn(4, 5), torch.randn(4, 5), torch.zeros(4)), torch.zeros(())
    apart, cosines = [], []
    for points in (pairs.guessed, pairs.sentences):
        distances = torch.stack([torch.stack([(a - b).norm() for b in points]) for a in points])
        apart.append(distances / (distances.sum() / 12))
        cosines.append(torch.zeros(4, 4, 4))
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    if i not in (j, k):
                        one, other = points[j] - points[i], points[k] - points[i]
                        cosines[-1][i, j, k] = one @ other / (one.norm() * other.norm())
    for one, other in (apart, cosines):
        difference = (one - other).abs()
        wanted = wanted + torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    torch.testing.assert_close(relation_of(pairs, torch.ones(4, dtype=torch.bool)), wanted)
    assert float(relation_of(pairs, torch.tensor([True, False, False, False]))) == 0


def test_other_expressions_are_read_only_in_training() -> None:
    head, batch = small_head(replace(SMALL, faithful=True))
    assert head.eval()(batch).others is None
    others = head.train()(batch).others
    expression = head.expression(batch)
    torch.testing.assert_close(others.sentences, expression.sentence.mean(dim=1).roll(1, dims=0))


def test_masks_are_empty_where_the_expression_is_judged_not_to_fit() -> None:
    head, batch = small_head(SMALL)
    output = head.eval()(batch)
    output.pairs.logits = torch.tensor([-1.0, 1.0, -0.1])
    assert head.probs(output).flatten(1).any(dim=1).tolist() == [True, False, True]

"""AVSBench against its formulas, written out."""

import pytest
import torch
from torch import Tensor, nn

from refavs.model.heads.avsbench import AVSBenchOutput, DilatedConvolutions, Interaction, ResidualUnit
from refavs.model.heads.parts.baseline_options import AVSBenchOptions
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, quadratic_interaction, small_head


@pytest.mark.parametrize("by_batch", [False, True])
def test_interaction_equals_its_quadratic_form(by_batch: bool) -> None:
    torch.manual_seed(0)
    interaction = Interaction(16, 5, by_batch)
    for parameter in interaction.parameters():
        nn.init.normal_(parameter, std=0.5)
    maps, sound = torch.randn(1, 3, 16, 4, 6), torch.randn(1, 3, 5)
    with torch.no_grad():
        found, heard = interaction(maps, maps.mean(dim=(3, 4)), sound, torch.tensor([0]))
        wanted = quadratic_interaction(interaction, maps[0], sound[0])
        torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(heard, interaction.align(sound))


def test_interaction_starts_as_no_interaction() -> None:
    interaction, maps = Interaction(16, 5, by_batch=False), torch.randn(2, 3, 16, 4, 4)
    found, _ = interaction(maps, maps.mean(dim=(3, 4)), torch.randn(3, 3, 5), torch.tensor([0, 0, 1]))
    wanted = nn.functional.layer_norm(maps[[0, 0, 1]].movedim(2, -1), (16,)).movedim(-1, 2)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_means_of_dilated_convolutions_are_those_of_their_result() -> None:
    torch.manual_seed(0)
    convolutions, maps = DilatedConvolutions(3, 4), torch.randn(2, 3, 3, 16, 7)  # narrower than two of the dilations
    wanted = torch.stack([convolutions(one).mean(dim=(2, 3)) for one in maps])
    torch.testing.assert_close(convolutions.means(maps), wanted)


def test_skip_of_a_residual_unit_is_rectified() -> None:
    unit = ResidualUnit(8)
    for parameter in unit.second.parameters():
        nn.init.zeros_(parameter)
    maps = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(unit(maps), maps.relu())


@pytest.mark.long
def test_forward_equals_the_formulas_for_one_expression() -> None:
    head, batch = small_head(AVSBenchOptions(channels=16))
    for interaction in head.interactions:
        nn.init.normal_(interaction.out_norm.weight)
    with torch.no_grad():
        words = batch.text[1, :2].sum(dim=0)
        sentence = head.cue.read.project(nn.functional.layer_norm(words, words.shape))
        sound = batch.audio[0] + sentence
        stages = []
        for name, convolutions, interaction in zip(batch.visual, head.dilated, head.interactions, strict=True):
            summed = torch.stack([one(batch.visual[name][0].float()) for one in convolutions.convolutions]).sum(dim=0)
            stages.append(quadratic_interaction(interaction, summed, sound))

        def unit(one: ResidualUnit, maps: Tensor) -> Tensor:
            return maps.relu() + one.second(one.first(maps.relu()).relu())

        decoded = torch.zeros(1)
        for number in (3, 2, 1, 0):
            block, stage = head.decoder[number], stages[number]
            joined = stage if number == 3 else decoded + unit(block.inner, stage)
            decoded = nn.functional.interpolate(
                unit(block.outer, joined), scale_factor=2, mode="bilinear", align_corners=True
            )
        enlarged = nn.functional.interpolate(head.masks.narrow(decoded), scale_factor=2, mode="bilinear")
        wanted = head.masks.fine(enlarged)[:, 0]
        torch.testing.assert_close(head(batch).logits[1], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("faithful", [False, True])
def test_loss_equals_its_formulas(faithful: bool) -> None:
    head, batch = small_head(AVSBenchOptions(channels=16, faithful=faithful))
    torch.manual_seed(1)
    logits = torch.randn(3, 2, 64, 64)
    logits[2] = -logits[2].abs()  # no mask is predicted
    stages = [torch.randn(3, 2, 16, side, side) for side in (16, 8)]
    sounds = [torch.randn(3, 2, 16) for _ in stages]
    assert batch.mask is not None
    found = head.loss(AVSBenchOutput(logits, stages, sounds), Target(masks=batch.mask), PIXELS)
    bce = nn.functional.binary_cross_entropy_with_logits(logits, batch.mask.float())
    terms = []
    for stage, sound, side in zip(stages, sounds, (16, 8), strict=True):
        share = nn.functional.adaptive_avg_pool2d(logits, side).sigmoid()
        shown = nn.functional.normalize((stage * share[:, :, None]).mean(dim=(3, 4)), dim=-1).log_softmax(dim=-1)
        heard = nn.functional.normalize(sound, dim=-1).softmax(dim=-1)
        rows = slice(None) if faithful else slice(2)
        summed = nn.functional.kl_div(shown[rows], heard[rows], reduction="sum")
        terms.append(summed if faithful else summed / 6)
    matching = torch.stack(terms).mean()
    torch.testing.assert_close(found["bce"], bce)
    probs, labels = logits.sigmoid().flatten(2), batch.mask.flatten(2).float()
    dice = (1 - (2 * (probs * labels).sum(-1) + 1) / (probs.sum(-1) + labels.sum(-1) + 1)).mean()
    torch.testing.assert_close(found["matching"], matching)
    torch.testing.assert_close(found["dice"], dice)
    torch.testing.assert_close(found["total"], bce + 0.5 * matching + (0 if faithful else dice))

"""What all baselines of Table 3 keep: the contract of heads, their sizes, what is trained, and what a cue changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from refavs.errors import SettingError
from refavs.model.batch_cache import Once
from refavs.model.heads.contract import check_head, expression_of
from refavs.model.heads.parts.baseline_masks import MaskConvolutions
from refavs.model.heads.parts.baseline_options import (
    AVSBenchOptions,
    AVSegFormerOptions,
    BaselineOptions,
    GAVSOptions,
)
from refavs.model.heads.registry import implementation_of
from tests.refavs.small_heads import loss_of, overfit, published_sizes, small_head, small_sizes, with_other
from tests.refavs.test_rvos import SMALL as CLIP_QUERIES
from tests.support.samples import sampled

SMALL: dict[str, BaselineOptions] = {
    "avsbench": AVSBenchOptions(channels=16),
    "avsegformer": AVSegFormerOptions(
        channels=32, num_queries=4, num_heads=2, generator_layers=1, encoder_layers=1, decoder_layers=1,
        generator_feedforward_channels=16, feedforward_channels=16, mask_channels=32,
    ),
    "gavs": GAVSOptions(channels=16, num_heads=2, feedforward_channels=16, noise="none"),
}  # fmt: skip
# Millions of parameters: with the sound alone, and what the text adds; for the last of the sets of maps.
PUBLISHED = {
    "avsbench": (AVSBenchOptions(), 26.95, 0.098), "avsegformer": (AVSegFormerOptions(), 30.60, 0.197),
    "gavs": (GAVSOptions(), 4.98 - 0.197, 0.197),
}  # fmt: skip
# The attention to a single cue is the same whatever its queries and keys are.
UNREACHED = {"avsegformer": ("cross_attention.query", "cross_attention.key")}

each = pytest.mark.parametrize("name", SMALL)


@pytest.mark.long
@pytest.mark.parametrize(("name", "settings"), [
    *(pytest.param(name, {}, marks=[pytest.mark.slow] * (name == "avsbench")) for name in SMALL),
    ("avsbench", {"text": False, "faithful": True}),
])  # fmt: skip
def test_baseline_keeps_the_contract(name: str, settings: dict[str, Any]) -> None:
    options = replace(SMALL[name], **settings)
    check_head(options, small_sizes(options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_baseline_has_the_published_number_of_parameters(name: str) -> None:
    options, alone, text = PUBLISHED[name]
    found = {}
    for with_text in (False, True):
        form = replace(options, text=with_text)
        with torch.device("meta"):
            head = implementation_of(form)(form, published_sizes(form))
        found[with_text] = sum(p.numel() for p in head.parameters()) / 1e6
    assert found[False] == pytest.approx(alone, rel=0.01)
    assert found[True] - found[False] == pytest.approx(text, rel=0.01)


@each
def test_gradient_reaches_each_trained_parameter_and_no_other(name: str) -> None:
    head, batch = small_head(SMALL[name])
    head.train()
    optimizer = torch.optim.SGD(head.trained_parameters(), lr=0.1)
    for _ in range(2):  # what is multiplied by a weight that starts at zero has no gradient in the first step
        optimizer.zero_grad()
        loss_of(head, batch).backward()
        optimizer.step()
    reached = {n: p.grad is not None and bool(p.grad.any()) for n, p in head.named_parameters()}
    trained = {n: p.requires_grad for n, p in head.named_parameters()}
    exempt = {n for n in reached if any(part in n for part in UNREACHED.get(name, ()))}
    assert {n for n in reached if reached[n] != trained[n]} == exempt


@pytest.mark.parametrize("modality", ["text", "audio"])
@each
def test_removed_cue_has_no_influence(name: str, modality: str) -> None:
    head, batch = small_head(replace(SMALL[name], **{modality: False}))
    whole, _ = small_head(SMALL[name])
    changed = with_other(batch, modality)
    before, after = (head.eval().probs(head(one)) for one in (batch, changed))
    assert torch.equal(before, after)
    for parameter in whole.parameters():  # an interaction that starts at zero hears nothing
        torch.nn.init.normal_(parameter, std=0.3)
    before, after = (whole.eval().probs(whole(one)) for one in (batch, changed))
    assert not torch.equal(before, after)


@each
def test_padding_of_an_expression_has_no_influence(name: str) -> None:
    head, batch = small_head(SMALL[name])
    text = torch.where(batch.valid[..., None], batch.text, 1e3)
    before, after = (head.eval().probs(head(one)) for one in (batch, replace(batch, text=text)))
    assert torch.equal(before, after)


@pytest.mark.long
@pytest.mark.parametrize("name", sampled(SMALL, lambda name: name == "avsegformer"))
def test_baseline_overfits_one_batch(name: str) -> None:
    assert overfit(*small_head(SMALL[name])) > 0.95


@each
def test_heads_that_share_a_batch_predict_as_alone(name: str) -> None:
    head, batch = small_head(SMALL[name])
    other, _ = small_head(replace(SMALL[name], text=False))
    once = Once(keep=True)
    for one in (head.eval(), other.eval()):
        assert torch.equal(one.probs(one(batch, once=once)), one.probs(one(batch)))


@each
def test_baseline_computes_in_bfloat16(name: str) -> None:
    head, batch = small_head(SMALL[name])
    exact = loss_of(head, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss_of(head, batch)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


@pytest.mark.parametrize("row", [0, 2])  # the third expression has no object
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("options", [*SMALL.values(), *CLIP_QUERIES.values()], ids=lambda options: options.head)
def test_batch_of_one_expression_and_one_second_can_be_trained_on(
    options: BaselineOptions, faithful: bool, row: int
) -> None:
    head, batch = small_head(replace(options, faithful=faithful), num_steps=1)
    one = expression_of(batch, row)
    loss = loss_of(head.train(), one)
    loss.backward()
    assert bool(loss.isfinite()) and head.eval().probs(head(one), (24, 40)).shape == (1, 1, 24, 40)
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [SMALL["avsegformer"], CLIP_QUERIES["referformer"]], ids=lambda one: one.head)
def test_gradient_is_the_same_where_steps_are_recomputed(
    options: BaselineOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for kept in (2**24, 0):
        monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
        head, batch = small_head(options)
        loss = loss_of(head, batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in head.trained_parameters() if p.grad is not None)])
    torch.testing.assert_close(*found)


def refused(name: str, **settings: Any) -> None:
    replace(SMALL[name], **settings)


def test_masks_are_the_same_where_they_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    convolutions, found = MaskConvolutions(16, scale=2), []
    features = torch.randn(2, 16, 4, 6)
    for kept in (2 * 8 * 4 * 6 * 4, 2 * 8 * 4 * 6 * 4 - 1):
        monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
        given = features.clone().requires_grad_()
        masks = convolutions(given)
        masks.square().sum().backward()
        found.append((masks.detach(), given.grad))
    torch.testing.assert_close(*found)
    assert found[0][0].shape == (2, 8, 12)


@each
def test_baseline_without_any_cue_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="audio and text are both false"):
        refused(name, audio=False, text=False)


@pytest.mark.parametrize(("name", "settings", "told"), [
    ("avsbench", {"channels": 12}, "channels is 12; accepted: a multiple of 8"),
    ("avsbench", {"matching": -1.0}, "matching is -1.0; accepted: a number from 0 up"),
])  # fmt: skip
def test_bad_setting_is_refused(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        refused(name, **settings)

"""What ReferFormer and R2VOS keep: the contract of heads, sizes, what is trained, and what a cue changes."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from refavs.data.batches import Batch
from refavs.errors import SettingError
from refavs.model.batch_cache import Once
from refavs.model.heads.contract import check_head
from refavs.model.heads.parts.rvos_options import ClipQueryOptions, R2VOSOptions, ReferFormerOptions
from refavs.model.heads.protocol import ChosenSteps
from refavs.model.heads.registry import implementation_of, names
from refavs.model.target import Target
from tests.refavs.small_heads import PIXELS, loss_of, overfit, published_sizes, small_head, small_sizes, with_other
from tests.support.samples import sampled

TINY = {"channels": 64, "num_queries": 3, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "feedforward_channels": 16, "dropout": 0.0}  # fmt: skip
SMALL: dict[str, ClipQueryOptions] = {
    "referformer": ReferFormerOptions(**TINY), "r2vos": R2VOSOptions(**TINY),  # type: ignore[arg-type]
}  # fmt: skip
# Losses that relate the expressions of a batch are those of its parts only if the parts have them all.
RELATED: dict[str, dict[str, Any]] = {"r2vos": {"negatives": "null", "relation_weight": 0.0}}
# Millions of parameters: with the text alone, and what the sound adds.
PUBLISHED = {"referformer": (ReferFormerOptions(), 25.31), "r2vos": (R2VOSOptions(), 27.48)}
SOUND = 0.033

each = pytest.mark.parametrize("name", SMALL)


@pytest.mark.long
@pytest.mark.parametrize(("name", "settings"), [
    pytest.param("referformer", {}, marks=pytest.mark.slow), ("r2vos", {"audio": False, "faithful": True}),
])  # fmt: skip
def test_head_keeps_the_contract(name: str, settings: dict[str, Any]) -> None:
    assert name in names()
    options = replace(SMALL[name], **settings, **RELATED.get(name, {}))
    check_head(options, small_sizes(options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_head_has_the_published_number_of_parameters(name: str) -> None:
    options, alone = PUBLISHED[name]
    found = {}
    for with_sound in (False, True):
        form = replace(options, audio=with_sound)
        with torch.device("meta"):
            head = implementation_of(form)(form, published_sizes(form))
        found[with_sound] = sum(p.numel() for p in head.parameters()) / 1e6
    assert found[False] == pytest.approx(alone, rel=0.01)
    assert found[True] - found[False] == pytest.approx(SOUND, rel=0.01)


@pytest.mark.long
@each
def test_gradient_reaches_each_trained_parameter(name: str) -> None:
    head, batch = small_head(SMALL[name])
    head.train()
    optimizer = torch.optim.SGD(head.trained_parameters(), lr=0.1)
    for _ in range(3):  # what is multiplied by a weight that starts at zero has no gradient in the first step
        optimizer.zero_grad()
        loss_of(head, batch).backward()
        optimizer.step()
    reached = {n: p.grad is not None and bool(p.grad.any()) for n, p in head.named_parameters()}
    assert {n for n in reached if not reached[n]} == set()


@pytest.mark.parametrize("modality", ["text", "audio"])
@each
def test_removed_cue_has_no_influence(name: str, modality: str) -> None:
    head, batch = small_head(replace(SMALL[name], **{modality: False, "min_score": 0.0}))
    whole, _ = small_head(replace(SMALL[name], min_score=0.0))
    changed = with_other(batch, modality)
    before, after = (head.eval().probs(head(one)) for one in (batch, changed))
    assert torch.equal(before, after)
    before, after = (whole.eval().probs(whole(one)) for one in (batch, changed))
    assert not torch.equal(before, after)


@each
def test_padding_of_an_expression_has_no_influence(name: str) -> None:
    head, batch = small_head(replace(SMALL[name], min_score=0.0))
    text = torch.where(batch.valid[..., None], batch.text, 1e3)
    before, after = (head.eval().probs(head(one)) for one in (batch, replace(batch, text=text)))
    assert torch.equal(before, after)


@pytest.mark.long
@pytest.mark.parametrize("name", sampled(SMALL, lambda name: name == "r2vos"))
def test_head_overfits_one_batch(name: str) -> None:
    assert overfit(*small_head(SMALL[name])) > 0.95


@each
def test_heads_that_share_a_batch_predict_as_alone(name: str) -> None:
    head, batch = small_head(SMALL[name])
    other, _ = small_head(replace(SMALL[name], audio=False))
    once = Once(keep=True)
    for one in (head.eval(), other.eval()):
        assert torch.equal(one.probs(one(batch, once=once)), one.probs(one(batch)))


@each
def test_chosen_steps_are_the_clip_in_training(name: str) -> None:
    head, batch = small_head(SMALL[name], num_steps=2)
    other = {name: torch.cat([maps[:, :1] + 1, maps[:, 1:]], dim=1) for name, maps in batch.visual.items()}
    for training in (True, False):
        head.train(training)
        masks = [head(one, ChosenSteps.of([1])).layers[-1].mask_logits for one in (batch, replace(batch, visual=other))]
        assert torch.equal(*masks) == training
        assert head.steps_read([1]) == ({key: [1] for key in batch.visual} if training else {})


@pytest.mark.long
@each
def test_head_computes_in_bfloat16(name: str) -> None:
    head, batch = small_head(SMALL[name])
    exact = loss_of(head, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(batch)
    assert batch.mask is not None
    rounded = head.loss(output, Target(masks=batch.mask), PIXELS)["total"]
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert float(rounded.detach()) == pytest.approx(float(exact.detach()), rel=0.05)


def nulls_of(batch: Batch) -> Batch:
    assert batch.mask is not None
    return replace(batch, mask=torch.zeros_like(batch.mask))


@each
def test_batch_without_any_object_teaches_only_that(name: str) -> None:
    head, batch = small_head(SMALL[name], num_steps=1)
    batch = nulls_of(batch)
    assert batch.mask is not None
    losses = head.loss(head(batch), Target(masks=batch.mask), PIXELS)
    assert float(losses["classification"]) > 0
    assert [float(losses[part]) for part in ("boxes", "giou", "focal", "dice")] == [0, 0, 0, 0]
    losses["total"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


@each
def test_published_form_leaves_out_expressions_without_an_object(name: str) -> None:
    head, batch = small_head(replace(SMALL[name], faithful=True))
    assert float(loss_of(head, nulls_of(batch)).detach()) == 0


def test_masks_of_a_low_score_are_empty() -> None:
    head, batch = small_head(SMALL["referformer"])
    output = head.eval()(batch)
    assert head.options.choice("min_score") == 0.3
    assert bool((output.scores < 0.3).all())  # at the start nothing is the object
    assert not head.probs(output).any()
    head.options = replace(head.options, faithful=True)
    assert head.options.choice("min_score") == 0 and bool(head.probs(output).any())


@pytest.mark.parametrize(("settings", "told"), [
    ({"audio": False, "text": False}, "audio and text are both false"),
    ({"channels": 48}, "channels is 48; accepted: a multiple of 32"),
    ({"box_weight": -1.0}, "box_weight is -1.0; accepted: a number from 0 up"),
    ({"min_score": 1.5}, "min_score is 1.5; accepted: a number from 0 to below 1"),
    ({"decoder_layers": 0}, "decoder_layers is 0; accepted: a whole number from 1 up"),
])  # fmt: skip
@each
def test_bad_setting_is_refused(name: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        replace(SMALL[name], **settings)

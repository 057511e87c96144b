"""Dropout by random bits, and the feed-forward part against plain layers, whole and in parts."""

import pytest
import torch
from torch import nn

from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from refavs.model.heads.parts.recomputed import at_once, whole


def test_dropout_keeps_the_mean_and_its_gradient_is_what_it_multiplied_by() -> None:
    torch.manual_seed(0)
    values = torch.ones(1001, 7, requires_grad=True)
    found = Dropout(0.25)(values)
    found.sum().backward()
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    assert values.grad is not None and torch.equal(values.grad, found.detach())
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)  # 4 standard deviations
    assert not torch.equal(found, Dropout(0.25)(values))


def test_dropout_does_nothing_at_inference_or_without_a_share() -> None:
    values = torch.randn(5, 3)
    assert torch.equal(Dropout(0.5).eval()(values), values) and torch.equal(Dropout(0.0)(values), values)


@pytest.mark.parametrize(("kept", "part"), [(2**24, 2**22), (0, 40)])
def test_feedforward_equals_plain_layers(monkeypatch: pytest.MonkeyPatch, kept: int, part: int) -> None:
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.PART_VALUES", part)
    torch.manual_seed(0)
    ours, plain = FeedForward(6, 8), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 6))
    plain.load_state_dict(ours.state_dict())
    tokens, results = torch.randn(2, 7, 6), []
    for module in (ours, plain):
        given = tokens.clone().requires_grad_()
        found = module(given)
        found.square().sum().backward()
        results.append((found.detach(), given.grad, *(one.grad for one in module.parameters())))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kept", [2**24, 0])
def test_feedforward_drops_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.PART_VALUES", 40)
    torch.manual_seed(0)
    module = FeedForward(6, 8, dropout=0.5).double()
    tokens, direction = torch.randn(9, 6, dtype=torch.double, requires_grad=True), torch.randn(9, 6).double()

    def loss(at: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return module(at).square().sum()

    loss(tokens).backward()
    assert tokens.grad is not None
    with torch.no_grad():
        slope = (loss(tokens + 1e-6 * direction) - loss(tokens - 1e-6 * direction)) / 2e-6
        assert not torch.equal(module(tokens), module(tokens))
    assert float((tokens.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-6)


def test_parts_are_small_on_a_processor_and_one_where_it_is_asked() -> None:
    rows = torch.empty(1000, 1)
    assert at_once(rows, 2**30) == 3 and at_once(rows, 2**40) == 1
    assert at_once(rows.to("meta"), 2**30) == 62  # as on a GPU
    with whole():
        assert at_once(rows, 2**40) == 1000
    assert at_once(rows, 2**30) == 3


@pytest.mark.parametrize("kept", [2**24, 0])
def test_compiler_sees_torch_operations_only(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", kept)
    module, results = FeedForward(6, 8, dropout=0.5), []
    tokens = torch.randn(9, 6)
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # noqa: B023
        given = tokens.clone().requires_grad_()
        found = module.eval()(given)
        found.square().sum().backward()
        results.append((found.detach(), given.grad))
        names = {str(found.grad_fn.name()), str(found.grad_fn.next_functions[0][0].name())}
        assert any("InParts" in name for name in names) != compiling
        assert not torch.equal(module.train()(tokens), module(tokens))
    torch.testing.assert_close(*results)


def test_gradients_of_many_parts_are_summed_with_all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, tokens, found = FeedForward(16, 32), torch.randn(4096, 16), []
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", 0)
    for part in (2**22, 32 * 8):
        monkeypatch.setattr("refavs.model.heads.parts.recomputed.PART_VALUES", part)
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            module(tokens).float().square().sum().backward()
        found.append([parameter.grad for parameter in module.parameters()])
    for whole_one, parts in zip(*found, strict=True):
        assert float((whole_one - parts).norm() / whole_one.norm()) < 0.005

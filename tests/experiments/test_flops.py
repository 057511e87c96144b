"""The counted arithmetic equals torch's count, although little of it is computed."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.grid.config import TrialConfig
from experiments.training.flops import LARGE, FlopCounter
from experiments.training.learner import Learner
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler
from refavs.config import replace
from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from tests.experiments.small_store import make_store


def counted(call) -> int:
    with FlopCounter() as counter:
        call()
    return counter.total


@pytest.mark.parametrize("size", [8, 40])
def test_count_equals_that_of_torch(size: int) -> None:
    layer = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
                                torch.nn.Linear(4 * (size - 2) ** 2, 5))  # fmt: skip
    maps = torch.rand(2, 3, size, size)
    with FlopCounterMode(display=False) as wanted:
        layer(maps).sum().backward()
    assert counted(lambda: layer(maps).sum().backward()) == wanted.get_total_flops()
    assert wanted.get_total_flops() > 2 * 2 * (size - 2) ** 2 * (4 * 27 + 4 * 5)


def test_fused_attention_counts_as_its_products() -> None:
    query, key, value = torch.rand(3, 2, 4, 256, 8, requires_grad=True).unbind()
    one_product = 2 * 2 * 4 * 256 * 256 * 8
    found = counted(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward())
    assert found == (2 + 5) * one_product  # the backward pass computes the scores again


def test_large_products_are_not_computed_and_whole_numbers_are() -> None:
    large, small = torch.ones(LARGE, 2), torch.ones(3, 3)
    with FlopCounter() as counter:
        product, exact = large @ large.T, small @ small
        inside = torch.arange(2 * LARGE).gt(LARGE).sum()
        large.add_(1)
    assert product.shape == (LARGE, LARGE) and not product[:5].any() and product.dtype == large.dtype
    assert exact.eq(3).all() and inside == LARGE - 1 and large.eq(1).all()
    assert counter.total == 2 * (2 * LARGE * LARGE + 27)


@pytest.mark.long
def test_many_random_numbers_are_not_drawn() -> None:
    many, few = torch.zeros(LARGE + 1, dtype=torch.int64), torch.zeros(LARGE, dtype=torch.int64)
    with FlopCounter():
        many.random_(1, 9)
        few.random_(1, 9)
        bits = many.view(torch.int16)
        drop = bits < bits.new_tensor(5)
    assert not many.any() and few.all()
    assert drop.shape == bits.shape and drop.dtype == torch.bool and not drop.any()


def test_small_results_of_large_inputs_are_zero_also_where_they_are_written() -> None:
    large, small = torch.ones(3, LARGE), torch.full((3, 3), torch.nan)
    with FlopCounter() as counter:
        assert torch.mm(large, large.t(), out=small) is small
    assert not small.any() and counter.total == 2 * 9 * LARGE


@pytest.mark.parametrize("part", [2**8, 2**10])
def test_parts_count_as_one(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.KEPT_VALUES", 0)
    monkeypatch.setattr("refavs.model.heads.parts.recomputed.PART_VALUES", part)
    layer = FeedForward(16, 32, dropout=0.1)
    drawn, rows = Dropout.drawn, []
    monkeypatch.setattr(Dropout, "drawn", lambda self, like: rows.append(len(like)) or drawn(self, like))
    tokens = torch.randn(300, 16, requires_grad=True)
    with FlopCounterMode(display=False) as wanted:
        layer(tokens).sum().backward()
    assert rows == [part // 32] * (300 * 32 // part) + [300 % (part // 32)]
    rows.clear()
    assert counted(lambda: layer(tokens).sum().backward()) == wanted.get_total_flops() > 0
    assert rows == [300]


def test_a_step_has_the_arithmetic_that_is_done(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 2, "val": 1})
    model = {"model.num_layers": 1, "model.num_queries": 40, "model.num_heads": 2, "model.visual_downsample": 2,
             "model.decoder_layers": 2, "train.batch_size": 4, "loss.num_points": 500, "train.ema_decay": 0.9}
    config = replace(TrialConfig(), model)
    totals = []
    for large in (LARGE, 2**40):
        learner, sampler = Learner(config, build_model(config, store)), Sampler(config, store)
        learner.model.train()
        parts = next(sampler.batches(0))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("experiments.training.flops.LARGE", large)
            totals.append(counted(lambda: learner.step(parts, 0, 10)))  # noqa: B023
    assert totals[0] == totals[1] > 0

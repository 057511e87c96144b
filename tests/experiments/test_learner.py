"""One step of training: parts of a batch, averaged weights, half precision, and what a state holds."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.grid.config import TrialConfig
from experiments.training.learner import Learner, NonFiniteError, Team
from experiments.training.loop import build_model
from experiments.training.resume import Claim, load_state, save_state
from experiments.training.sampler import Sampler
from refavs.config import replace
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

SMALL = {
    "model.num_layers": 1, "model.num_queries": 3, "model.num_heads": 2, "model.feedforward_channels": 16,
    "model.visual_downsample": 2, "model.decoder_layers": 1, "loss.num_points": 0, "train.epochs": 3,
    "train.steps_per_epoch": 3, "train.batch_size": 6, "train.learning_rate": 0.003, "train.precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


def learner_of(store: FeatureStore, **overrides: Any) -> Learner:
    config = replace(TrialConfig(), SMALL | {name.replace("__", "."): value for name, value in overrides.items()})
    torch.manual_seed(0)
    return Learner(config, build_model(config, store))


def steps(learner: Learner, store: FeatureStore, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    sampler = Sampler(learner.config, store)
    batches = enumerate(sampler.batches(epoch, learner.team.rank, learner.team.size))
    return [learner.step(parts, epoch * sampler.num_steps + index, 9) for index, parts in batches]


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_of_a_batch_give_the_gradient_of_the_whole(store: FeatureStore, num_parts: int) -> None:
    found = []
    for accumulate in (1, num_parts):
        learner = learner_of(store, train__accumulate=accumulate, train__clip_norm=1e9, train__steps_per_epoch=1)
        (losses,) = steps(learner, store)
        found.append((losses, [p.grad for p in learner.trained]))
    (whole, wanted), (parts, grads) = found
    for name, value in whole.items():
        assert float(parts[name]) == pytest.approx(float(value), rel=1e-5), name
    for grad, other in zip(grads, wanted, strict=True):
        assert grad is not None and other is not None
        assert torch.allclose(grad, other, rtol=0, atol=1e-5 * float(whole["grad_norm"]))


class ThreadTeam(Team):
    """Two workers in two threads, whose sums meet here."""

    barrier, values = threading.Barrier(2, timeout=600), [torch.empty(0), torch.empty(0)]

    def add(self, values: torch.Tensor) -> torch.Tensor:
        self.values[self.rank] = values.clone()
        self.barrier.wait()
        values.copy_(self.values[0] + self.values[1])
        self.barrier.wait()
        return values


def test_two_workers_have_the_gradient_of_one(store: FeatureStore) -> None:
    settings = {"train__clip_norm": 1e9, "train__steps_per_epoch": 1, "train__batch_size": 7}
    alone = learner_of(store, **settings)
    (whole,) = steps(alone, store)
    team = [learner_of(store, **settings) for _ in range(2)]
    for rank, learner in enumerate(team):
        learner.team = ThreadTeam(rank, 2)
    with ThreadPoolExecutor(2) as threads:
        (first,), (second,) = threads.map(lambda learner: steps(learner, store), team)
    assert first == second
    for name, value in whole.items():
        assert float(first[name]) == pytest.approx(float(value), rel=1e-5), name
    for wanted, p, q in zip(alone.trained, team[0].trained, team[1].trained, strict=True):
        assert wanted.grad is not None and p.grad is not None and q.grad is not None
        assert torch.equal(p.grad, q.grad)
        assert torch.allclose(p.grad, wanted.grad, rtol=0, atol=1e-5 * float(whole["grad_norm"]))


def test_a_worker_without_a_part_takes_the_same_step(store: FeatureStore) -> None:
    team = [learner_of(store, train__precision="fp16", train__batch_size=1, train__steps_per_epoch=2) for _ in range(2)]
    for rank, learner in enumerate(team):
        learner.team = ThreadTeam(rank, 2)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda learner: steps(learner, store), team)
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(team[0].trained, team[1].trained, strict=True))


def test_average_is_the_running_mean_of_the_weights(store: FeatureStore) -> None:
    learner = learner_of(store, train__ema_decay=0.25)
    name = "prompting.queries"
    mean = learner.model.get_parameter(name).detach().clone()
    sampler = Sampler(learner.config, store)
    for index, parts in enumerate(sampler.batches(0)):
        learner.step(parts, index, 9)
        decay = min(0.25, (1 + index) / (10 + index))
        mean = decay * mean + (1 - decay) * learner.model.get_parameter(name).detach()
    average = learner.average.get_parameter(name)
    assert torch.allclose(average, mean, atol=1e-6) and not torch.equal(average, learner.model.get_parameter(name))
    assert learner_of(store).average is not None and learner.average is not learner.model


def test_average_has_the_statistics_of_the_model(store: FeatureStore) -> None:
    learner = learner_of(store, train__ema_decay=0.25)
    for head, value in ((learner.model, 3.0), (learner.average, 0.0)):
        head.register_buffer("running_mean", torch.tensor(value))
    steps(learner, store)
    assert float(learner.average.get_buffer("running_mean")) == 3.0


@pytest.mark.long
def test_restored_state_continues_bitwise_equal(store: FeatureStore, tmp_path: Path) -> None:
    settings = {"train__ema_decay": 0.9, "train__precision": "fp16", "loss__num_points": 8, "model__dropout": 0.1}
    learner = learner_of(store, **settings)
    steps(learner, store)
    learner.keep_as_best()
    save_state(Claim(tmp_path), learner, 1, [])
    other = learner_of(store, **settings)
    assert load_state(tmp_path, other) == (1, [])
    for one in (learner, other):
        steps(one, store, epoch=1)
    (wanted, facts), (found, other_facts) = learner.state(), other.state()
    assert set(found) == {"model", "optimizer", "average", "best"} and facts["scaler"] == other_facts["scaler"]
    for part, tensors in wanted.items():
        assert all(torch.equal(found[part][name], value) for name, value in tensors.items()), part
    assert any(not torch.equal(found["best"][name], value) for name, value in found["average"].items())


def test_state_of_other_settings_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    save_state(Claim(tmp_path), learner_of(store), 1, [])
    with pytest.raises(ConfigError, match=r"cannot be read \('average'\); remove .* to start this trial again"):
        load_state(tmp_path, learner_of(store, train__ema_decay=0.9))


def test_fp16_that_overflows_skips_the_step_and_lowers_its_scale(store: FeatureStore) -> None:
    learner = learner_of(store, train__precision="fp16", train__steps_per_epoch=1)
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 2.0**127})
    before = [p.detach().clone() for p in learner.trained]
    (found,) = steps(learner, store)
    assert learner.scaler.get_scale() == 2.0**126 and float(found["skipped_steps"]) == 1
    assert all(torch.equal(p, q) for p, q in zip(before, learner.trained, strict=True))


def test_gradient_that_stays_infinite_stops_fp16(store: FeatureStore) -> None:
    learner = learner_of(store, train__precision="fp16", train__steps_per_epoch=1)
    learner.scaler.load_state_dict(learner.scaler.state_dict() | {"scale": 0.5})
    learner.trained[0].register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(NonFiniteError, match="at epoch 1, step 1"):
        steps(learner, store)


def test_steps_without_a_label_change_no_step(store: FeatureStore) -> None:
    found = []
    for painted in (False, True):
        learner = learner_of(store, train__clip_norm=1e9, train__steps_per_epoch=1)
        (parts,) = Sampler(learner.config, store).batches(0, 0, 1)
        changed = []
        for number, part in parts:
            assert part.mask is not None and part.labelled is not None
            mask, labelled = part.mask.clone(), part.labelled.clone()
            labelled[:, 1], mask[:, 1] = False, painted
            changed.append((number, dataclasses.replace(part, mask=mask, labelled=labelled)))
        losses = learner.step(changed, 0, 1)
        found.append((losses, [p.grad for p in learner.trained]))
    (losses, grads), (other_losses, other_grads) = found
    assert all(torch.equal(losses[name], other_losses[name]) for name in losses)
    assert all(torch.equal(one, other) for one, other in zip(grads, other_grads, strict=True))  # type: ignore[arg-type]

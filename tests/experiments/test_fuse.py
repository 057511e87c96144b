"""Fused trials: each is bitwise equal to its unfused run, fails alone, and can resume in any other group."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from experiments.cluster import grouping as fuse
from experiments.cluster.resources import Resources
from experiments.grid.config import TrialConfig
from experiments.grid.expand import expand
from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.training import learner
from experiments.training.learner import NonFiniteError
from experiments.training.loop import Run, train, train_group
from experiments.training.sampler import Sampler
from refavs.config import replace
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store
from tests.experiments.test_train import SMALL, without_times

BASE = {
    **SMALL, "train.order_seed": 7, "train.frames": 2, "model.decoder_layers": 1, "loss.num_points": 16,
    "model.dropout": 0.1, "train.steps_per_epoch": 2, "train.batch_size": 4,
}  # fmt: skip
CASES = {
    "plain": {}, "seed": {"seed": 1}, "beta": {"model.beta": 0.3, "train.learning_rate": 0.001},
    "no_memory": {"model.text": False, "model.memory": False},
    "no_decoder": {"model.decoder_layers": 0, "loss.num_points": 0},
    "short": {"train.epochs": 2, "model.visual_downsample": 4, "train.ema_decay": 0.9, "train.precision": "bf16"},
}  # fmt: skip
CONFIGS = {name: replace(TrialConfig(), BASE | settings) for name, settings in CASES.items()}
DIVERGES = replace(TrialConfig(), BASE | {"train.learning_rate": 1e30})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 3, "val": 1, "test_s": 1, "test_n": 1})


@pytest.fixture(scope="module")
def alone(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone")
    for name, config in CONFIGS.items():
        train(config, store, root / name)
    return root


def require_equal(fused: Path, unfused: Path) -> None:
    assert without_times(read_metrics(fused)) == without_times(read_metrics(unfused))
    found, wanted = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (fused, unfused))
    assert found.keys() == wanted.keys() and all(found[name].equal(value) for name, value in wanted.items())
    assert (fused / "statistics.parquet").read_bytes() == (unfused / "statistics.parquet").read_bytes()
    assert {path.name for path in fused.iterdir()} == {path.name for path in unfused.iterdir()}


@pytest.mark.long
def test_fused_trials_equal_their_unfused_selves(
    store: FeatureStore, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: Run(config=config, folder=tmp_path / name) for name, config in CONFIGS.items()}
    runs["diverges"] = Run(config=DIVERGES, folder=tmp_path / "diverges")
    read = 0
    read_rows = FeatureStore.read_rows

    def counted(*args: Any) -> Any:
        nonlocal read
        read += 1
        return read_rows(*args)

    monkeypatch.setattr(FeatureStore, "read_rows", counted)
    assert len({fuse.reading(run.config) for run in runs.values()}) == 1
    train_group(list(runs.values()), store)
    of_group, read = read, 0
    assert isinstance(runs.pop("diverges").error, NonFiniteError) and not (tmp_path / "diverges" / "state").exists()
    for name, run in runs.items():
        assert run.error is None and run.result["epoch"] == run.config.train.epochs
        require_equal(run.folder, alone / name)
    train(CONFIGS["plain"], store, tmp_path / "again")
    (batch,) = next(iter(Sampler(CONFIGS["no_decoder"], store).batches(0)))[:1]
    assert list(batch[1].visual) == ["mask_features"]  # alone it reads less
    assert of_group < 3 * read  # a short trial's end, a longer one's, and two pictures each


@pytest.mark.long
def test_killed_group_resumes_in_other_groups(store: FeatureStore, alone: Path, tmp_path: Path) -> None:
    names = ["plain", "seed", "beta", "no_memory"]

    def killed(records: list[dict[str, Any]]) -> None:
        if records[-1]["epoch"] == 2:
            raise KeyboardInterrupt

    runs = [Run(config=CONFIGS[name], folder=tmp_path / name) for name in names]
    runs[1].report = killed  # the first one has its second epoch then, and the last ones not
    with pytest.raises(KeyboardInterrupt):
        train_group(runs, store)
    assert [len(read_metrics(run.folder)) for run in runs] == [2, 2, 1, 1]
    for names in (["beta", "plain"], ["seed", "no_memory"]):
        train_group([Run(config=CONFIGS[name], folder=tmp_path / name) for name in names], store)
        for name in names:
            require_equal(tmp_path / name, alone / name)


@pytest.mark.long
def test_trial_of_a_group_is_stopped_alone(store: FeatureStore, alone: Path, tmp_path: Path) -> None:
    runs = [Run(config=CONFIGS[name], folder=tmp_path / name) for name in ("plain", "seed")]
    over: list[Path] = []

    def stop_at_one(records: list[dict[str, Any]]) -> None:
        (tmp_path / "plain" / ".stop").touch()

    runs[0].report = stop_at_one
    for run in runs:
        run.over = lambda run: over.append(run.folder)
    train_group(runs, store)
    assert over == [run.folder for run in runs] and runs[0].result == {} and len(read_metrics(runs[0].folder)) == 1
    require_equal(runs[1].folder, alone / "seed")
    (tmp_path / "plain" / ".stop").unlink()
    train_group([Run(config=CONFIGS["plain"], folder=tmp_path / "plain")], store)
    require_equal(runs[0].folder, alone / "plain")


@pytest.mark.long
def test_parts_of_a_batch_are_not_kept_for_the_group(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"train.epochs": 1, "train.accumulate": 2, "train.steps_per_epoch": 2}
    configs = [replace(CONFIGS[name], short) for name in ("plain", "beta")]
    kept: set[bool] = set()
    losses = learner.Learner._losses

    def seen(self: Any, part: Any, frames: Any, whole: Any, once: Any) -> Any:
        kept.add(once._known is not None)
        return losses(self, part, frames, whole, once)

    monkeypatch.setattr(learner.Learner, "_losses", seen)
    train(configs[1], store, tmp_path / "alone")
    train_group([Run(config=c, folder=tmp_path / str(i)) for i, c in enumerate(configs)], store)
    require_equal(tmp_path / "1", tmp_path / "alone")
    assert kept == {False}


@pytest.mark.long
def test_trial_that_cannot_write_fails_alone(store: FeatureStore, alone: Path, tmp_path: Path) -> None:
    runs = [Run(config=CONFIGS[name], folder=tmp_path / name) for name in ("plain", "seed", "beta")]
    for name in ("seed", "beta"):
        (tmp_path / name).mkdir()
    (tmp_path / "seed" / "state").touch()
    (tmp_path / "beta" / "overlays").touch()
    train_group(runs, store)
    assert [type(run.error) for run in runs] == [type(None), FileExistsError, type(None)]
    assert [bool(run.result) for run in runs] == [True, False, True]
    require_equal(runs[0].folder, alone / "plain")


@pytest.mark.long
def test_lack_of_memory_is_blamed_on_a_trial_only_where_it_is_alone(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    ahead = Run(config=CONFIGS["plain"], folder=tmp_path / "plain")
    ahead.report = lambda records: (tmp_path / "plain" / ".stop").touch()
    train_group([ahead], store)
    (tmp_path / "plain" / ".stop").unlink()
    monkeypatch.setattr(learner.Learner, "step", full)
    group = [Run(config=CONFIGS[name], folder=tmp_path / name) for name in ("plain", "seed")]
    with pytest.raises(torch.OutOfMemoryError):  # the one that is behind steps alone, beside the other's weights
        train_group(group, store)
    assert [run.error for run in group] == [None, None]
    monkeypatch.undo()
    monkeypatch.setattr("experiments.training.loop.evaluate_together", full)
    train_group([last := Run(config=CONFIGS["seed"], folder=tmp_path / "seed")], store)
    assert isinstance(last.error, torch.OutOfMemoryError)


def entries_of(tmp_path: Path, cases: dict[str, Any], seeds: Sequence[int]) -> list[Entry]:
    grid = expand("g", {"base": {"train.epochs": 1}, "cases": cases, "seeds": list(seeds)}, "g.yaml", {})
    return Ledger(tmp_path / "g").entries(grid.trials, lambda trial: "store")


def sizes(entries: Sequence[Entry], *args: Any, **kwargs: Any) -> list[int]:
    found = fuse.groups(entries, *args, **kwargs)
    assert sorted(entry.key for group in found for entry in group) == sorted(entry.key for entry in entries)
    assert all(len({fuse.reading(entry.trial.config) for entry in group}) == 1 for group in found)
    return [len(group) for group in found]


def test_trials_that_read_the_same_are_grouped_and_no_place_stays_empty(tmp_path: Path) -> None:
    def places(number: int) -> Any:
        return lambda resources: number

    betas = {f"beta {value}": {"model.beta": value} for value in range(12)}
    entries = entries_of(tmp_path, betas, [0])
    assert sizes(entries, 1, places(2)) == [1] * 12 and sizes(entries, 5, places(2)) == [4, 4, 4]
    assert sizes(entries, "auto", places(1)) == [6, 6] and sizes(entries, "auto", places(5)) == [2, 2, 3, 2, 3]
    assert sizes(entries, "auto", places(99)) == [1] * 12
    assert sizes(entries, "auto", places(1), limit=lambda config: 3) == [3] * 4
    seeds = entries_of(tmp_path, {"a": {}, "b": {"model.text": False}}, [0, 1, 2])
    assert sizes(seeds, "auto", places(2)) == [2, 2, 2]  # a seed has an order of its own
    shared = entries_of(tmp_path, {"a": {"train.order_seed": 0}, "b": {"resources.workers": 2}}, [0, 1, 2])
    assert sizes(shared, 8, places(2)) == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "settings",
    [{"train.batch_size": 3}, {"train.frames": 1}, {"train.order_seed": 8}, {"train.accumulate": 2},
     {"train.eval_batch_size": 3}, {"resources.cpus": 2}, {"train.steps_per_epoch": 1},
     {"train.expressions_per_clip": 4}, {"train.sampling": "dimension"},
     {"model.trained": "fusion+transformer_decoder+pixel_decoder"}],
)  # fmt: skip
def test_trials_that_read_otherwise_are_apart(settings: dict[str, Any]) -> None:
    assert fuse.reading(replace(CONFIGS["plain"], settings)) != fuse.reading(CONFIGS["plain"])


def test_memory_limits_a_group(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = fuse.memory_limit(store, 2)
    assert limit(CONFIGS["plain"]) == fuse.MOST
    monkeypatch.setattr(fuse, "memory_bytes", lambda device: 400_000)
    few = limit(CONFIGS["plain"])
    assert 1 <= few < fuse.MOST and limit(CONFIGS["short"]) <= few
    monkeypatch.setattr(fuse, "memory_bytes", lambda device: 1)
    assert limit(CONFIGS["plain"]) == 1


def test_memory_limit_uses_the_device_of_the_sweep(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fuse, "memory_bytes", lambda device: 1 if device.type == "cuda" else 10**12)
    assert fuse.memory_limit(store, 1)(CONFIGS["plain"]) == fuse.MOST
    assert fuse.memory_limit(store, 1, Resources(gpus_per_trial=1))(CONFIGS["plain"]) == 1


def test_head_that_cannot_be_built_is_left_to_its_own_process(store: FeatureStore) -> None:
    assert fuse.memory_limit(store, 1)(replace(CONFIGS["plain"], {"model.channels": 6})) == fuse.MOST

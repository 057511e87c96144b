"""Trials under Ray: killed halfway and resumed by the same command, they equal undisturbed trials."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from experiments.cluster import tune_runner as jobs
from experiments.cluster.resources import Resources
from experiments.grid.config import TrialResources
from experiments.grid.expand import expand, read_grid
from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.records.stores import features_in
from experiments.training.loop import train
from refavs.errors import ConfigError
from tests.experiments.listed import Listed
from tests.experiments.small_store import make_store

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

GRID = """
base:
  model: {num_layers: 1, num_queries: 2, num_heads: 2, visual_downsample: 2, decoder_layers: 0}
  loss: {num_points: 0}
  train: {epochs: 12, steps_per_epoch: 10}
cases:
  full: {}
  diverges: {train.learning_rate: 1e30}
  no_audio: {model.audio: false}
"""
TIMES = ("train/seconds_per_step", "train/wait_share")
COMMAND = "import sys; from experiments.cli import main; sys.exit(main(sys.argv[1:]))"


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = [str(folder / "g.yaml"), "--store", str(folder / "store"), "--out", str(folder / "g"), *options]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_address_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(**settings: object) -> None:
        raise ConnectionError("Failed to connect\nand more")

    monkeypatch.setattr(jobs.ray, "init", unreachable)
    (entry,) = Ledger(tmp_path / "g").entries(expand("g", {}, "g.yaml", {}).trials, lambda trial: "store")
    (tmp_path / "g").mkdir()
    with pytest.raises(ConfigError, match=r"at --address 10.0.0.1:1 \(Failed to connect\); start one with 'ray start"):
        jobs.run_trials(
            Listed([entry]), str(tmp_path), Resources(address="10.0.0.1:1"), tmp_path / "g", {TrialResources()}
        )
    assert not list((tmp_path / "g").iterdir())


class Placed(Listed):
    """A placement of listed trials on pretended nodes, without Ray."""

    def __init__(self, groups: list[list[Entry]], nodes: list[dict[str, float]], **resources: Any) -> None:
        super().__init__(groups)
        of = Resources(**resources)
        asks = [of.ask(entry.trial.config.resources) for group in groups for entry in group]
        self.placement = jobs._Placement(self, "store", of, asks)
        self.placement._nodes, self.placement._nodes_at = nodes, float("inf")
        self.taken = 0

    def take(self) -> list[list[str]]:
        """The names of all groups that start now."""
        found = []
        while settings := self.placement.next(str(self.taken)):
            self.taken += 1
            known = {str(entry.folder.resolve()): entry.trial.name for entry in ENTRIES}
            found.append([known[folder] for folder in settings["folders"]])
        return found

    def report(self, number: int, name: str, epoch: int = 0, over: str | None = None) -> None:
        """A worker's news of a trial."""
        (entry,) = (entry for entry in ENTRIES if entry.trial.name == name)
        records = [{"epoch": number} for number in range(1, epoch + 1)]
        self.placement.reported(str(number), {"folder": str(entry.folder.resolve()), "records": records, "over": over})


ENTRIES = Ledger(Path("nowhere")).entries(
    expand("g", {"cases": {
        "a": {}, "b": {"model.beta": 0.5}, "c": {"model.beta": 0.25}, "wide": {"model.beta": 0.1, "resources.cpus": 2},
        "pair": {"model.beta": 0.2, "resources.workers": 2},
    }}, "g.yaml", {}).trials, lambda trial: "store",
)  # fmt: skip
A, B, C, WIDE, PAIR = ENTRIES


def test_trials_of_different_sizes_share_nodes_without_overtaking() -> None:
    placed = Placed([[A], [WIDE], [B], [PAIR], [C]], [{"CPU": 2.0}, {"CPU": 1.0}])
    assert placed.take() == [["a"], ["wide"]]
    placed.placement.completed("0")
    assert placed.take() == [["b"]] and placed.reasons == {A.trial.title: ""}
    placed.placement.completed("2")
    assert placed.take() == []  # one processor is free, and a pair waits for two
    placed.placement.completed("1")
    assert placed.take() == [["pair"], ["c"]]
    assert Placed([[A], [B], [C]], [{"CPU": 2.0}], max_concurrent=1).take() == [["a"]]


def test_held_placement_starts_nothing_and_is_not_over() -> None:
    placed = Placed([[A], [B]], [{"CPU": 1.0}])
    assert placed.take() == [["a"]]
    placed.held = True
    placed.placement.completed("0")
    assert placed.take() == [] and not placed.placement.over
    placed.held = False
    assert placed.take() == [["b"]]
    placed.placement.completed("1")
    assert placed.take() == [] and placed.placement.over
    placed.groups.append([C])  # added from another terminal, though no trial has ended since
    assert placed.take() == []
    placed.num_changes += 1
    assert placed.take() == [["c"]] and not placed.placement.over


def test_trial_resumes_after_worker_deaths_and_fails_after_three_without_an_epoch() -> None:
    placed = Placed([[A], [B]], [{"CPU": 1.0}])
    for number, epoch in enumerate((0, 1, 1, 2, 2)):
        assert placed.take() == [["a"]]
        placed.report(number, "a", epoch)
        placed.placement.died(str(number), "killed")
    assert placed.take() == [["a"]] and placed.reasons == {} and not placed.placement.over
    placed.placement.died("5", "out of memory")
    assert placed.reasons == {
        A.trial.title: "the worker died 3 times without an epoch in between, the last time: out of memory"
    }
    assert placed.take() == [["b"]]
    placed.placement.completed("6")
    assert placed.take() == [] and placed.placement.over


def test_trials_without_any_node_wait_for_one_and_then_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = Placed([[A], [B], [C]], [{"CPU": 1.0}])
    assert placed.take() == [["a"]]
    placed.placement._nodes = []
    placed.placement.died("0", "the node is gone")
    assert placed.take() == [] and placed.reasons == {} and not placed.placement.over
    placed.placement._nodes = [{"CPU": 1.0}]  # it came back
    assert placed.take() == [["a"]]
    placed.placement._nodes = []
    placed.placement.completed("1")
    assert placed.take() == [] and not placed.placement.over
    monkeypatch.setattr(jobs, "NO_PLACE_S", 0)
    for _ in range(3):
        assert placed.take() == []
    assert placed.placement.over and placed.reasons.pop(A.trial.title) == "" and len(placed.reasons) == 2
    assert all("Ray found nodes with no node at all" in reason for reason in placed.reasons.values())


def test_group_with_a_dead_worker_resumes_in_halves_without_finished_trials() -> None:
    placed = Placed([[A, B, C]], [{"CPU": 2.0}])
    assert placed.take() == [["a", "b", "c"]]
    placed.report(0, "b", over="loss nan")
    placed.placement.died("0", "killed")
    assert placed.take() == [["a"], ["c"]] and placed.reasons == {B.trial.title: "loss nan"}
    placed.placement.died("2", "killed")
    placed.placement.completed("1")
    assert placed.take() == [["c"]]
    placed.placement.completed("3")
    assert placed.reasons == {B.trial.title: "loss nan", A.trial.title: "", C.trial.title: ""}


@pytest.mark.slow
def test_killed_sweep_resumes_and_equals_an_undisturbed_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    (tmp_path / "g.yaml").write_text(GRID)
    full, _, no_audio = Ledger(tmp_path / "g").entries(read_grid(str(tmp_path / "g.yaml")).trials, features_in(store))

    driver = start(tmp_path, "--max-concurrent", "2")
    while len(read_metrics(full.folder)) < 2 and driver.poll() is None:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    assert len(read_metrics(full.folder)) >= 2
    assert full.state == "running"  # a fast worker may have all its epochs by now; only the driver closes a trial

    out, err = start(tmp_path, "--fuse", "3").communicate()  # the same trials now share one read
    assert "failed: diverges, seed 0: loss" in out and "expressions of the batch: train" in out, err
    assert "2 trials finished now, 2 of 3 in all" in out and "Traceback" not in out + err
    assert [entry.state for entry in (full, no_audio)] == ["finished", "finished"]
    assert not list((tmp_path / "g").glob(".tune-*"))

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers, so that sums are taken in the same order
    alone = train(full.trial.config, store, tmp_path / "alone")
    torch.set_num_threads(num_threads)
    for found, wanted in zip(read_metrics(full.folder), read_metrics(tmp_path / "alone"), strict=True):
        assert found["epoch"] == wanted["epoch"]
        for name, value in wanted["metrics"].items():
            assert name in TIMES or found["metrics"][name] == pytest.approx(value, abs=1e-5), name
    assert full.result is not None
    for name, value in alone["metrics"].items():
        assert name == "seconds" or full.result["metrics"][name] == pytest.approx(value, abs=1e-5), name

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("g")
    assert experiment is not None
    runs = {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "g": "FAILED", "full, seed 0": "FINISHED", "no_audio, seed 0": "FINISHED", "diverges, seed 0": "FAILED",
    }  # fmt: skip
    for name in ("full, seed 0", "no_audio, seed 0"):
        points = client.get_metric_history(runs[name].info.run_id, "train/loss")
        assert [point.step for point in points] == list(range(1, 13))

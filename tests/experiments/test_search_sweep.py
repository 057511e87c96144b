"""Sweeps that search, and sweeps over several stores, from the command line to MLflow and the report; without Ray."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from experiments.cli import main
from experiments.cluster.worker import train_share
from experiments.records.ledger import Entry, read_metrics
from experiments.report.contents import ReportOptions, build_report
from experiments.tracking.client import default_tracking_uri
from experiments.training.learner import Team
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of MLflow and what it imports

BASE = """
base:
  model: {num_layers: 1, num_queries: 2, num_heads: 2, visual_downsample: 2, decoder_layers: 0,
          feedforward_channels: 16}
  loss: {num_points: 0}
  train: {epochs: 3, steps_per_epoch: 1, batch_size: 4}
"""
SEARCH = BASE + """
search:
  budget: 4
  method: random
  asha: {min_epochs: 1, reduction: 2}
  ranges:
    train.learning_rate: {loguniform: [1e-4, 1e-2]}
    model.beta: {uniform: [0, 2]}
"""


class InProcess:
    """Stands for `experiments.cluster.tune_runner`: what a worker does, one trial after another in this process."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.epochs_left: int | None = None

    def run_trials(self, trials: Any, store: str, resources: Any, root: Path, asked: Any) -> None:
        trials.ready(lambda asked: 1)
        while group := trials.next():
            for entry in group:
                self.run_trial(trials, entry, store)

    def run_trial(self, trials: Any, entry: Entry, store: str) -> None:
        self.ran.append(entry.trial.name)
        trials.started(entry)

        def report(result: dict[str, Any]) -> None:
            trials.progressed(entry, result["records"])
            if self.epochs_left is not None:
                self.epochs_left -= 1
                if self.epochs_left == 0:
                    raise KeyboardInterrupt

        settings = {"folders": [str(entry.folder)], "store": store, "resources": {"CPU": 1}}
        train_share(settings, Team(), torch.device("cpu"), report)
        trials.ended(entry, "")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    jobs = InProcess()
    runner = types.SimpleNamespace(run_trials=jobs.run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    return jobs


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FeatureStore]:
    folder, clips = tmp_path_factory.mktemp("stores"), {"train": 2, "val": 1, "test_s": 1, "test_u": 1, "test_n": 1}
    return {name: make_store(folder / name, clips, noise=noise) for noise, name in enumerate(("swin", "vit"))}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, and so one database, for the sweeps of all tests: making a database takes seconds."""
    return tmp_path_factory.mktemp("runs")


def children(out: Path) -> list[Any]:
    client = MlflowClient(default_tracking_uri(out))
    experiment = client.get_experiment_by_name(out.name)
    assert experiment is not None
    return client.search_runs([experiment.experiment_id], "tags.`refavs.kind` = 'trial'")


def test_search_is_interrupted_goes_on_and_grows(
    jobs: InProcess, runs: Path, stores: dict[str, FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = runs / "hunt", runs / "hunt.yaml"
    file.write_text(SEARCH)
    command = [str(file), "--store", stores["swin"].location, "--out", str(out)]
    jobs.epochs_left = 4  # in the middle of the second point
    assert main(command) == 130
    jobs.epochs_left = None
    assert main(command) == 0
    first, second, *rest = jobs.ran
    assert first.startswith("point 0, learning_rate 0.") and rest[0] == second and len(rest) == 3
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "search by random for the highest val/J, one trial in 2 continues after epoch 1: 4 of 4 points" in told
    assert "train.learning_rate: loguniform [0.0001, 0.01]" in told and "best so far: point" in told
    assert "4 of 4 trials done, 0 to do" in told
    file.write_text(SEARCH.replace("budget: 4", "budget: 5"))
    assert main([*command, "--dry-run"]) == 0
    assert "4 of 5 trials done, 1 to do" in capsys.readouterr().out
    assert main(command) == 0
    assert len(jobs.ran) == 6 and jobs.ran[-1].startswith("point 4")
    assert "best point: point " in capsys.readouterr().out
    assert main(command) == 0 and len(jobs.ran) == 6
    found = {run.data.tags["refavs.key"]: run for run in children(out)}
    assert len(found) == len(children(out)) == 5
    for folder in (out / "trials").iterdir():
        (run,) = (run for key, run in found.items() if key.startswith(folder.name))
        num_epochs = len(read_metrics(folder))
        assert run.data.metrics["val/J"] == read_metrics(folder)[-1]["metrics"]["val/J"]
        if run.info.status == "KILLED":
            assert num_epochs in (1, 2)
            assert run.data.tags["refavs.reason"].startswith(f"given up after epoch {num_epochs}:")
        else:
            assert run.info.status == "FINISHED" and num_epochs == 3 and "test_s/J" in run.data.metrics


def test_search_without_new_points_is_done(
    jobs: InProcess, runs: Path, stores: dict[str, FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = runs / "few", runs / "few.yaml"
    file.write_text(BASE.replace("epochs: 3", "epochs: 1")
                    + "search: {budget: 4, method: random, ranges: {model.beta: {choice: [0, 1]}}}\n")  # fmt: skip
    command = [str(file), "--store", stores["swin"].location, "--out", str(out)]
    assert main(command) == 0 and len(jobs.ran) == 2
    assert main(["status", str(out)]) == 0 and "still to suggest" not in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.sweep.driver.SweepRun", None)
        assert main(command) == 0
    assert main([*command, "--dry-run"]) == 0 and "2 of 2 trials done, 0 to do" in capsys.readouterr().out


def test_trials_on_several_stores_are_compared(
    jobs: InProcess, runs: Path, stores: dict[str, FeatureStore], capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = runs / "encoders", runs / "encoders.yaml"
    file.write_text(f"{BASE}seeds: [0, 1]\n")
    named = [word for name, store in stores.items() for word in ("--store", f"{name}={store.location}")]
    assert main([str(file), *named, "--out", str(out), "--dry-run"]) == 0
    assert "4 of 4" not in (told := capsys.readouterr().out) and "encoders vit" in told
    assert main([str(file), *named, "--out", str(out), "--set", "train.epochs=1"]) == 0
    assert sorted(jobs.ran) == ["encoders swin"] * 2 + ["encoders vit"] * 2
    for run in children(out):
        store = stores[run.data.tags["refavs.case"].removeprefix("encoders ")]
        assert run.data.tags["refavs.store"] == store.fingerprint
        (read,) = run.inputs.dataset_inputs
        assert store.fingerprint.startswith(read.dataset.digest)
    swapped = [*named[2:], *named[:2]]
    assert main([str(file), *swapped, "--out", str(out), "--set", "train.epochs=1"]) == 0 and len(jobs.ran) == 4
    assert json.loads((out / "sweep.json").read_text())["fingerprint"] == stores["swin"].fingerprint
    losses = {run.data.metrics["train/loss"] for run in children(out)}
    assert len(losses) == 4
    report = build_report([out], ReportOptions())
    shown = [row.label for table in report.tables for row in table.rows if table.name == "table3-canonical"]
    assert {"encoders swin", "encoders vit"} <= set(shown)
    assert not any(row.mark for table in report.tables for row in table.rows)
    assert any("made-up + made-up: encoders vit" in row.label for table in report.tables for row in table.rows)


def test_stores_without_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "--store", "a", "--store", "b"]) == 2
    assert "--store a has no name, and there are 2; write --store NAME=a" in capsys.readouterr().err

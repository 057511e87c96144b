"""A sweep without Ray: the trials run in this process, everything around them is real."""

import json
import shutil
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from experiments.cli import _where_to_look, main
from experiments.grid.config import TrialConfig
from experiments.grid.expand import Grid, expand
from experiments.records.ledger import Entry, Ledger
from experiments.records.stores import features_in
from experiments.sweep.driver import run_sweep
from experiments.sweep.execution import SweepRun
from experiments.sweep.outcome import Options
from experiments.tracking import model_card
from experiments.tracking.client import default_tracking_uri
from experiments.training.loop import train
from refavs.config import flat
from refavs.errors import ConfigError, StoreError
from refavs.model.checkpoint import load_model
from refavs.model.heads.eemc import EEMC
from refavs.store import FeatureStore, StoreWriter
from tests.experiments import small_store
from tests.experiments.small_store import make_store

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]  # of MLflow and what it imports

BASE = {
    "model": {"num_layers": 1, "num_queries": 2, "num_heads": 2, "visual_downsample": 2, "decoder_layers": 0,
              "feedforward_channels": 16},
    "loss": {"num_points": 0},
    "train": {"epochs": 2, "steps_per_epoch": 2},
}
CASES = {"full": {}, "no_text": {"model.text": False}, "diverges": {"train.learning_rate": 1e30}}


class InProcess:
    """Stands for `experiments.cluster.tune_runner`: trials one after another in this process."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stop_after: int | None = None

    def run_trials(self, trials: Any, store: Path, resources: Any, root: Path, asked: Any) -> None:
        trials.ready(lambda asked: 1)
        while group := trials.next():
            for entry in group:
                self.run_trial(trials, entry, store)

    def run_trial(self, trials: Any, entry: Entry, store: Path) -> None:
        self.ran.append(entry.trial.title)
        trials.started(entry)
        trials.waited()

        def report(records: list[dict[str, Any]]) -> None:
            trials.progressed(entry, records)
            if self.stop_after is not None and len(self.ran) > self.stop_after:
                raise KeyboardInterrupt

        try:
            train(entry.trial.config, FeatureStore(store), entry.folder, report)
        except ConfigError as error:
            trials.ended(entry, str(error))
        else:
            trials.ended(entry, "")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    jobs = InProcess()
    runner = types.SimpleNamespace(run_trials=jobs.run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    return jobs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, and so one database, for the sweeps of all tests: making a database takes seconds."""
    return tmp_path_factory.mktemp("runs")


def grid_of(*cases: str) -> Grid:
    return expand("g", {"base": BASE, "cases": {name: CASES[name] for name in cases}}, "g.yaml", {})


def runs_of(out: Path) -> dict[str, Any]:
    client = MlflowClient(default_tracking_uri(out))
    experiment = client.get_experiment_by_name(out.name)
    assert experiment is not None and experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    found = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {str(run.info.run_name): run for run in found}


def test_sweep_runs_what_is_missing_and_grows(jobs: InProcess, store: FeatureStore, runs: Path) -> None:
    out = runs / "grows"
    assert run_sweep(grid_of("full"), store, out).num_run == 1
    outcome = run_sweep(grid_of("full", "no_text"), store, out, options=Options(register="head", grid_file="g.yaml"))
    assert outcome.num_run == 1 and jobs.ran == ["full, seed 0", "no_text, seed 0"]
    assert Ledger(out).sweep["defaults"] == flat(TrialConfig())
    found = runs_of(out)
    assert {name: run.info.status for name, run in found.items()} == dict.fromkeys(
        ("g", "full, seed 0", "no_text, seed 0"), "FINISHED"
    )
    parent = found["g"].info.run_id
    child = found["full, seed 0"]
    assert child.data.tags["mlflow.parentRunId"] == parent
    client = MlflowClient(default_tracking_uri(out))
    assert [point.step for point in client.get_metric_history(child.info.run_id, "val/J")] == [1, 2]
    assert "test_s/J" in child.data.metrics and "test_n/S" in child.data.metrics
    assert sorted(item.path for item in client.list_artifacts(child.info.run_id)) == [
        "config.json", "metrics.jsonl", "overlays", "statistics.parquet",
    ]  # fmt: skip
    assert len(client.list_artifacts(child.info.run_id, "overlays")) == 2
    assert [item.path for item in client.list_artifacts(parent)] == ["table.csv"]
    assert not list(out.glob("trials/*/state"))
    assert found["no_text, seed 0"].data.tags["refavs.grid_file"] == "g.yaml"
    assert "system/system_memory_usage_megabytes" in child.data.metrics
    registered = Ledger(out).sweep["registered"]["head"]
    best = max(outcome.entries, key=lambda entry: entry.score("val/J") or 0)
    assert registered == [best.key, "1"] and len(client.search_model_versions("name='head'")) == 1
    assert found["g"].data.metrics["best/test_s/J"] == best.result["metrics"]["test_s/J"]
    assert found["g"].data.tags["refavs.best"] == best.trial.title
    models = client.search_logged_models([found["g"].info.experiment_id])
    assert {model.source_run_id for model in models} == {run.info.run_id for name, run in found.items() if name != "g"}
    assert {str(model.status) for model in models} == {"READY"}
    card = yaml.safe_load((best.folder / "checkpoint" / "MLmodel").read_text())
    tensors = card["flavors"]["refavs"]["tensors"]["inputs"]
    inputs = {one["name"]: one["tensor-spec"] for one in tensors}
    sample = store[0]
    assert inputs["audio"] == {"dtype": "float32", "shape": [-1, -1, sample.audio.shape[-1]]}
    assert inputs["visual/mask_features"]["dtype"] == "float16"
    assert isinstance(load_model(best.folder / "checkpoint"), EEMC)


def test_card_of_code_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(model_card.metadata, "version", missing)
    assert model_card._version() == "unknown"


def test_sweep_that_is_done_touches_neither_ray_nor_mlflow(
    jobs: InProcess, store: FeatureStore, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_sweep(grid_of("full"), store, runs / "done")
    monkeypatch.setattr("experiments.sweep.driver.SweepRun", None)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", None)
    again = run_sweep(grid_of("full"), store, runs / "done")
    assert again.num_run == 0 and again.controls == first.controls
    assert [entry.state for entry in again.entries] == ["finished"]


def test_sweep_goes_on_after_a_failed_trial(jobs: InProcess, store: FeatureStore, runs: Path) -> None:
    outcome = run_sweep(grid_of("diverges", "full"), store, runs / "fails")
    assert outcome.num_run == 1 and set(outcome.failures) == {"diverges, seed 0"}
    assert "expressions of the batch: " in outcome.failures["diverges, seed 0"]
    assert [entry.state for entry in outcome.entries] == ["failed", "finished"]
    found = runs_of(runs / "fails")
    assert found["diverges, seed 0"].info.status == "FAILED" and found["g"].info.status == "FAILED"
    assert found["diverges, seed 0"].data.tags["refavs.reason"].startswith("loss ")
    assert found["full, seed 0"].info.status == "FINISHED"
    assert run_sweep(grid_of("diverges", "full"), store, runs / "fails").failures == outcome.failures
    assert jobs.ran == ["diverges, seed 0", "full, seed 0"]
    run_sweep(grid_of("diverges", "full"), store, runs / "fails", options=Options(retry_failed=True))
    assert jobs.ran == ["diverges, seed 0", "full, seed 0", "diverges, seed 0"]


def test_sweep_that_is_interrupted_says_so_and_goes_on(jobs: InProcess, store: FeatureStore, runs: Path) -> None:
    jobs.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid_of("full", "no_text"), store, runs / "stopped")
    statuses = {name: run.info.status for name, run in runs_of(runs / "stopped").items()}
    assert statuses == {"g": "KILLED", "full, seed 0": "FINISHED", "no_text, seed 0": "KILLED"}
    jobs.stop_after = None
    outcome = run_sweep(grid_of("full", "no_text"), store, runs / "stopped")
    assert outcome.num_run == 1 and {run.info.status for run in runs_of(runs / "stopped").values()} == {"FINISHED"}
    run_id = runs_of(runs / "stopped")["no_text, seed 0"].info.run_id
    points = MlflowClient(outcome.tracking_uri).get_metric_history(run_id, "train/loss")
    assert [point.step for point in points] == [1, 2]


def test_sweep_without_an_epoch_evaluates_what_it_starts_from(
    jobs: InProcess, store: FeatureStore, runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (first,) = run_sweep(grid_of("full"), store, runs / "first").entries
    path = tmp_path / "evaluated.yaml"
    path.write_text(yaml.safe_dump({"base": BASE}))
    arguments = [str(path), "--store", store.location, "--out", str(runs / "evaluated")]
    given = ["train.epochs=0", f"train.init={first.folder / 'checkpoint'}"]
    assert main([*arguments, *(part for one in given for part in ("--set", one))]) == 0
    assert "1 trials finished now, 1 of 1 in all" in capsys.readouterr().out
    (run,) = (run for name, run in runs_of(runs / "evaluated").items() if name != "evaluated")
    known = json.loads((first.folder / "result.json").read_text())["metrics"]
    assert run.info.status == "FINISHED" and run.data.metrics["test_s/J"] == known["test_s/J"]
    assert main(["status", str(runs / "evaluated")]) == 0


def test_sweep_asked_to_stop_when_nothing_is_left_is_finished(
    jobs: InProcess, store: FeatureStore, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SweepRun.ended

    def ask_late(run: SweepRun, entry: Entry, reason: str) -> None:
        run.ledger.ask_to_stop()  # as Ctrl-C does in the final evaluation
        ended(run, entry, reason)

    monkeypatch.setattr(SweepRun, "ended", ask_late)
    assert run_sweep(grid_of("full", "no_text"), store, runs / "late_stop").interrupted
    assert not run_sweep(grid_of("full", "no_text"), store, runs / "late_stop").interrupted
    assert runs_of(runs / "late_stop")["g"].info.status == "FINISHED"


def test_finished_sweep_whose_database_was_removed_is_sent_again(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path
) -> None:
    database, other = tmp_path / "removed.db", default_tracking_uri(runs / "x").removeprefix("sqlite:///")
    shutil.copy(other, database)  # making one takes seconds
    uri = f"sqlite:///{database}"
    run_sweep(grid_of("full"), store, runs / "removed", tracking_uri=uri)
    database.rename(tmp_path / "away.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.sweep.driver.SweepRun", None)
        with pytest.raises(TypeError):  # it does not find that there is nothing to do
            run_sweep(grid_of("full"), store, runs / "removed", tracking_uri=uri)
    with pytest.raises(ConfigError, match=r"names the MLflow sqlite:.*removed\.db, outside of that folder"):
        run_sweep(grid_of("full"), store, runs / "removed")


def test_copied_sweep_leaves_the_original_alone(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    if (runs / "mlflow.db").exists():  # making one takes seconds
        shutil.copy(runs / "mlflow.db", tmp_path / "mine")
    mine = tmp_path / "mine" / "a"
    (entry,) = run_sweep(grid_of("full"), store, mine).entries
    before = {name: run.info.run_id for name, run in runs_of(mine).items()}
    artifacts = {path: path.read_bytes() for path in (tmp_path / "mine" / "mlartifacts").rglob("*") if path.is_file()}
    copy = shutil.copytree(tmp_path / "mine", tmp_path / "copy") / "a"
    capsys.readouterr()
    assert run_sweep(grid_of("full"), store, copy, options=Options(rerun=(entry.key,))).num_run == 1
    told = capsys.readouterr().err
    assert f"{copy} is a copy of the sweep {mine}, which stays as it is" in told
    assert {name: run.info.run_id for name, run in runs_of(mine).items()} == before
    assert {p: p.read_bytes() for p in (tmp_path / "mine" / "mlartifacts").rglob("*") if p.is_file()} == artifacts
    own = Ledger(copy).sweep
    assert own["id"] != Ledger(mine).sweep["id"] and own["tracking_uri"] == default_tracking_uri(copy)
    at = MlflowClient(own["tracking_uri"]).get_run(own["run_id"]).info.artifact_uri
    assert str(at).startswith((tmp_path / "copy" / "mlartifacts").as_uri())


def test_sweep_shows_that_it_is_alive_within_an_epoch(
    jobs: InProcess,
    store: FeatureStore,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("refavs.terminal.console.LINE_INTERVAL_S", 0)
    run_sweep(grid_of("full"), store, runs / "alive")
    assert "sweep g: 0/2 epochs, " in capsys.readouterr().err


def test_trial_with_a_result_is_closed_without_training(jobs: InProcess, store: FeatureStore, runs: Path) -> None:
    out, grid = runs / "late", grid_of("full")
    ledger = Ledger(out)
    entry = ledger.entries(grid.trials, features_in(store))[0]
    ledger.enter(entry, store.fingerprint)
    train(entry.trial.config, store, entry.folder)
    assert run_sweep(grid, store, out).num_run == 1 and jobs.ran == []
    run = runs_of(out)["full, seed 0"]
    points = MlflowClient(default_tracking_uri(out)).get_metric_history(run.info.run_id, "train/loss")
    assert run.info.status == "FINISHED" and [point.step for point in points] == [1, 2]


def test_settings_that_do_not_fit_the_store_are_refused_at_once(store: FeatureStore, runs: Path) -> None:
    grid = expand("g", {"base": {"model.num_heads": 3}, "cases": {"odd": {}}}, "g.yaml", {})
    with pytest.raises(ConfigError, match="trial 'odd': the model's width 8 must be a multiple of 4 and of"):
        run_sweep(grid, store, runs / "odd")
    assert not (runs / "odd").exists()


def test_command_prints_the_table_and_then_finds_all_done(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {BASE}\ncases: {{full: {{}}, no_text: {{model.text: false}}}}\n")
    arguments = [str(tmp_path / "mine.yaml"), "--store", store.location, "--out", str(runs / "command")]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 2 trials done, 2 to do; nothing was written" in printed and printed.count("GFLOP") == 4
    assert not (runs / "command").exists()
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert "2 trials finished now, 2 of 2 in all" in first and "RANDOM FEATURES: " in first
    for name in ("full", "no_text", "all background", "all foreground", "mean training mask"):
        assert name in first
    assert "J on test_s by dimension" in first
    assert f"/mlflow.db; to view it: infra/mlflow-ui.sh {runs / 'command'}\n" in first
    assert main(arguments) == 0
    second = capsys.readouterr().out
    assert "nothing to do: all 2 trials were finished before" in second
    assert second.split("RANDOM")[0] == first.split("RANDOM")[0]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 of 2 trials done, 0 to do" in capsys.readouterr().out


def test_command_that_opens_mlflow_names_the_database_of_the_sweep() -> None:
    assert _where_to_look("http://me:secret@host:5000", Path("a b")) == "http://host:5000"
    assert _where_to_look("sqlite:////x/y z.db", Path("a")).endswith("; to view it: infra/mlflow-ui.sh '/x/y z.db'")
    assert _where_to_look(default_tracking_uri(Path("a b")), Path("a b")).endswith(": infra/mlflow-ui.sh 'a b'")


def test_command_lists_failures_and_exits_with_3(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {BASE}\ncases: {{bad: {{train.learning_rate: 1e30}}, full: {{}}}}\n")
    arguments = [str(tmp_path / "mine.yaml"), "--store", store.location, "--out", str(runs / "bad")]
    assert main(arguments) == 3
    printed = capsys.readouterr().out
    assert "failed: bad, seed 0: loss " in printed
    told = "1 of 2 trials failed; the same command leaves them failed; --retry-failed tries them again from their"
    assert "1 trials finished now, 1 of 2 in all, 1 failed" in printed and told in printed
    assert main(arguments) == 3 and jobs.ran == ["bad, seed 0", "full, seed 0"]
    again = capsys.readouterr().out
    assert "nothing to do: 1 of 2 trials were finished before, 1 failed" in again and "failed: bad, seed 0: " in again
    assert main([*arguments, "--dry-run"]) == 0
    assert "1 of 2 trials done, 1 failed (--retry-failed tries" in capsys.readouterr().out
    assert main([*arguments, "--dry-run", "--retry-failed"]) == 0
    assert "1 of 2 trials done, 1 to do" in capsys.readouterr().out
    assert main([*arguments, "--retry-failed"]) == 3 and jobs.ran[2:] == ["bad, seed 0"]


def test_first_run_in_which_every_trial_fails_did_something(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {BASE}\ncases: {{bad: {{train.learning_rate: 1e30}}}}\n")
    arguments = [str(tmp_path / "mine.yaml"), "--store", store.location, "--out", str(runs / "all_bad")]
    assert main(arguments) == 3
    printed = capsys.readouterr().out
    assert "0 trials finished now, 0 of 1 in all, 1 failed" in printed and "nothing to do" not in printed
    assert main(arguments) == 3
    assert "nothing to do: 0 of 1 trials were finished before, 1 failed" in capsys.readouterr().out


def test_what_mlflow_refuses_is_not_promised_to_be_sent(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*arguments: object, **named: object) -> None:
        raise MlflowException("a metric name of 300 letters", INVALID_PARAMETER_VALUE)

    (tmp_path / "mine.yaml").write_text(f"base: {BASE}\ncases: {{full: {{}}}}\n")
    arguments = [str(tmp_path / "mine.yaml"), "--store", store.location, "--out", str(runs / "refused")]
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", refuse)
        assert main(arguments) == 3
    printed = capsys.readouterr().out
    assert "MLflow REFUSES full, seed 0: MlflowException: a metric name of 300 letters; all data is kept in " in printed
    assert "; remove the reason before you run the same command again" in printed
    assert "the same command sends it" not in printed
    assert main(arguments) == 0  # MLflow takes it now
    assert "REFUSES" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok", "--store", "s"], "no grid named 'smok'; did you mean 'smoke'?"),
        (["smoke", "--store", "nowhere"], "no feature store at "),
        (["smoke", "--store", "s", "--set", "train.epoch=1"], "did you mean 'train.epochs'?"),
        (["smoke", "--store", "s", "--max-concurrent", "0"], "--max-concurrent is 0; accepted: a number above 0"),
        (["smoke", "--store", "s", "--cpus-per-trial", "nan"], "--cpus-per-trial is nan; accepted: a number above 0"),
        (["smoke", "--store", "s", "--device", "cuda"], "--device cuda: there is no NVIDIA GPU on this machine"),
        (["smoke", "--store", "s", "--device", "cpu", "--gpus-per-trial", "1"], "--gpus-per-trial 1 contradict each"),
        (["smoke", "--store", "s", "--gpus-per-trial", "-1"], "--gpus-per-trial is -1.0; accepted: 0 or a number"),
    ],
)
def test_command_refuses_bad_input_on_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("refavs.machine.accelerator.gpu_files", lambda: [])
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("refavs-sweep: ") and message in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_shows_defaults_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert "(default: 1.0)" in printed and "refavs-sweep smoke --store demo/store" in printed and "None" not in printed


def test_store_whose_extraction_did_not_end_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "store", {"train": 2, "val": 1, "test_s": 1, "test_n": 1})
    StoreWriter.attach(tmp_path / "store").plan(small_store.VISUAL, [["one_more"]])
    told = r"is not finished, and its statistics.*run the same refavs-extract command again"
    with pytest.raises(StoreError, match=told):
        run_sweep(grid_of("full"), FeatureStore(tmp_path / "store"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_with_markup_and_codes_are_shown_as_they_are(
    jobs: InProcess, store: FeatureStore, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["run [/old]\x1b[2J\n\u202e", "lr[low]", "lr[high]"]
    cases = dict(zip(names, [{"train.learning_rate": rate} for rate in (1e30, 1e-3, 2e-3)], strict=True))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"base": BASE, "cases": cases}))
    arguments = [str(tmp_path / "grid.yaml"), "--store", store.location, "--out", str(runs / "[low]\a\nrefavs-sweep: ")]
    for command, status in (([*arguments, "--dry-run"], 0), (arguments, 3), (["status", arguments[-1]], 0)):
        assert main(command) == status
        out, err = capsys.readouterr()
        for shown in ("lr[low] ", "lr[high] ", "run [/old]\\x1b[2J\\n\\u202e", "[low]\\x07\\nrefavs-sweep: "):
            assert shown in out, out
        assert not {"\x1b", "\a", "\u202e"} & set(out + err) and "\nrefavs-sweep: \n" not in out + err

"""Reading a sweep's folder: the order of runs, unfinished trials, and folders that are not sweeps."""

import json
from pathlib import Path

import pytest

from experiments.report.runs import natural, saved_sweep, saved_sweeps
from refavs.errors import ConfigError
from tests.experiments.small_sweep import STORE, write_facts, write_trial


def test_runs_come_in_the_order_of_names_and_seeds(tmp_path: Path) -> None:
    for name in ("beta 10", "beta 2", "beta 0.5"):
        for seed in (1, 0):
            write_trial(tmp_path, name, seed, None)
    write_trial(tmp_path, "broken", quality=None, state="failed")
    (tmp_path / "sweep.json").write_text(json.dumps({"id": "x", "grid": "beta"}))
    sweep = saved_sweep(tmp_path)
    assert [run.title for run in sweep.runs] == [
        f"beta {beta}, seed {seed}" for beta in ("0.5", "2", "10") for seed in (0, 1)
    ]
    assert sweep.grid == "beta" and sweep.unfinished == {"broken, seed 0": "failed"}
    run = sweep.runs[0]
    assert [record["epoch"] for record in run.history] == [1, 2]
    assert run.statistics == run.folder / "statistics.parquet" and run.store == STORE
    assert run.config["model.beta"] == 1.0


def test_store_has_the_same_contents_in_every_sweep(tmp_path: Path) -> None:
    for name in ("one", "several"):
        write_trial(tmp_path / name, "full", quality=None)
    write_trial(tmp_path / "several", "other", quality=None, store="unknown")
    write_facts(tmp_path / "one")
    write_facts(tmp_path / "several", stores={STORE: {"contents": "of-both"}})
    one, several = saved_sweeps([tmp_path / "one", tmp_path / "several"])
    assert [run.contents for run in one.runs + several.runs] == ["of-both", "of-both", "unknown"]


def test_setting_that_is_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    path = write_trial(tmp_path, "full", quality=None) / "config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "config": {"seed": 0}, "digests": {"decoder_weights": "sha"}}))
    assert saved_sweep(tmp_path).runs[0].config == {**facts["config"], "digests.decoder_weights": "sha"}


def test_setting_that_the_code_lost_counts_where_it_was_not_at_its_default(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"id": "x", "defaults": {"train.lost": 1, "train.other": 1}}))
    path = write_trial(tmp_path, "full", quality=None) / "config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "config": {**facts["config"], "train.lost": 1, "train.other": 2}}))
    assert saved_sweep(tmp_path).runs[0].config == {**facts["config"], "train.other": 2}


def test_run_of_a_head_that_is_not_installed_is_read(tmp_path: Path) -> None:
    path = write_trial(tmp_path, "full", quality=None) / "config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "config": {"model.head": "gone", "model.width": 3, "seed": 0}}))
    config = saved_sweep(tmp_path).runs[0].config
    assert {name: value for name, value in config.items() if name.startswith("model.")} == {
        "model.head": "gone", "model.width": 3,
    }  # fmt: skip
    assert config["train.epochs"] == facts["config"]["train.epochs"]


def test_numbers_in_names_are_sorted_by_value() -> None:
    names = ["b", "a 10", "a 9.5", "a", "", "10", "9"]
    assert sorted(names, key=natural) == ["", "9", "10", "a", "a 9.5", "a 10", "b"]


def test_folder_that_is_not_a_sweep_is_refused_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere is not a folder \(it has no sweep.json and no trials\); give the"):
        saved_sweep(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is not a sweep's folder"):
        saved_sweep(tmp_path)


def test_sweep_without_a_finished_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    with pytest.raises(ConfigError, match=r"has no finished run \(no trial at all\); run its refavs-sweep command"):
        saved_sweep(tmp_path)
    write_trial(tmp_path, "full", quality=None, state="running")
    with pytest.raises(ConfigError, match=r"has no finished run \(1 trials without a result\)"):
        saved_sweep(tmp_path)


def test_damaged_trial_is_one_line(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, "full", quality=None)
    (folder / "metrics.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"metrics.jsonl is not JSON of a sweep \(line 1: .*; remove it and"):
        saved_sweep(tmp_path)
    (folder / "metrics.jsonl").write_text("")
    (folder / "config.json").write_text('{"name": "full"}')
    with pytest.raises(ConfigError, match=r"config.json is not JSON of a sweep \(it has no '"):
        saved_sweep(tmp_path)

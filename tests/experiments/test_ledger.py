"""The ledger: one folder per key, statuses, and one sweep at a time."""

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.grid.expand import expand
from experiments.records.ledger import Ledger, read_metrics
from experiments.records.record_types import write_json
from refavs.errors import ConfigError

TRIALS = expand("g", {"grid": {"model.beta": [0, 1]}}, "g.yaml", {}).trials


def test_entry_goes_from_new_to_finished(tmp_path: Path) -> None:
    entry = Ledger(tmp_path).entries(TRIALS, lambda trial: "store")[0]
    assert entry.state == "new" and entry.result is None and not entry.folder.exists()
    Ledger(tmp_path).enter(entry, "store")
    facts = json.loads((entry.folder / "config.json").read_text())
    assert facts["key"] == entry.key and facts["config"]["model.beta"] == 0.0 and facts["store"] == "store"
    entry.set_status("running", run_id="r")
    entry.set_status("failed", reason="broken")
    assert entry.status["reason"] == "broken" and entry.status["run_id"] == "r"
    entry.set_status("finished", seconds=3.0)
    assert entry.state == "finished" and "reason" not in entry.status and entry.status["run_id"] == "r"


def test_entries_of_another_store_are_other_ones(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    both = [*ledger.entries(TRIALS, lambda trial: "a"), *ledger.entries(TRIALS, lambda trial: "b")]
    folders = {entry.folder for entry in both}
    assert len(folders) == 4


def test_new_setting_keeps_keys_and_a_changed_default_is_reported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = ledger.entries(TRIALS, lambda trial: "store")
    known = ledger.record_defaults(before)
    ledger.set_sweep(defaults={name: value for name, value in known.items() if name != "train.epochs"})
    assert ledger.entries(TRIALS, lambda trial: "store") == before and ledger.changes(before) == ""

    ledger.set_sweep(defaults=known | {"train.epochs": 9, "gone": 1})
    after = ledger.entries(TRIALS, lambda trial: "store")
    assert not {entry.key for entry in before} & {entry.key for entry in after}
    told = f"defaults have changed since {tmp_path} began: train.epochs from 9 to 50; 2 trials that take them are new"
    assert told in ledger.changes(after)
    stated = expand("g", {"base": {"train.epochs": 9}, "grid": {"model.beta": [0, 1]}}, "g.yaml", {}).trials
    assert [entry.key for entry in ledger.entries(stated, lambda trial: "store")] == [entry.key for entry in before]
    after[0].set_status("finished")
    after[1].set_status("failed")
    assert ledger.changes(after) == ""


def test_trials_that_are_finished_on_other_features_are_counted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    before = ledger.entries(TRIALS, lambda trial: "read of a")
    for entry in before:
        ledger.enter(entry, "a")
    write_json(before[0].folder / "result.json", {"epoch": 1, "metrics": {}})
    after = ledger.entries(TRIALS, lambda trial: "read of b")
    assert f"{tmp_path} has 1 finished trials of these names from other features" in ledger.elsewhere(after, "b")
    assert ledger.elsewhere(after, "a") == "", "another key on the same features is another trial"
    for entry in after:
        entry.set_status("finished")
    assert ledger.elsewhere(after, "b") == ""
    (before[0].folder / "config.json").write_text("{")
    assert ledger.elsewhere(ledger.entries(TRIALS, lambda trial: "read of c"), "c") == ""


def test_defaults_are_recorded_for_each_head(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    base = {"train": {"epochs": 0, "init": "x"}}
    trials = expand("g", {"base": base, "grid": {"model.head": ["eemc", "released"]}}, "g.yaml", {}).trials
    before = ledger.entries(trials, lambda trial: "store")
    assert len({entry.key for entry in before}) == 2
    ledger.set_sweep(defaults=ledger.record_defaults(before))
    assert ledger.defaults["model.num_queries"] == ledger.defaults["model:released.num_queries"] == 100
    ledger.set_sweep(defaults=ledger.defaults | {"model:released.num_queries": 9})
    after = ledger.entries(trials, lambda trial: "store")
    assert before[0].key == after[0].key and before[1].key != after[1].key
    assert "model.num_queries from 9 to 100; 1 trials" in ledger.changes(after)


def test_sweep_facts_are_added(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new")
    assert ledger.sweep == {}
    ledger.set_sweep(id="a")
    ledger.set_sweep(run_id="b")
    assert Ledger(tmp_path / "new").sweep == {"id": "a", "run_id": "b"}


@pytest.mark.process
def test_sweep_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from experiments.records.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        refusal = "is in use by another refavs-sweep; wait for it or give another --out"
        with pytest.raises(ConfigError, match=refusal), Ledger(tmp_path).locked():
            pass
        other.kill()
    with Ledger(tmp_path).locked():
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_sweep_on_a_file_system_without_locks_is_refused_on_one_line(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    told = rf"without locks \({os.strerror(number)}\), .*; mount it with locks \(Lustre: -o flock\) or give another"
    with pytest.raises(ConfigError, match=told), Ledger(tmp_path).locked():
        pass


def test_metrics_of_a_trial_that_never_ran_are_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_trial_that_is_rerun_keeps_nothing_but_the_count_of_its_attempts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    entry = ledger.entries(TRIALS, lambda trial: "store")[0]
    ledger.discard(entry)
    assert not entry.folder.exists()
    ledger.enter(entry, "store")
    for name in ("result.json", "metrics.jsonl", "state/epoch-1/x", "checkpoint/y"):
        (entry.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (entry.folder / name).write_text("{}")
    entry.set_status("finished")
    for attempt in (1, 2):
        ledger.discard(entry)
        assert sorted(path.name for path in entry.folder.iterdir()) == ["config.json", "mlflow.json", "status.json"]
        assert entry.state == "new" and entry.result is None
        assert json.loads((entry.folder / "mlflow.json").read_text())["attempt"] == attempt
        entry.set_status("failed", reason="broken")


def test_key_to_rerun_is_the_beginning_of_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    entries = ledger.entries(TRIALS, lambda trial: "store")
    assert ledger.beginning_with([entries[1].key[:8], entries[1].key], entries) == [entries[1]]
    told = r"no trial of the grid has a key that begins with 'zz'; accepted: .*, as --dry-run shows them: .* \(beta 0,"
    with pytest.raises(ConfigError, match=told):
        ledger.beginning_with(["zz"], entries)
    shared = [dataclasses.replace(entry, key=f"aa{entry.key}") for entry in entries]
    with pytest.raises(ConfigError, match="2 trials have a key that begins with 'a'"):
        ledger.beginning_with(["a"], shared)
    with pytest.raises(ConfigError, match="no trial of the grid has a key that begins with ''"):
        ledger.beginning_with([""], entries)


def test_facts_with_a_password_are_for_their_user_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.set_sweep(id="a", tracking_uri="http://host")
    assert (tmp_path / "sweep.json").stat().st_mode & 0o077
    ledger.set_sweep(tracking_uri="postgresql://me:secret@host/db")
    ledger.set_sweep(closed=None)
    assert not (tmp_path / "sweep.json").stat().st_mode & 0o077
    assert ledger.sweep == {"id": "a", "tracking_uri": "postgresql://me:secret@host/db", "closed": None}


def test_trial_that_is_a_link_is_not_thrown_away(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "s")
    entry = ledger.entries(TRIALS, lambda trial: "store")[0]
    ledger.enter(entry, "store")
    entry.set_status("finished")
    entry.folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "thesis.txt").touch()
    entry.folder.symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    with pytest.raises(ConfigError, match=r"is a link to .*elsewhere, whose content is not deleted"):
        ledger.discard(entry)
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == before

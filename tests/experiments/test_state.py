"""A trial's state: written atomically, and equal after a round trip."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.records.record_types import read_record, write_json
from experiments.training.resume import Claim, SupersededError, load_state, save_state
from refavs.errors import ConfigError


class Subject:
    """Some tensors and facts."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parts = {
            "model": {"a": torch.rand(3, 2, generator=generator).T}, "optimizer": {"0.step": torch.tensor(float(seed))}
        }
        self.facts = {"groups": [{"lr": 0.1 + seed, "betas": [0.9, 0.99]}]}

    def state(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        return self.parts, self.facts

    def load_state(self, tensors: Mapping[str, dict[str, torch.Tensor]], facts: Mapping[str, Any]) -> None:
        self.parts, self.facts = dict(tensors), dict(facts)


def test_state_survives_a_round_trip(tmp_path: Path) -> None:
    saved, other = Subject(0), Subject(1)
    save_state(Claim(tmp_path), saved, 3, [{"epoch": 3}])
    assert load_state(tmp_path, other) == (3, [{"epoch": 3}]) and other.facts == saved.facts
    for part, tensors in saved.parts.items():
        assert all(torch.equal(other.parts[part][name], value) for name, value in tensors.items())


def test_state_keeps_only_the_newest_epoch(tmp_path: Path) -> None:
    for epoch in (1, 2):
        save_state(Claim(tmp_path), Subject(0), epoch, [])
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["epoch-000002"]


def test_state_that_was_cut_short_is_ignored_and_removed(tmp_path: Path) -> None:
    killed = Claim(tmp_path)
    save_state(killed, Subject(0), 1, [])
    cut = killed.folder / "state" / "epoch-000002"
    cut.mkdir(parents=True)
    (cut / "model.safetensors").write_bytes(b"half")
    claim = Claim(tmp_path)
    assert load_state(tmp_path, Subject(1))[0] == 1
    assert sorted(tmp_path.iterdir()) == [claim.folder, tmp_path / "state"] and not killed.folder.exists()
    claim.release()
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_folder_is_published_in_the_place_of_an_older_one(tmp_path: Path) -> None:
    claim = Claim(tmp_path)
    for text in ("old", "new"):
        (claim.folder / "a" / text).mkdir(parents=True)
        claim.publish("a", "absent")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in claim.folder.iterdir()] == ["held"]


CALLS = ("os.mkdir", "os.open", "os.rename", "pathlib.Path.exists", "pathlib.Path.is_dir", "shutil.rmtree")


@pytest.mark.parametrize("call", CALLS)
def test_process_that_loses_its_trial_at_any_moment_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Before each call of a kind, another process claims the trial and goes on from its state."""
    where, name = call.rsplit(".", 1)
    owner: Any = {"os": os, "shutil": shutil, "pathlib.Path": Path}[where]
    real, num_lost = getattr(owner, name), 0
    for moment in range(20):
        trial, countdown = tmp_path / str(moment), [moment]
        trial.mkdir()
        older = Claim(trial)
        save_state(older, Subject(0), 1, [])

        def interposed(*args: Any, trial: Path = trial, countdown: list[int] = countdown, **kwargs: Any) -> Any:
            countdown[0] -= 1
            if countdown[0] == -1:
                newer = Claim(trial)
                epoch, _ = load_state(trial, Subject(5))
                save_state(newer, Subject(1), epoch + 1, [{"by": "newer"}])
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interposed)
            try:
                save_state(older, Subject(2), 2, [])
            except SupersededError:
                num_lost += 1
        found = Subject(3)
        if countdown[0] >= 0:  # it made fewer calls
            assert load_state(trial, found) == (2, []) and found.facts == Subject(2).facts
            break
        assert load_state(trial, found)[1] == [{"by": "newer"}] and found.facts == Subject(1).facts, moment
        assert len(list(trial.glob(".claim-*"))) == 1 and len(list((trial / "state").iterdir())) == 1
    assert num_lost or name == "rmtree"  # which is called once the state is published


def test_absent_state_is_epoch_zero(tmp_path: Path) -> None:
    assert load_state(tmp_path / "none", Subject(0)) == (0, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_state_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    save_state(Claim(tmp_path), Subject(0), 1, [])
    (tmp_path / "state" / "epoch-000001" / name).write_bytes(b"{]")
    with pytest.raises(ConfigError, match=rf"epoch-000001 cannot be read .*; remove {tmp_path}/state to start"):
        load_state(tmp_path, Subject(1))


def test_state_that_does_not_say_its_epoch_is_refused(tmp_path: Path) -> None:
    save_state(Claim(tmp_path), Subject(0), 1, [])
    path = tmp_path / "state" / "epoch-000001" / "state.json"
    path.write_text(json.dumps({k: value for k, value in json.loads(path.read_text()).items() if k != "epoch"}))
    with pytest.raises(ConfigError, match=r"cannot be read \('epoch'\); remove"):
        load_state(tmp_path, Subject(1))


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    class Other(Subject):
        def load_state(self, tensors: Mapping[str, dict[str, torch.Tensor]], facts: Mapping[str, Any]) -> None:
            raise RuntimeError("Missing key(s)\nand more")

    save_state(Claim(tmp_path), Subject(0), 1, [])
    with pytest.raises(ConfigError, match=r"cannot be read \(Missing key\(s\)\); remove"):
        load_state(tmp_path, Other(1))


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2} and read_record(tmp_path / "b.json") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_damaged_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json is not JSON .*; remove it and run the same command again"):
        read_record(tmp_path / "a.json")

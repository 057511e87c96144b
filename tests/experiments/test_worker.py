"""Reports of a trial process when a trial, or the process itself, cannot continue; without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.cluster import worker
from experiments.cluster.distributed import GLOO, backend_for
from experiments.cluster.worker import WorkerDiedError, run_trial
from experiments.grid.config import TrialConfig
from refavs.config import flat
from tests.experiments.small_store import make_store


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Tune is told by trials that all run out of the GPU's memory."""
    found: list[dict[str, Any]] = []

    def train_group(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("no 90 GiB")

    monkeypatch.setattr(worker.ray, "get_gpu_ids", lambda: [])
    monkeypatch.setattr(worker.ray.tune, "report", found.append)
    monkeypatch.setattr(worker, "train_group", train_group)
    monkeypatch.setattr(worker, "_store_of", lambda settings: None)
    return found


def settings_of(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"config": flat(TrialConfig()), "store": "s"}))
    return {"folders": [str(folder) for folder in folders], "workers": 1, "resources": {"CPU": 1}, "store": "s"}


def test_store_that_was_exchanged_fails_the_trial_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = make_store(tmp_path / "s", {"train": 1}).fingerprint
    make_store(tmp_path / "other", {"train": 1}, noise=1)
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(worker.ray, "get_gpu_ids", lambda: [])
    monkeypatch.setattr(worker.ray.tune, "report", found.append)
    trained: list[Any] = []
    monkeypatch.setattr(worker, "train_group", lambda runs, store, device: trained.append(store.fingerprint))
    settings = settings_of(tmp_path / "one") | {"store": str(tmp_path / "s")}
    config = json.loads((tmp_path / "one" / "config.json").read_text()) | {"store": planned}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    worker.opened.cache_clear()
    run_trial(settings)
    for place in ("s", "other"):  # the store is open already, then it is not
        if place == "s":
            (tmp_path / "s").rename(tmp_path / "away")
            (tmp_path / "other").rename(tmp_path / "s")
        run_trial(settings)
    (tmp_path / "s").rename(tmp_path / "other")
    (tmp_path / "away").rename(tmp_path / "s")
    run_trial(settings)
    worker.opened.cache_clear()
    assert trained == [planned, planned] and len(found) == 2
    assert "is no longer the one that was opened there" in found[0]["over"]
    assert f"this work was planned with {planned}" in found[1]["over"]


def test_gpu_that_is_full_fails_a_lone_trial_and_parts_several(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    run_trial(settings_of(tmp_path / "one"))
    assert [(report["folder"], report["over"]) for report in reports] == [
        (str(tmp_path / "one"), "OutOfMemoryError: no 90 GiB")
    ]
    with pytest.raises(WorkerDiedError, match="no memory for 2 trials together"):
        run_trial(settings_of(tmp_path / "two", tmp_path / "three"))
    assert len(reports) == 1


def test_reason_of_a_failure_comes_through_a_full_disk(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "one")
    (tmp_path / "one" / "error.txt").mkdir()  # stands for a file that cannot be written
    run_trial(settings)
    assert [report["over"] for report in reports] == ["OutOfMemoryError: no 90 GiB"]


def test_workers_that_share_a_gpu_do_not_talk_by_nccl() -> None:
    assert [backend_for(gpus) for gpus in (0, 0.5, 1, 2)] == [None, "gloo", None, None]


def test_worker_that_misses_another_is_told_from_a_path_with_the_word() -> None:
    assert GLOO.search("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed")
    assert not GLOO.search("FileNotFoundError: /data/gloo/clip.mp4")

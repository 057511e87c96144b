"""Runs in the processes of trials: reads settings, opens the store and trains."""

import contextlib
import dataclasses
import platform
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch

from experiments.cluster.errors import WorkerDiedError
from experiments.grid.config import trial_config
from experiments.records.record_types import WorkerSettings, read_record
from experiments.records.stores import opened
from experiments.training.learner import Team
from experiments.training.loop import Run, train_group
from experiments.training.resume import SupersededError
from refavs.errors import ConfigError, RefAVSError, StoreError
from refavs.machine.accelerator import require_usable
from refavs.store import FeatureStore
from refavs.store.unchanged import refuse_exchanged


def run_trial(settings: dict[str, Any]) -> None:
    """Runs the trials of one process, for Tune; their folders contain the settings. Reports failures, never raises.

    Each report has the `folder` of a trial and either its new `records`, or `over` with the reason of a failure, which
    is empty on success.
    """
    if settings["workers"] == 1:
        _train_here(settings)
        return
    from experiments.cluster.distributed import run_workers

    (folder,) = settings["folders"]
    try:
        run_workers(train_share, settings, Path(folder), settings["workers"], settings["resources"])
    except WorkerDiedError:
        raise
    except Exception as error:
        _report_end(Path(folder), error)


def _train_here(settings: dict[str, Any]) -> None:
    """Trains one trial, or several that share one read of the store."""
    device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
    _take_processors(settings)
    missing = [Path(folder) for folder in settings["folders"]]

    def over(run: Run) -> None:
        missing.remove(run.folder)
        _report_end(run.folder, run.error)
        run.error = None  # its traceback keeps everything of the trial in memory

    try:
        require_usable(device, f"node {platform.node()}")
        runs = [dataclasses.replace(_run_of(folder, ray.tune.report), over=over) for folder in missing]
        train_group(runs, _store_of(settings), device)
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) and len(settings["folders"]) > 1:
            raise WorkerDiedError(f"the GPU has no memory for {len(missing)} trials together") from error
        for folder in missing:
            _report_end(folder, error)


def train_share(
    settings: dict[str, Any], team: Team, device: torch.device, report: Callable[[dict[str, Any]], None]
) -> None:
    """Runs on each worker of a trial with several workers."""
    _take_processors(settings)
    run = _run_of(Path(settings["folders"][0]), report)
    train_group([run], _store_of(settings), device, team)
    if run.error is not None:
        raise run.error


def _take_processors(settings: dict[str, Any]) -> None:
    torch.set_num_threads(max(1, int(settings["resources"]["CPU"])))


def _run_of(folder: Path, report: Callable[[dict[str, Any]], None]) -> Run:
    """Creates the run of the trial whose settings are in `folder`."""
    facts = _settings(folder)
    weights = facts.get("weights_dir")
    return Run(
        config=trial_config(facts["config"]), folder=folder,
        report=lambda records: report({"folder": str(folder), "records": records}),
        weights_dir=None if weights is None else Path(weights),
    )  # fmt: skip


def _settings(folder: Path) -> dict[str, Any]:
    facts = read_record(folder / "config.json", WorkerSettings)
    if facts is None:
        raise ConfigError(f"{folder} has no config.json; run the same command again")
    return facts


def _report_end(folder: Path, error: Exception | None) -> None:
    if error is not None and not isinstance(error, SupersededError):
        with contextlib.suppress(OSError):  # e.g. a full disk; the reason itself is reported
            (folder / "error.txt").write_text("".join(traceback.format_exception(error)), "utf-8")
    reason = "" if error is None else reason_of(error)
    ray.tune.report({"folder": str(folder), "records": [], "over": reason})


def reason_of(error: Exception) -> str:
    """The reason of a trial's failure, for its user."""
    return (str(error) if isinstance(error, RefAVSError) else f"{type(error).__name__}: {error}") or "unknown"


def _store_of(settings: dict[str, Any]) -> FeatureStore:
    """Opens the store that the trials read; in a sweep over several stores, each trial records its own.

    Raises:
        StoreError: it cannot be used, or is not the one for which the trials were planned.
    """
    facts = _settings(Path(settings["folders"][0]))
    use = trial_config(facts["config"]).model.use
    store = opened(facts.get("store_location") or settings["store"], tuple(sorted(use.items())))
    try:
        refuse_exchanged(store, facts["store"])
    except StoreError:
        opened.cache_clear()  # the right store may be put back later
        raise
    return store


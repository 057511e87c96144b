"""What happens in the worker of a trial: its settings are read, its store is opened, and it trains."""

import functools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch

from experiments.config import TrialConfig
from experiments.learner import Team
from experiments.train import train
from refavs.config import replace
from refavs.errors import RefAVSError
from refavs.store import FeatureStore


class WorkerDiedError(Exception):
    """A process that worked for the trial, or its node, is gone by no error of the trial's own: it can go on."""


def run_trial(settings: dict[str, Any]) -> None:
    """The trials of one worker, for Tune; a trial's folder holds its settings. A failure is reported, not raised.

    Every report names the `folder` of a trial and has its new `records`, or `over` with why it failed; an empty reason
    says that it did not.
    """
    folder = Path(settings["folders"][0])
    try:
        if settings["workers"] == 1:
            device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
            train_share(settings, Team(), device, ray.tune.report)
        else:
            from experiments.distributed import run_workers

            run_workers(train_share, settings, folder, settings["workers"], settings["resources"])
    except WorkerDiedError:
        raise
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        ray.tune.report({"folder": str(folder), "records": [], "over": reason_of(error)})


def train_share(
    settings: dict[str, Any], team: Team, device: torch.device, report: Callable[[dict[str, Any]], None]
) -> None:
    """What each worker of a trial does."""
    (folder,) = (Path(folder) for folder in settings["folders"])
    torch.set_num_threads(max(1, int(settings["resources"]["CPU"])))
    facts = json.loads((folder / "config.json").read_text("utf-8"))
    weights = facts.get("weights_dir")
    train(
        replace(TrialConfig(), facts["config"]), _store(settings["store"]), folder,
        lambda records: report({"folder": str(folder), "records": records}), device, team,
        None if weights is None else Path(weights),
    )


def reason_of(error: Exception) -> str:
    """Why a trial failed, as its user reads it."""
    return (str(error) if isinstance(error, RefAVSError) else f"{type(error).__name__}: {error}") or "unknown"


@functools.lru_cache(maxsize=1)
def _store(location: str) -> FeatureStore:
    """The store, opened once by each worker."""
    return FeatureStore(location)

"""Tuning as in Ray's guides, where each Tune trial starts a TorchTrainer; compared with our sweep."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from experiments.grid.config import TrialConfig
from experiments.training.loop import train
from extract.pipeline.local_ray import ray_at
from refavs.store import FeatureStore

QUIET = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_AIR_NEW_OUTPUT": "0",
         "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # fmt: skip


@contextmanager
def started_ray() -> Iterator[None]:
    """Ray as a sweep starts it."""
    os.environ.update(QUIET)
    with ray_at(None, num_cpus=2):
        yield


def ray_start_seconds() -> float:
    """Seconds in which Ray starts and ends here, with nothing done in it."""
    started = time.perf_counter()
    with started_ray():
        pass
    return time.perf_counter() - started


def nested_trials(configs: Sequence[TrialConfig], store: str, root: Path) -> None:
    """Trains each config in a trainer of one worker inside a trial of Tune, one after another; nothing is logged."""
    with started_ray():
        results = ray.tune.Tuner(
            ray.tune.with_resources(tune_trial, {"cpu": 0, "memory": 1}),
            param_space={"number": ray.tune.grid_search(list(range(len(configs)))), "configs": list(configs),
                         "store": store, "root": str(root)},
            tune_config=ray.tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
            run_config=ray.tune.RunConfig(name="tune", storage_path=str(root / "tune"), verbose=0),
        ).fit()  # fmt: skip
        assert not results.errors, results.errors


def tune_trial(settings: dict[str, Any]) -> None:
    """One trial of Tune."""
    TorchTrainer(
        train_worker, train_loop_config=settings, scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-{settings['number']}", storage_path=str(Path(settings["root"], "train")),
            callbacks=[TuneReportCallback()],
        ),
    ).fit()  # fmt: skip


def train_worker(settings: dict[str, Any]) -> None:
    """The worker of one trial."""
    number = settings["number"]
    folder = Path(settings["root"], "trials", str(number))
    train(settings["configs"][number], FeatureStore(settings["store"]), folder,
          lambda records: ray.train.report({"epoch": records[-1]["epoch"]}))  # fmt: skip

"""Runs one trial on several workers under Ray Train, from the trial's process; each takes its share of every batch."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from ray.tune.integration.ray_train import TuneReportCallback

from experiments.cluster.errors import WorkerDiedError, WorkersError
from experiments.training.learner import Team
from refavs.errors import RefAVSError

RUN_FOLDER = ".workers"
VALIDATION_TIMEOUT_S = 24 * 3600  # how long the others wait while the first worker evaluates; half an hour by default
MAX_FAILED_STARTS = 1  # else Ray Train retries forever if a node is gone
GLOO = re.compile(r"\bgloo/transport/|\[Gloo\b|\bgloo::")  # the start of its errors; a path may contain the word
Work = Callable[[dict[str, Any], Team, torch.device, Callable[[dict[str, Any]], None]], None]


def run_workers(
    work: Work, settings: dict[str, Any], folder: Path, num_workers: int, resources: dict[str, float]
) -> None:
    """Runs `work` in `num_workers` processes and returns when all have ended.

    Reports of the first worker become reports of the calling Tune trial. All workers must report equally often, because
    each report waits for the others.

    Args:
        work: called with the settings, the team, the device and the report function.
        folder: a folder visible to all nodes, in which Ray Train may create a temporary folder.
        resources: resources of one worker, by Ray's names.

    Raises:
        WorkersError: a worker failed; the others are ended.
        WorkerDiedError: a worker died; the others are ended.
    """
    # After the default 60 s, Ray Train restarts slowly starting workers, without end.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    records = folder / RUN_FOLDER
    shutil.rmtree(records, ignore_errors=True)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"work": work, "settings": settings},
        torch_config=TorchConfig(backend=backend_for(resources.get("GPU", 0)), timeout_s=VALIDATION_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker={name: amount for name, amount in resources.items() if amount},
        ),
        run_config=ray.train.RunConfig(
            name=folder.name, storage_path=str(records.resolve()), callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(controller_failure_limit=MAX_FAILED_STARTS),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        if any(_is_death(failure) for failure in error.worker_failures.values()):
            raise WorkerDiedError(_reason(error)) from error
        raise WorkersError(_reason(error)) from error
    except ControllerError as error:  # the workers never all started
        raise WorkerDiedError(" ".join(str(error).split())) from error
    except TrainingFailedError as error:
        raise WorkersError(" ".join(str(error).split())) from error
    finally:
        shutil.rmtree(records, ignore_errors=True)


def backend_for(gpus: float) -> str | None:
    """Communication backend: NCCL rejects two workers on one GPU, which shares may cause; None is Ray's choice."""
    return "gloo" if 0 < gpus < 1 else None


def _worker(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    team = Team(rank=context.get_world_rank(), size=context.get_world_size())
    config["work"](config["settings"], team, get_device(), ray.train.report)


def _is_death(failure: Exception) -> bool:
    """Whether a worker died, or another one lost its connection to it."""
    return isinstance(failure, RayTrainError | torch.distributed.DistError) or bool(GLOO.search(str(failure)))


def _reason(error: WorkerGroupError) -> str:
    """The message of the first failed worker, on one line."""
    failure = next((failure for _, failure in sorted(error.worker_failures.items())), error)
    if isinstance(failure, RefAVSError):
        return str(failure)
    lines = str(failure).strip().splitlines() or ["a worker died without a message"]
    return f"{type(failure).__name__}: {lines[-1]}"

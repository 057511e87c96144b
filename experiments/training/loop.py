"""Trains trials in a plain loop, without Ray and MLflow. An interrupted trial resumes from its last finished epoch.

A single trial is a group of one. Trials of a larger group share the reads of batches and splits; apart from that, each
has its own weights, optimiser, random numbers, files and failures, as if it ran alone.

With one CPU thread, a trial that was resumed or trained in a group gives bitwise the same result. With several threads,
or on a GPU, even two identical runs differ in the last bits, because the order of additions varies (e.g. in the
backward pass of `grid_sample`).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.grid.config import TrialConfig
from experiments.records.record_types import STOP_FILE, Epoch, read_record, write_json
from experiments.training.batch_size import bytes_of_batch
from experiments.training.evaluate import Trained, evaluate_together, record_together, rows_of
from experiments.training.history import best_epoch, stalled
from experiments.training.learner import Learner, Team, computed_as
from experiments.training.overlays import OVERLAYS, write_overlays
from experiments.training.resume import Claim, load_state, save_history, save_state, saved_precision
from experiments.training.sampler import Sampler
from experiments.training.usage import Usage
from refavs.choices import SCORE, VALIDATION
from refavs.config import to_dict
from refavs.data.batches import Batch
from refavs.data.prefetch import Ahead, depth_for
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.machine.accelerator import allow_tf32
from refavs.metrics import STATISTICS_FILE
from refavs.model.batch_cache import Once
from refavs.model.checkpoint import load_weights, save_model
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.protocol import Head
from refavs.model.heads.registry import implementation_of
from refavs.model.memory_budget import require_memory
from refavs.store import FeatureStore
from refavs.store.fingerprints import fingerprint_of
from refavs.store.unchanged import refuse_exchanged

Report = Callable[[list[dict[str, Any]]], None]
Found = dict[str, float] | Exception  # metrics by name, or why they could not be computed


@dataclass(kw_only=True)
class Run:
    """A trial to train, and its outcome.

    Attributes:
        folder: receives `state/` (the last epoch's checkpoint while training), `metrics.jsonl` (a record per epoch),
            `checkpoint/` (the trained head), `statistics.parquet` (from which every protocol is computed), `overlays/`
            and finally `result.json`. A run resumes from the files of an earlier call.
        report: called with the records of finished epochs, starting with those of earlier calls.
        over: called when the trial ends, successfully or not.
        weights_dir: folder with the pretrained weights.
        result: a record like an epoch's with the final `metrics` by name, e.g. `test_s/J`, and a `note` if an overlay
            could not be drawn; empty on all workers except the first, and if the trial was asked to stop.
        error: the reason of a failure.
    """

    config: TrialConfig
    folder: Path
    report: Report = lambda records: None
    over: Callable[["Run"], None] = lambda run: None
    weights_dir: Path | None = None
    result: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None
    ended: bool = False

    def end(self, error: Exception | None = None) -> None:
        """Ends the trial: finished, asked to stop, or failed with `error`."""
        self.error, self.ended = error, True
        self.over(self)


def train(
    config: TrialConfig, store: FeatureStore, folder: Path, report: Report = lambda records: None,
    device: torch.device | None = None, team: Team | None = None, weights_dir: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Trains and evaluates one head, or resumes an earlier call with the same folder; see `Run`.

    Args:
        team: the workers that include this one. All of them train; the first one evaluates and writes.

    Returns:
        The result of the run.

    Raises:
        ConfigError: early stopping is on, but the store has no validation split.
        NonFiniteError: a loss or gradient is not finite; the message names the epoch, step and expressions.
        StoreError: the store has no training expressions.
    """
    run = Run(config=config, folder=folder, report=report, weights_dir=weights_dir)
    train_group([run], store, device, team)
    if run.error is not None:
        raise run.error
    return run.result


def train_group(
    runs: Sequence[Run], store: FeatureStore, device: torch.device | None = None, team: Team | None = None
) -> None:
    """Trains trials that read the same batches (see `grouping.reading`); each batch is read once for all.

    After a kill they may be at different epochs: those that are behind catch up first. A trial that fails leaves the
    group with its error, and the others continue.

    Args:
        team: for a group of one; see `train`.

    Raises:
        torch.OutOfMemoryError: several trials do not fit on the device together; each may continue alone.
    """
    device, team = device or torch.device("cpu"), team or Team()
    group: list[Training] = []
    for run in runs:
        with isolated(run, len(runs)):
            group.append(Training(run, store, device, team))
    while True:
        for training in group:
            if asked_to_stop(training.run.folder, training.learner):
                training.run.end()
        group = [training for training in group if not training.run.ended]
        if not group:
            return
        complete = [training for training in group if training.complete]
        epoch = min(training.epoch for training in group)
        alone = isolated(group[0].run, 1) if len(group) == 1 else contextlib.nullcontext()
        with alone:  # a failure of shared work fails the whole group, whose trials are then retried alone
            if complete:
                finish(complete, store, len(group))
            else:
                advance([training for training in group if training.epoch == epoch], store, len(group))


@contextlib.contextmanager
def isolated(run: Run, num_runs: int) -> Iterator[None]:
    """A failure inside ends only this run, except lack of memory, which other runs may have caused."""
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) and num_runs > 1:
            raise
        run.end(error)


class Training:
    """A trial in training: its learner, its finished epochs and their history."""

    def __init__(self, run: Run, store: FeatureStore, device: torch.device, team: Team) -> None:
        config = computed_as(run.config, saved_precision(run.folder), device)
        settings = config.train
        if settings.patience and not rows_of(store, Splits.of(store.attributes).validation):
            raise ConfigError(
                f"train.patience is {settings.patience}, and {store.location} has no validation split; set it to 0"
            )
        allow_tf32(device)
        torch.manual_seed(config.seed)
        at_once = math.ceil(settings.batch_size / settings.accumulate / team.size)
        sizes = FeatureSizes.from_store(store, config.model.needs(), config.model.head)
        num_frames, batch = settings.frames or len(store.steps), bytes_of_batch(config, store)
        require_memory(config.model, sizes, device, at_once, num_frames, batch)
        self.run, self.team = run, team
        self.features = fingerprint_of(store, sizes.paths)
        self.learner = Learner(config, build_model(config, store, run.weights_dir).to(device), team)
        self.claim = Claim(run.folder, writes=team.rank == 0)
        self.epoch, self.history = load_state(run.folder, self.learner)
        if self.history:
            if team.rank == 0:  # a kill may have happened between writing the state and this file
                save_history(self.claim, self.history)
            run.report(self.history)
        self.sampler = Sampler(config, store, device)
        self.usage = Usage(device)
        self.sums: dict[str, Tensor] = {}

    @property
    def complete(self) -> bool:
        """Whether all epochs are trained."""
        settings = self.run.config.train
        return self.epoch >= settings.epochs or stalled(self.history, settings.patience)

    @property
    def head(self) -> Trained:
        """The head to evaluate."""
        return Trained(self.learner.config.train, self.learner.average)

    def step(self, parts: Sequence[tuple[int, Batch]], index: int, once: Once) -> None:
        """Takes one step; `index` counts from the start of the epoch."""
        num_steps = self.sampler.num_steps
        losses = self.learner.step(
            parts, self.epoch * num_steps + index, self.run.config.train.epochs * num_steps, once
        )
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.usage.sample()

    def losses(self) -> dict[str, float]:
        """Returns the mean losses of the epoch's steps and resets them."""
        metrics = {f"train/{name}": float(value) / self.sampler.num_steps for name, value in self.sums.items()}
        metrics["train/loss"] = metrics.pop("train/total")
        metrics["train/learning_rate"] = self.learner.optimizer.param_groups[0]["lr"]
        self.sums = {}
        return metrics

    def close_epoch(self, metrics: dict[str, float], seconds: float) -> None:
        """Saves and reports the epoch."""
        self.epoch += 1
        record = {
            "step": self.epoch * self.sampler.num_steps, "metrics": metrics, "epoch": self.epoch,
            "time_ms": int(time.time() * 1000), "seconds": seconds, "usage": self.usage.take(),
        }  # fmt: skip
        self.history.append(record)
        if self.run.config.train.patience and best_epoch(self.history) == self.epoch:
            self.learner.keep_as_best()
        if self.team.rank == 0:
            save_state(self.claim, self.learner, self.epoch, self.history)
            save_history(self.claim, self.history)
        self.run.report([record])

    def keep(self, found: Found, seconds: float, store: FeatureStore, note: str | None) -> None:
        """Writes the checkpoint, and publishes the results. The last one marks the trial as complete.

        Raises:
            StoreError: the store that the trial read was replaced by another one.
            SupersededError: another process has resumed the trial.
        """
        refuse_exchanged(store)
        run, model, in_history = self.run, self.learner.average, f"{VALIDATION}/"
        facts = {"store": self.features, "encoders": store.encoders, "seconds": store.seconds,
                 "fps": store.steps.fps, "mask_size": store.mask_size}  # fmt: skip
        started = time.monotonic()
        with self.claim.held():
            metrics = {name: value for name, value in _good(found).items() if not name.startswith(in_history)}
            save_model(self.claim.folder / "checkpoint", model, {**facts, "trial": to_dict(self.learner.config)})
            if run.config.train.patience:
                metrics["best_epoch"] = float(best_epoch(self.history))
            metrics["parameters"] = float(sum(p.numel() for p in self.learner.trained))
            seconds += time.monotonic() - started
            metrics["seconds"] = sum(record["seconds"] for record in self.history) + seconds
            noted = {"note": note} if note else {}
            run.result = {"epoch": len(self.history), "time_ms": int(time.time() * 1000), "metrics": metrics, **noted}
            write_json(self.claim.folder / "result.json", run.result)
        self.claim.publish(STATISTICS_FILE, OVERLAYS, "checkpoint", "result.json")
        self.claim.release()


def asked_to_stop(folder: Path, learner: Learner) -> bool:
    """Whether the trial in `folder`, or its whole sweep, was asked to stop, according to the first worker."""
    asked = any((place / STOP_FILE).exists() for place in (folder, folder.parent.parent))
    if learner.team.size == 1:
        return asked
    shared = torch.tensor(float(asked and learner.team.rank == 0), device=learner.device)
    return bool(learner.team.add(shared))


def advance(trainings: Sequence[Training], store: FeatureStore, num_runs: int) -> None:
    """Trains one epoch of trials that are at the same epoch, and evaluates them.

    Every random choice follows from the seed and the epoch. The recorded time is divided among the trials.

    Args:
        num_runs: number of trials in the whole group, which share the memory.
    """
    started = time.monotonic()
    running, waited_s = take_steps(trainings, num_runs)
    if not running:
        return
    steps_s = time.monotonic() - started
    times = {
        "train/seconds_per_step": steps_s / running[0].sampler.num_steps / len(running),
        "train/wait_share": waited_s / steps_s,
    }
    found = validate(running, store)
    seconds = (time.monotonic() - started) / len(running)
    for training, metrics in zip(running, found, strict=True):
        with isolated(training.run, num_runs):
            training.close_epoch({**training.losses(), **times, **_good(metrics)}, seconds)


def take_steps(trainings: Sequence[Training], num_runs: int) -> tuple[list[Training], float]:
    """Takes the steps of one epoch; returns the trials that did not fail, and the seconds spent waiting for data.

    As a function of its own it releases the last batch and its cached results on return.
    """
    for training in trainings:
        training.learner.model.train()
    lead, running = trainings[0], list(trainings)
    heads = [training.learner.model for training in trainings]
    read = lead.sampler.batches(lead.epoch, lead.team.rank, lead.team.size, heads)
    ahead = Ahead(read, depth_for(lead.sampler.device))
    for index, parts in enumerate(ahead):
        once = Once(keep=len(running) > 1)
        for training in running:
            with isolated(training.run, num_runs):
                training.step(parts, index, once)
        running = [training for training in running if not training.run.ended]
        if not running:
            break
    return running, ahead.waited_s


def validate(trainings: Sequence[Training], store: FeatureStore) -> list[Found]:
    """Metrics on val, or the error. The first worker computes them and sends J to the others for early stopping."""
    learner, team = trainings[0].learner, trainings[0].team
    found: list[Found] = [{} for _ in trainings]
    if team.rank == 0:
        heads = [training.head for training in trainings]
        splits = Splits.of(store.attributes).validation
        found = evaluate_together(heads, store, splits, learner.device, [None] * len(heads))
    if team.size > 1:
        known = _good(found[0])
        values = [known.get(SCORE, 0.0), float(SCORE in known)]
        shared = team.add(torch.tensor(values, dtype=torch.float64, device=learner.device))
        found = [known or ({SCORE: float(shared[0])} if shared[1] else {})]
    return found


def finish(trainings: Sequence[Training], store: FeatureStore, num_runs: int) -> None:
    """Computes the final metrics of trials whose epochs are done, and writes their results.

    Args:
        num_runs: as for `advance`.
    """
    missing: list[Training] = []
    for training in trainings:
        known = read_record(training.run.folder / "result.json", Epoch)
        if training.team.rank == 0 and known is None:
            training.learner.use_best()
            missing.append(training)
        else:
            training.run.result = (known or {}) if training.team.rank == 0 else {}
            training.run.end()
    if not missing:
        return
    started, device = time.monotonic(), missing[0].learner.device
    heads, paths = zip(*((each.head, each.claim.folder / STATISTICS_FILE) for each in missing), strict=True)
    found = record_together(heads, store, Splits.of(store.attributes).evaluated, device, paths)
    good = [number for number, metrics in enumerate(found) if isinstance(metrics, dict)]
    folders = [missing[number].claim.folder / OVERLAYS for number in good]
    pictures = write_overlays(folders, [heads[number] for number in good], store, device)
    notes = {number: f"{OVERLAYS}: {why}" for number, why in zip(good, pictures, strict=True) if isinstance(why, str)}
    seconds = (time.monotonic() - started) / len(missing)
    for number, (training, metrics) in enumerate(zip(missing, found, strict=True)):
        with isolated(training.run, num_runs):
            training.keep(metrics, seconds, store, notes.get(number))
            training.run.end()


def _good(metrics: Found) -> dict[str, float]:
    if isinstance(metrics, Exception):
        raise metrics
    return metrics


def build_model(config: TrialConfig, store: FeatureStore, weights_dir: Path | None = None) -> Head:
    """A new head for the features of `store`, which it standardises.

    Raises:
        ConfigError: the settings do not fit the store.
        WeightsError: the initial weights are missing, damaged, of another size, or do not match the store.
    """
    model = implementation_of(config.model).from_store(store, config.model)
    load_start(config, model, store, weights_dir)
    model.set_statistics(store.statistics)
    return model


def load_start(config: TrialConfig, model: Head, store: FeatureStore, weights_dir: Path | None) -> list[str]:
    """Loads the initial weights of a new head for `store`: those that `train.init` names, or pretrained ones.

    Returns:
        Parts that still start from random weights, each with the reason.

    Raises:
        ConfigError: the settings require pretrained weights, but `weights_dir` is None.
        WeightsError: the weights are missing, damaged, of another size, or do not match the store.
    """
    init = config.train.init
    if init is not None and model.own_format:
        model.load_own(Path(init), store.encoders)
    elif init is not None:
        load_weights(Path(init), model)
    elif config.model.pretrained is not None:
        if weights_dir is None:
            raise ConfigError(f"model.{config.model.weights_setting} is not random; give the folder that has "
                              f"{config.model.pretrained}/ by --weights-dir")  # fmt: skip
        return model.load_pretrained(weights_dir / config.model.pretrained, store.encoders)
    return []

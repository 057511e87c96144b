"""One trial as a plain loop: no Ray and no MLflow in it. It goes on from its last finished epoch."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from experiments.config import TrialConfig
from experiments.evaluate import TEST_SPLITS, evaluate_splits, record_splits, rows_of
from experiments.learner import Learner, Team
from experiments.overlays import write_overlays
from experiments.sampler import Sampler
from experiments.state import STOP_FILE, load_state, read_json, save_state, write_json
from refavs.config import to_dict
from refavs.data.dataset import Ahead
from refavs.errors import ConfigError
from refavs.metrics import STATISTICS_FILE
from refavs.model.checkpoint import load_weights, save_model
from refavs.model.eemc import EEMC, EEMCConfig
from refavs.model.footprint import require_memory
from refavs.model.pretrained import Mask2Former, load_decoders
from refavs.model.sizes import FeatureSizes
from refavs.store.files import write_atomically

if TYPE_CHECKING:
    from refavs.store import FeatureStore

Report = Callable[[list[dict[str, Any]]], None]


def train(
    config: TrialConfig,
    store: "FeatureStore",
    folder: Path,
    report: Report = lambda records: None,
    device: torch.device | None = None,
    team: Team | None = None,
    weights_dir: Path | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one head, or goes on where an earlier call with this folder stopped.

    The folder receives `state/` (the last epoch's checkpoint while training), `metrics.jsonl` (a record per epoch),
    `checkpoint/` (the trained head), `statistics.parquet` (from which every protocol is computed), `overlays/` and at
    last `result.json`.

    Args:
        report: called with the records of finished epochs, first with those of earlier calls.
        team: the workers of which this is one. All of them train, the first one evaluates and writes.
        weights_dir: has the weights that the settings start from.

    Returns:
        A record like an epoch's, whose `metrics` are the final ones by name, as `test_s/J`; an empty one on all workers
        but the first, and where the trial was asked to stop.

    Raises:
        ConfigError: early stopping on a store that has no validation.
        NonFiniteError: a loss or gradient is not finite; names the epoch, the step and the batch's expressions.
        StoreError: the store has no training expressions.
    """
    device, team, settings = device or torch.device("cpu"), team or Team(), config.train
    if settings.patience and not rows_of(store, ("val",)):
        raise ConfigError(f"train.patience is {settings.patience}, and {store.location} has no split val; set it to 0")
    torch.manual_seed(config.seed)
    at_once = math.ceil(settings.batch_size / settings.accumulate / team.size)
    sizes = FeatureSizes.from_store(store, config.model.trains_pixel_decoder)
    require_memory(config.model, sizes, device, at_once, settings.frames or store.num_frames)
    learner = Learner(config, build_model(config, store, weights_dir).to(device), team)
    epoch, history = load_state(folder / "state", learner)
    if history:
        if team.rank == 0:
            write_history(folder / "metrics.jsonl", history)  # a kill may have come between the state and this file
        report(history)
    sampler = Sampler(config, store, device)
    while not asked_to_stop(folder, learner):
        if epoch >= settings.epochs or stalled(history, settings.patience):
            return finish(learner, store, folder, history) if team.rank == 0 else {}
        started = time.monotonic()
        record = train_epoch(learner, sampler, epoch)
        record["metrics"] |= validate(learner, store)
        epoch += 1
        seconds = time.monotonic() - started
        record |= {"epoch": epoch, "time_ms": int(time.time() * 1000), "seconds": seconds}
        history.append(record)
        if settings.patience and best_epoch(history) == epoch:
            learner.keep_as_best()
        if team.rank == 0:
            save_state(folder / "state", learner, epoch, history)
            write_history(folder / "metrics.jsonl", history)
        report([record])
    return {}


def asked_to_stop(folder: Path, learner: Learner) -> bool:
    """Whether the trial in `folder`, or its whole sweep, is to end now, as the first worker sees it."""
    asked = torch.tensor(float(any((place / STOP_FILE).exists() for place in (folder, folder.parent.parent))))
    if learner.team.rank:
        asked.zero_()
    return bool(learner.team.add(asked.to(learner.device)))


def build_model(config: TrialConfig, store: "FeatureStore", weights_dir: Path | None = None) -> EEMC:
    """A new head for the features of `store`, which are standardised inside it.

    Raises:
        ConfigError: settings that do not fit the store.
        WeightsError: weights to start from that are missing, damaged, of another size, or not those of the store.
    """
    model = EEMC(EEMCConfig.from_store(store, **asdict(config.model)))
    if config.train.init is not None:
        load_weights(Path(config.train.init), model)
    model.set_statistics(store.statistics)
    if config.model.decoder_weights != "random" and config.train.init is None:
        if weights_dir is None:
            raise ConfigError("model.decoder_weights is not random; give the folder that has them by --weights-dir")
        load_decoders(model, Mask2Former.within(weights_dir), store.encoders)
    return model


def finish(learner: Learner, store: "FeatureStore", folder: Path, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Final metrics, checkpoint and pictures; the result is written last, so that it stands for all of them."""
    known = read_json(folder / "result.json")
    if known is not None:
        return known
    started = time.monotonic()
    config, device = learner.config, learner.device
    learner.use_best()
    model = learner.average
    splits, file = ("val", *TEST_SPLITS), folder / STATISTICS_FILE
    found = record_splits(config.train, model, store, splits, device, file)
    metrics = {name: value for name, value in found.items() if not name.startswith("val/")}  # the history has those
    facts = {"store": store.fingerprint, "encoders": store.encoders, "extraction": store.schema.extraction}
    save_model(folder / "checkpoint", model, {**facts, "trial": to_dict(config)})
    write_overlays(folder / "overlays", config.train, model, store, device)
    if config.train.patience:
        metrics["best_epoch"] = float(best_epoch(history))
    metrics["parameters"] = float(sum(p.numel() for p in learner.trained))
    metrics["seconds"] = sum(record["seconds"] for record in history) + time.monotonic() - started
    result = {"epoch": len(history), "time_ms": int(time.time() * 1000), "metrics": metrics}
    write_json(folder / "result.json", result)
    return result


def train_epoch(learner: Learner, sampler: Sampler, epoch: int) -> dict[str, Any]:
    """Trains one epoch, whose every random choice follows from the seed and the epoch; returns its record."""
    started = time.perf_counter()
    settings, team = learner.config.train, learner.team
    learner.model.train()
    sums: dict[str, Tensor] = {}
    first, num_steps = epoch * sampler.num_steps, settings.epochs * sampler.num_steps
    ahead = Ahead(sampler.batches(epoch, team.rank, team.size))
    for index, parts in enumerate(ahead):
        for name, value in learner.step(parts, first + index, num_steps).items():
            sums[name] = sums[name] + value if name in sums else value
    metrics = {f"train/{name}": float(value) / sampler.num_steps for name, value in sums.items()}
    metrics["train/loss"] = metrics.pop("train/total")
    metrics["train/learning_rate"] = learner.optimizer.param_groups[0]["lr"]
    seconds = time.perf_counter() - started
    metrics |= {"train/seconds_per_step": seconds / sampler.num_steps, "train/wait_share": ahead.waited_s / seconds}
    return {"step": first + sampler.num_steps, "metrics": metrics}


def validate(learner: Learner, store: "FeatureStore") -> dict[str, float]:
    """Metrics on val. The first worker finds them; the others learn J, on which early stopping hangs."""
    settings, team = learner.config.train, learner.team
    found = {}
    if team.rank == 0:
        found = evaluate_splits(settings, learner.average, store, ("val",), learner.device)
    if team.size > 1:
        known = [found.get("val/J", 0.0), float("val/J" in found)]
        shared = team.add(torch.tensor(known, dtype=torch.float64, device=learner.device))
        found = found or ({"val/J": float(shared[0])} if shared[1] else {})
    return found


def stalled(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought no better val J; never for a patience of 0."""
    return patience > 0 and len(history) >= best_epoch(history) + patience > patience


def best_epoch(history: list[dict[str, Any]]) -> int:
    """The number of the first epoch with the highest val J; 0 without any."""
    scores = [record["metrics"].get("val/J", -math.inf) for record in history]
    return scores.index(max(scores)) + 1 if scores else 0


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes a JSON line per epoch, whole or not at all."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in history).encode())

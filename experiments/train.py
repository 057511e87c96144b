"""One trial as a plain loop: no Ray and no MLflow in it. It goes on from its last finished epoch."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from experiments.evaluate import TEST_SPLITS, autocast, evaluate_splits, record_splits
from experiments.overlays import write_overlays
from experiments.sampler import Sampler, derived_seed
from experiments.state import load_state, read_json, save_state, write_json
from refavs.config import to_dict
from refavs.data.dataset import Batch
from refavs.errors import ConfigError
from refavs.metrics import STATISTICS_FILE
from refavs.model.checkpoint import save_model
from refavs.model.eemc import EEMC, EEMCConfig
from refavs.model.losses import eemc_loss
from refavs.store.files import write_atomically

if TYPE_CHECKING:
    from experiments.config import TrialConfig
    from refavs.store import FeatureStore

Report = Callable[[list[dict[str, Any]]], None]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained.

    Attributes:
        epochs: an epoch ends with a validation, a checkpoint and a line in the history.
        steps_per_epoch: batches in an epoch; 0 takes as many as show each training expression once.
        batch_size: expressions in a batch.
        expressions_per_clip: expressions of one clip that a batch takes together, so that its maps are read once.
        frames: seconds of each clip that are decoded in a step, drawn anew each step; 0 decodes all. The cached memory
            is exact in either case.
        sampling: `uniform` over expressions, or `dimension`: each dimension, and the nulls, equally often.
        warmup_steps: steps in which the learning rate rises linearly from zero.
        decay_start: share of all steps after which the learning rate falls to zero as a cosine.
        clip_norm: largest norm of the gradient.
        precision: `bf16` runs the model under autocast.
        eval_batch_size: expressions in a batch of evaluation; changes no number.
    """

    epochs: int = 50
    steps_per_epoch: int = 0
    batch_size: int = 8
    expressions_per_clip: int = 4
    frames: int = 0
    sampling: Literal["uniform", "dimension"] = "uniform"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup_steps: int = 0
    decay_start: float = 0.0
    clip_norm: float = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "expressions_per_clip", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; accepted: a whole number from 1")
        for name in ("steps_per_epoch", "frames", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; accepted: 0 or more")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; accepted: a number above 0")
        if not 0 <= self.decay_start <= 1:
            raise ConfigError(f"train.decay_start is {self.decay_start}; accepted: a share of all steps from 0 to 1")


class NonFiniteError(ConfigError):
    """A loss or gradient that is not a number: the trial stops before the weights are lost."""


def train(
    config: "TrialConfig",
    store: "FeatureStore",
    folder: Path,
    report: Report = lambda records: None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one head, or goes on where an earlier call with this folder stopped.

    The folder receives `state/` (the last epoch's checkpoint while training), `metrics.jsonl` (a record per epoch),
    `checkpoint/` (the trained head), `statistics.parquet` (from which every protocol is computed), `overlays/` and at
    last `result.json`.

    Args:
        report: called with the records of finished epochs, first with those of earlier calls.

    Returns:
        A record like an epoch's, whose `metrics` are the final ones by name, as `test_s/J`.

    Raises:
        NonFiniteError: a loss or gradient is not finite; names the epoch, the step and the batch's expressions.
        StoreError: the store has no training expressions.
    """
    device = device or torch.device("cpu")
    torch.manual_seed(config.seed)
    model = build_model(config, store).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
    )
    epoch, history = load_state(folder / "state", model, optimizer)
    if history:
        write_history(folder / "metrics.jsonl", history)  # a kill may have come between the state and this file
        report(history)
    sampler = Sampler(config, store)
    while epoch < config.train.epochs:
        started = time.monotonic()
        record = train_epoch(config, model, optimizer, store, sampler, epoch, device)
        record["metrics"] |= evaluate_splits(config.train, model, store, ("val",), device)
        epoch += 1
        seconds = time.monotonic() - started
        record |= {"epoch": epoch, "time_ms": int(time.time() * 1000), "seconds": seconds}
        history.append(record)
        save_state(folder / "state", model, optimizer, epoch, history)
        write_history(folder / "metrics.jsonl", history)
        report([record])
    return finish(config, model, store, folder, history, device)


def build_model(config: "TrialConfig", store: "FeatureStore") -> EEMC:
    """A new head for the features of `store`, which are standardised inside it."""
    model = EEMC(EEMCConfig.from_store(store, **asdict(config.model)))
    model.set_statistics(store.statistics)
    return model


def finish(
    config: "TrialConfig",
    model: EEMC,
    store: "FeatureStore",
    folder: Path,
    history: list[dict[str, Any]],
    device: torch.device,
) -> dict[str, Any]:
    """Final metrics, checkpoint and pictures; the result is written last, so that it stands for all of them."""
    known = read_json(folder / "result.json")
    if known is not None:
        return known
    started = time.monotonic()
    splits, file = ("val", *TEST_SPLITS), folder / STATISTICS_FILE
    found = record_splits(config.train, model, store, splits, device, file)
    metrics = {name: value for name, value in found.items() if not name.startswith("val/")}  # the history has those
    facts = {"store": store.fingerprint, "encoders": store.encoders, "extraction": store.schema.extraction}
    save_model(folder / "checkpoint", model, {**facts, "trial": to_dict(config)})
    write_overlays(folder / "overlays", config.train, model, store, device)
    metrics["parameters"] = float(sum(p.numel() for p in model.parameters() if p.requires_grad))
    metrics["seconds"] = sum(record["seconds"] for record in history) + time.monotonic() - started
    result = {"epoch": len(history), "time_ms": int(time.time() * 1000), "metrics": metrics}
    write_json(folder / "result.json", result)
    return result


def train_epoch(
    config: "TrialConfig",
    model: EEMC,
    optimizer: torch.optim.Optimizer,
    store: "FeatureStore",
    sampler: Sampler,
    epoch: int,
    device: torch.device,
) -> dict[str, Any]:
    """Trains one epoch, whose every random choice follows from the seed and the epoch; returns its record."""
    settings = config.train
    torch.manual_seed(derived_seed(config.seed, "epoch", epoch))
    model.train()
    sums: dict[str, Tensor] = {}
    first = epoch * sampler.num_steps
    for index, batch in enumerate(sampler.batches(epoch)):
        step = first + index
        rate = learning_rate(settings, step, settings.epochs * sampler.num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses = losses_of(config, model, batch.to(device))
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        if not bool(torch.isfinite(losses["total"]) & torch.isfinite(norm)):
            raise NonFiniteError(_non_finite(losses["total"], norm, epoch, index, rate, batch))
        optimizer.step()
        for name, value in {**losses, "grad_norm": norm}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
    metrics = {f"train/{name}": float(value) / sampler.num_steps for name, value in sums.items()}
    metrics["train/loss"] = metrics.pop("train/total")
    metrics["train/learning_rate"] = optimizer.param_groups[0]["lr"]
    return {"step": first + sampler.num_steps, "metrics": metrics}


def losses_of(config: "TrialConfig", model: EEMC, batch: Batch) -> dict[str, Tensor]:
    """The losses of one batch, on a random choice of its seconds where the settings ask for that."""
    assert batch.mask is not None
    num_frames = batch.mask.shape[1]
    frames, mask = None, batch.mask
    if 0 < config.train.frames < num_frames:
        frames = torch.randperm(num_frames)[: config.train.frames].sort().values.to(mask.device)
        mask = mask[:, frames]
    with autocast(config.train, mask.device):
        output = model(batch, frames)
    return eemc_loss(output, mask, config.loss)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, constant, then a cosine to zero."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    decay = config.decay_start * num_steps
    if step < decay:
        return rate
    return rate * 0.5 * (1 + math.cos(math.pi * (step - decay) / max(num_steps - decay, 1)))


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes a JSON line per epoch, whole or not at all."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in history).encode())


def _non_finite(loss: Tensor, norm: Tensor, epoch: int, index: int, rate: float, batch: Batch) -> str:
    return (
        f"loss {float(loss.detach())}, gradient norm {float(norm)} at epoch {epoch + 1}, step {index + 1}, learning "
        f"rate {rate:.3g}; expressions of the batch: {', '.join(batch.uid)}; lower train.learning_rate or raise "
        "train.warmup_steps, or look for damaged features with refavs-store verify"
    )

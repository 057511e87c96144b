"""Cost of a trial before it runs: parameters, arithmetic, time from a few real steps on this machine, disk space."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from experiments.grid.config import TrialConfig
from experiments.training.evaluate import predictions, rows_of
from experiments.training.flops import FlopCounter
from experiments.training.learner import Learner, computed_as
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler, steps_per_epoch, steps_read
from refavs.config import replace
from refavs.data.batches import batch_rows, read_batches
from refavs.data.splits import Splits
from refavs.model.heads.protocol import PartSize
from refavs.store import FeatureStore

# Measured on runs of the synthetic benchmark: 660 to 800 bytes per frame of an expression.
STATISTICS_BYTES_PER_FRAME = 750
GROWTH = 4  # factor of the number of expressions from one try to the next


@dataclass(frozen=True, kw_only=True)
class Times:
    """Times of a trial, in seconds.

    Attributes:
        step: time of a training step, including reading.
        read: time to read a batch, which trials in one process share.
        predict: time per expression in evaluation.
        measured: whether steps of this model ran; otherwise times are scaled from another model by arithmetic.
    """

    step: float
    read: float
    predict: float
    measured: bool = True

    @property
    def without_read(self) -> "Times":
        """Additional times of a trial next to another one that reads the same batches in the same process."""
        return dataclasses.replace(self, step=self.step - self.read)

    def scaled(self, known: "Cost", wanted: "Cost") -> "Times":
        """Times of another model, assuming the same time per unit of arithmetic."""
        step, forward = (wanted_flops / max(1, known_flops) for wanted_flops, known_flops in (
            (wanted.step_flops, known.step_flops), (wanted.forward_flops, known.forward_flops)))  # fmt: skip
        return Times(step=self.read + (self.step - self.read) * step, read=self.read,
                     predict=self.predict * (forward or 1.0), measured=False)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a trial, apart from time.

    Attributes:
        parts: parameters of each part of the model.
        forward_flops: arithmetic of the forward pass on one batch; a multiply-add counts two, other operations nothing.
        step_flops: the same including the backward pass.
        state_bytes: disk space while the trial runs.
        kept_bytes: disk space after it has finished: checkpoint and statistics.
    """

    parts: list[PartSize]
    forward_flops: int
    step_flops: int
    state_bytes: int
    kept_bytes: int


class Measured(NamedTuple):
    """A model whose cost is known; `times` is None if it was not run."""

    cost: Cost
    times: Times | None


def measure(
    config: TrialConfig, store: FeatureStore, device: torch.device | None, weights_dir: Path | None = None,
    budget_s: float = math.inf, counter: FlopCounter | None = None,
) -> Measured:  # fmt: skip
    """Counts the arithmetic of a training step (unless epochs is 0) and times steps and evaluation; writes nothing.

    Args:
        device: the device for timing; None skips it.
        budget_s: processor seconds available for timing. If a whole batch would take longer, its time is extrapolated
            from some of its expressions; at least one is always tried.
        counter: counter of the arithmetic, shared between models so that it already knows their operations.
    """
    config = replace(config, {"train.compile": False})  # compiling takes longer than the whole measurement
    config = computed_as(config, None, device or torch.device("cpu"))
    learner = Learner(config, build_model(config, store, weights_dir))
    forward_flops = step_flops = 0
    sampler = Sampler(config, store) if config.train.epochs else None
    if sampler is not None:
        learner.model.train()
        forward_flops, step_flops = _flops(learner, sampler, counter or FlopCounter())
    state, kept = _bytes(learner, store)
    cost = Cost(parts=learner.model.part_sizes(), forward_flops=forward_flops, step_flops=step_flops,
                state_bytes=state, kept_bytes=kept)  # fmt: skip
    if device is None:
        return Measured(cost, None)
    if device.type != "cpu":
        learner = Learner(config, learner.model.to(device))
    return Measured(cost, _times(learner, sampler, store, device, budget_s))


def _flops(learner: Learner, sampler: Sampler, counter: FlopCounter) -> tuple[int, int]:
    """The arithmetic of a step: of the forward pass, and in total."""
    forwards, forward = [], learner.forward

    def counted(*inputs: object) -> object:
        before = counter.total
        output = forward(*inputs)
        forwards.append(counter.total - before)
        return output

    parts = next(sampler.batches(0))
    learner.forward, before = counted, counter.total
    with counter:
        learner.step(parts, 0, learner.config.train.epochs * sampler.num_steps)
    learner.forward = forward
    return sum(forwards), counter.total - before


def _times(
    learner: Learner, sampler: Sampler | None, store: FeatureStore, device: torch.device, budget_s: float
) -> Times:
    train, started_s = learner.config.train, time.process_time()
    read_s, compute_s = 0.0, 0.0
    if sampler is not None:
        learner.model.train()
        rows = sampler.rows(0)
        rows = batch_rows(store, rows, train.batch_size, seed=learner.config.order_seed, epoch=0,
                          expressions_per_clip=train.expressions_per_clip)[0]  # fmt: skip
        read_s, compute_s = _of_all(lambda number: _step(learner, sampler, rows[:number], device), len(rows), budget_s)
    rows = rows_of(store, (splits := Splits.of(store.attributes)).evaluated) or rows_of(store, splits.train)
    rows = rows[: train.eval_batch_size]
    left_s = budget_s - (time.process_time() - started_s)

    def predict(number: int) -> tuple[float, float]:
        started = time.perf_counter()
        for _, probs in predictions(train, learner.average, store, rows[:number], device):
            probs.cpu()
        return 0.0, time.perf_counter() - started

    eval_s = sum(_of_all(predict, len(rows), left_s)) / len(rows)
    return Times(step=read_s + compute_s, read=read_s, predict=eval_s)


def _of_all(
    run: Callable[[int], tuple[float, float]], number_of_all: int, budget_s: float
) -> tuple[float, float]:
    """Result of `run` for all expressions, or for as many as the budget allows, scaled up.

    It runs twice with each number, because the first run includes the one-time cost of memory, buffers and kernels.
    """
    number, started_s = 1, time.process_time()
    while True:
        found = run(number)
        once_s = time.process_time() - started_s
        if 2 * once_s < budget_s:
            found = run(number)
        spent_s = time.process_time() - started_s
        if number == number_of_all or GROWTH * 2 * (spent_s - once_s or once_s) > budget_s - spent_s:
            return found[0] * number_of_all / number, found[1] * number_of_all / number
        number = min(GROWTH * number, number_of_all)


def _step(learner: Learner, sampler: Sampler, rows: list[int], device: torch.device) -> tuple[float, float]:
    """Seconds for reading and for computing a step on these expressions, in parts of the same size as in training."""
    train, started = learner.config.train, time.perf_counter()
    num_parts = math.ceil(len(rows) * train.accumulate / train.batch_size)
    parts = [[int(row) for row in part] for part in np.array_split(rows, min(num_parts, len(rows)))]
    chosen = steps_read([learner.model], sampler.chosen_steps(0))
    (batches,) = read_batches(sampler.store, [(parts, chosen)], sampler.levels, device)
    read = time.perf_counter()
    learner.step(list(enumerate(batches)), 0, train.epochs * sampler.num_steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return read - started, time.perf_counter() - read


def seconds(times: Times, config: TrialConfig, store: FeatureStore, num_done: int = 0) -> float:
    """Remaining time of a trial after `num_done` epochs: steps, a validation per epoch, and the final test."""
    num_epochs, (num_train, num_val, num_all) = config.train.epochs - num_done, _counts(store)
    num_steps = steps_per_epoch(config.train, num_train)
    return num_epochs * (num_steps * times.step + num_val * times.predict) + num_all * times.predict


@functools.lru_cache(maxsize=8)
def _counts(store: FeatureStore) -> tuple[int, int, int]:
    """Number of expressions for training, for validation, and for the final evaluation."""
    splits = Splits.of(store.attributes)
    train, val, every = (rows_of(store, names) for names in (splits.train, splits.validation, splits.evaluated))
    return len(train), len(val), len(every)


def alike(config: TrialConfig) -> tuple[object, ...]:
    """Key of trials whose steps cost the same."""
    train, loss = config.train, config.loss
    return (
        config.model.same_cost(), loss.num_points, loss.oversampling, loss.deep_supervision,
        train.batch_size, train.accumulate, train.expressions_per_clip, train.frames, train.precision, train.compile,
        train.ema_decay > 0, train.patience > 0, train.epochs > 0, train.eval_batch_size, config.resources,
    )


def _bytes(learner: Learner, store: FeatureStore) -> tuple[int, int]:
    """Sizes of a running trial's state and of its final files; call it after a step, which creates optimiser state."""
    tensors, _ = learner.state()
    model = sum(value.nbytes for value in tensors["model"].values())
    state = sum(value.nbytes for part in tensors.values() for value in part.values())
    num_frames = len(rows_of(store, Splits.of(store.attributes).evaluated)) * len(store.steps)
    best = model if learner.config.train.patience else 0
    return state + best, model + num_frames * STATISTICS_BYTES_PER_FRAME

"""What a trial costs before it runs: parameters, arithmetic, time by a few real steps on this machine, disk."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from experiments.training.evaluate import predictions, rows_of
from experiments.training.flops import FlopCounter
from experiments.training.learner import Learner, computed_as
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler, steps_per_epoch
from refavs.config import replace
from refavs.data.batches import batch_rows, read_batches
from refavs.data.splits import Splits

if TYPE_CHECKING:
    from experiments.grid.config import TrialConfig
    from refavs.model.heads.protocol import PartSize
    from refavs.store import FeatureStore

# Measured on runs of the synthetic benchmark: 660 to 800 for each frame of an expression.
STATISTICS_BYTES_PER_FRAME = 750
GROWTH = 4  # of the number of expressions, from one try to the next


@dataclass(frozen=True, kw_only=True)
class Times:
    """What a trial takes, in seconds.

    Attributes:
        step: of training, reading included.
        read: the reading of a step, which trials in one process do once.
        predict: of one expression in evaluation.
        measured: whether steps of this model ran; else the time follows from its arithmetic and another model's time.
    """

    step: float
    read: float
    predict: float
    measured: bool = True

    @property
    def without_read(self) -> "Times":
        """What a trial adds to another one that reads the same batches in the same process."""
        return dataclasses.replace(self, step=self.step - self.read)

    def scaled(self, known: "Cost", wanted: "Cost") -> "Times":
        """The times of another model, whose time for a unit of arithmetic is taken to be the same."""
        step, forward = (wanted_flops / max(1, known_flops) for wanted_flops, known_flops in (
            (wanted.step_flops, known.step_flops), (wanted.forward_flops, known.forward_flops)))  # fmt: skip
        return Times(step=self.read + (self.step - self.read) * step, read=self.read,
                     predict=self.predict * (forward or 1.0), measured=False)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a trial costs, apart from time.

    Attributes:
        parts: parameters of each part of the model.
        forward_flops: of the model on one batch; a multiplication and an addition are two, other operations none.
        step_flops: the same with the backward pass.
        state_bytes: what lies on disk while a trial runs.
        kept_bytes: what stays of it: checkpoint and statistics.
    """

    parts: list["PartSize"]
    forward_flops: int
    step_flops: int
    state_bytes: int
    kept_bytes: int


class Measured(NamedTuple):
    """A model whose cost is known; `times` is None where it was not run."""

    cost: Cost
    times: Times | None


def measure(
    config: "TrialConfig", store: "FeatureStore", device: torch.device | None, weights_dir: Path | None = None,
    budget_s: float = math.inf, counter: FlopCounter | None = None,
) -> Measured:  # fmt: skip
    """Counts a training step, where there are epochs to train, and times steps and evaluation; writes nothing.

    Args:
        device: what to time on; None times nothing.
        budget_s: seconds of processor that timing may take. Where a whole batch takes longer, the time of a batch
            follows from that of some of its expressions; one is always tried.
        counter: of the arithmetic, which other models used before and whose operations it knows.
    """
    config = replace(config, {"train.compile": False})  # compiling takes longer than all that is measured
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
    """The arithmetic of a step: forward alone, and all."""
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
    learner: Learner, sampler: Sampler | None, store: "FeatureStore", device: torch.device, budget_s: float
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
    """What `run` returns for all, or for as many as the budget allows, scaled up.

    It runs twice with each number, for the first time pays for memory, buffers and kernels that a trial makes once.
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
    """Seconds of reading and of computing a step on these expressions, in parts as large as those of a whole batch."""
    train, started = learner.config.train, time.perf_counter()
    num_parts = math.ceil(len(rows) * train.accumulate / train.batch_size)
    parts = [[int(row) for row in part] for part in np.array_split(rows, min(num_parts, len(rows)))]
    (batches,) = read_batches(sampler.store, [parts], sampler.levels, device)
    read = time.perf_counter()
    learner.step(list(enumerate(batches)), 0, train.epochs * sampler.num_steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return read - started, time.perf_counter() - read


def seconds(times: Times, config: "TrialConfig", store: "FeatureStore", num_done: int = 0) -> float:
    """Time that is left of a trial of which `num_done` epochs are done: steps, a validation an epoch, the last test."""
    num_epochs, (num_train, num_val, num_all) = config.train.epochs - num_done, _counts(store)
    num_steps = steps_per_epoch(config.train, num_train)
    return num_epochs * (num_steps * times.step + num_val * times.predict) + num_all * times.predict


@functools.lru_cache(maxsize=8)
def _counts(store: "FeatureStore") -> tuple[int, int, int]:
    """Expressions to train on, to validate on, and to evaluate in the end."""
    splits = Splits.of(store.attributes)
    train, val, every = (rows_of(store, names) for names in (splits.train, splits.validation, splits.evaluated))
    return len(train), len(val), len(every)


def alike(config: "TrialConfig") -> tuple[object, ...]:
    """What trials have in common whose steps cost the same."""
    train, loss = config.train, config.loss
    return (
        config.model.same_cost(), loss.num_points, loss.oversampling, loss.deep_supervision,
        train.batch_size, train.accumulate, train.expressions_per_clip, train.frames, train.precision, train.compile,
        train.ema_decay > 0, train.patience > 0, train.epochs > 0, train.eval_batch_size, config.resources,
    )


def _bytes(learner: Learner, store: "FeatureStore") -> tuple[int, int]:
    """Sizes of a running trial's state and of what stays; call it after a step, when the optimiser has its moments."""
    tensors, _ = learner.state()
    model = sum(value.nbytes for value in tensors["model"].values())
    state = sum(value.nbytes for part in tensors.values() for value in part.values())
    num_frames = len(rows_of(store, Splits.of(store.attributes).evaluated)) * store.seconds
    best = model if learner.config.train.patience else 0
    return state + best, model + num_frames * STATISTICS_BYTES_PER_FRAME

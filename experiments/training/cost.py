"""What a trial costs before it runs: parameters, arithmetic, time by a few real steps on this machine, disk."""

import contextlib
import dataclasses
import functools
import heapq
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich import box
from rich.table import Table

from experiments.cluster.grouping import groups_on
from experiments.cluster.resources import Ask, Resources, fit_together
from experiments.sweep.ledger import Entry, read_metrics
from experiments.sweep.stores import store_of
from experiments.training.evaluate import predictions, rows_of
from experiments.training.flops import FlopCounter
from experiments.training.learner import Learner, computed_as
from experiments.training.loop import build_model
from experiments.training.sampler import Sampler, steps_per_epoch
from refavs.config import replace
from refavs.data.batches import batch_rows, read_batches
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.machine.processors import num_processors
from refavs.terminal.console import PlainConsole, ProgressBar

if TYPE_CHECKING:
    from experiments.grid.config import TrialConfig, TrialResources
    from refavs.model.decoder import EEMCOutput
    from refavs.model.heads.eemc import PartSize
    from refavs.store import FeatureStore

# Measured on runs of the synthetic benchmark: 660 to 800 for each frame of an expression.
STATISTICS_BYTES_PER_FRAME = 750
GIGA = 10**9
BUDGET_S = 3.0  # of processor, for all that is measured
GROWTH = 4  # of the number of expressions, from one try to the next
NO_GPU = "trials ask for a GPU, and torch sees none on this machine"
TO_DO = ("new", "running", "stopped")


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

    def counted(*inputs: object) -> "EEMCOutput":
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
        dataclasses.replace(config.model, beta=1.0), loss.num_points, loss.oversampling, loss.deep_supervision,
        train.batch_size, train.accumulate, train.expressions_per_clip, train.frames, train.precision, train.compile,
        train.ema_decay > 0, train.patience > 0, train.epochs > 0, train.eval_batch_size, config.resources,
    )


def show(console: PlainConsole, entries: Sequence[Entry], store: "FeatureStore", resources: Resources) -> None:
    """Prints the cost of each distinct model of a sweep and of all that is to do."""
    models: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        models.setdefault((alike(entry.trial.config), entry.trial.store), []).append(entry)
    measured, problem = _measured(list(models.values()), store, resources)
    table = Table(title="what a trial costs", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "part", "trained", "frozen", "forward", "step", "s/step", "a trial", "disk, then kept"):
        table.add_column(column, justify="left" if column in ("model", "part") else "right")
    left: dict[str, list[float]] = {}
    total_bytes, all_timed = 0, True
    for same, (cost, times) in zip(models.values(), measured, strict=True):
        config, own = same[0].trial.config, store_of(same[0].trial, store)
        timed = ("-", "-") if times is None else (
            f"{'' if times.measured else '~'}{times.step:.3g}", _duration(seconds(times, config, own)))  # fmt: skip
        numbers = (
            f"{cost.forward_flops / GIGA:.3g} GFLOP", f"{cost.step_flops / GIGA:.3g} GFLOP", *timed,
            f"{_size(cost.state_bytes)}, {_size(cost.kept_bytes)}",
        )
        for index, size in enumerate(cost.parts):
            table.add_row(
                _name(same) if index == 0 else "", size.part, f"{size.trained:,}", f"{size.frozen:,}",
                *(numbers if index == 0 else ()), end_section=index == len(cost.parts) - 1,
            )
        for entry in same:
            if entry.state in TO_DO:
                total_bytes += cost.kept_bytes
                all_timed = all_timed and times is not None
                if times is not None:
                    num_done = len(read_metrics(entry.folder))
                    left[entry.key] = [seconds(one, entry.trial.config, own, num_done)
                                       for one in (times, times.without_read)]  # fmt: skip
    console.print(table)
    console.print(
        "forward and step: products of matrices and convolutions on a batch; a multiplication and an addition are two"
    )
    told = _time_of_all(entries, left, store, resources) if all_timed else f"no time was measured: {problem}"
    scaled = any(times is not None and not times.measured for _, times in measured)
    approximate = "; ~: not run, estimated from the arithmetic" if scaled else ""
    console.print(f"what is to do: {_size(total_bytes)} on disk; {told}{approximate}")


def _measured(
    models: Sequence[Sequence[Entry]], store: "FeatureStore", resources: Resources
) -> tuple[list[Measured], str]:
    """The cost of each model, and why the time of some is not known.

    Models are timed until `BUDGET_S` is spent; the time of those that are left follows from their arithmetic.
    """
    found: list[Measured] = []
    known: dict[tuple[str, bool], Measured] = {}
    counter, left_s, problem = FlopCounter(), BUDGET_S, ""
    with ProgressBar("trying steps on this machine", len(models), "models") as bar:
        for number, same in enumerate(models):
            trial = same[0].trial
            ask, own = resources.ask(trial.config.resources), store_of(trial, store)
            device = _device(ask)
            problem = problem if device else NO_GPU
            similar = known.get((str(device), trial.config.train.epochs > 0)) if left_s <= 0 else None
            started_s = time.process_time()
            with _threads(max(1, int(ask.cpus))):
                try:
                    one = measure(trial.config, own, None if similar else device, trial.weights_dir,
                                  max(0.0, left_s) / (len(models) - number), counter)  # fmt: skip
                except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
                    problem = f"the GPU fails: {str(error).splitlines()[0]}"
                    one = measure(trial.config, own, None, trial.weights_dir, counter=counter)
            left_s -= time.process_time() - started_s
            if similar is not None and similar.times is not None:
                one = Measured(one.cost, similar.times.scaled(similar.cost, one.cost))
            elif one.times is not None:
                known[str(device), trial.config.train.epochs > 0] = one
            found.append(one)
            bar.advance()
    return found, problem


def _device(ask: Ask) -> torch.device | None:
    """What a trial computes on; None where that is a GPU and this machine has none."""
    if not ask.gpus:
        return torch.device("cpu")
    return torch.device("cuda") if torch.cuda.is_available() else None


def _time_of_all(
    entries: Sequence[Entry], left: Mapping[str, Sequence[float]], store: "FeatureStore", resources: Resources
) -> str:
    """How long what is to do takes on this machine, in words."""
    to_do = [entry for entry in entries if entry.key in left]
    groups = groups_on(store, to_do, resources, functools.partial(_places, resources))
    asked = [
        (resources.ask(group[0].trial.config.resources), left[group[0].key][0] + sum(left[e.key][1] for e in group[1:]))
        for group in groups
    ]  # fmt: skip
    total_s, at_once = side_by_side(asked, _this_machine(), resources.max_concurrent)
    together = f", up to {max(map(len, groups))} trials over one read" if resources.fuse != 1 and groups else ""
    return (f"about {_duration(total_s)} on this machine, {at_once} at once{together}, by a few steps and predictions "
            "of each model")  # fmt: skip


def side_by_side(
    trials: Sequence[tuple[Ask, float]], nodes: Sequence[Mapping[str, float]], max_concurrent: int | None
) -> tuple[float, int]:
    """How long trials take that start in their order as room comes free, and how many then run at once at most.

    Args:
        trials: what each takes, and its seconds.
        nodes: for each node, its amounts by Ray's names.
    """
    now, most = 0.0, 0
    running: list[tuple[float, int, Ask]] = []
    for number, (ask, seconds) in enumerate(trials):
        while running and (
            len(running) == max_concurrent or not fit_together([ask, *(taken for *_, taken in running)], nodes)
        ):
            now = heapq.heappop(running)[0]
        heapq.heappush(running, (now + seconds, number, ask))
        most = max(most, len(running))
    return max((end for end, *_ in running), default=now), most


def _places(resources: Resources, asked: "TrialResources") -> int:
    """Trials at once on this machine; one that asks for more than there is would run on another one."""
    try:
        return resources.of(asked).places(_this_machine(), asked.workers)
    except ConfigError:
        return 1


def _this_machine() -> list[dict[str, float]]:
    return [{"CPU": float(num_processors()), "GPU": float(torch.cuda.device_count())}]


def _bytes(learner: Learner, store: "FeatureStore") -> tuple[int, int]:
    """Sizes of a running trial's state and of what stays; call it after a step, when the optimiser has its moments."""
    tensors, _ = learner.state()
    model = sum(value.nbytes for value in tensors["model"].values())
    state = sum(value.nbytes for part in tensors.values() for value in part.values())
    num_frames = len(rows_of(store, Splits.of(store.attributes).evaluated)) * store.num_frames
    best = model if learner.config.train.patience else 0
    return state + best, model + num_frames * STATISTICS_BYTES_PER_FRAME


def _name(entries: Sequence[Entry]) -> str:
    names = list(dict.fromkeys(entry.trial.name for entry in entries))
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.3g} MB" if num_bytes < GIGA else f"{num_bytes / GIGA:.3g} GB"

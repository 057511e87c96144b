"""What a trial costs before it runs: parameters, arithmetic, time by a few real steps on this machine, disk."""

import contextlib
import dataclasses
import functools
import heapq
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from experiments.evaluate import TEST_SPLITS, predictions, rows_of
from experiments.fuse import groups_on
from experiments.learner import Learner
from experiments.ledger import Entry, read_metrics
from experiments.resources import Ask, Resources, fit_together
from experiments.sampler import Sampler, steps_per_epoch
from experiments.stores import store_of
from experiments.train import build_model, computed_as
from refavs.console import ProgressBar
from refavs.errors import ConfigError
from refavs.processors import num_processors

if TYPE_CHECKING:
    from experiments.config import TrialConfig, TrialResources
    from refavs.data.dataset import Batch
    from refavs.model.decoder import EEMCOutput
    from refavs.model.eemc import EEMC, PartSize
    from refavs.store import FeatureStore

# Measured on runs of the synthetic benchmark: 660 to 800 for each frame of an expression.
STATISTICS_BYTES_PER_FRAME = 750
GIGA = 10**9
TIMED_STEPS = 2
TO_DO = ("new", "running", "stopped")
_COUNTED_AS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a trial costs.

    Attributes:
        parts: parameters of each part of the model.
        forward_flops: of the model on one batch; a multiplication and an addition are two, other operations none.
        step_flops: the same with the backward pass.
        step_s: time of a training step, reading included.
        read_s: of this the reading, which trials in one process do once.
        eval_s: time of predicting one expression.
        state_bytes: what lies on disk while a trial runs.
        kept_bytes: what stays of it: checkpoint and statistics.
    """

    parts: list["PartSize"]
    forward_flops: int
    step_flops: int
    step_s: float
    read_s: float
    eval_s: float
    state_bytes: int
    kept_bytes: int

    @property
    def without_read(self) -> "Cost":
        """What a trial adds to another one that reads the same batches in the same process."""
        return dataclasses.replace(self, step_s=self.step_s - self.read_s)


def measure(
    config: "TrialConfig", store: "FeatureStore", device: torch.device, weights_dir: Path | None = None
) -> Cost:
    """Runs a few training steps, where there are epochs to train, and batches of evaluation; writes nothing.

    What is timed has run before, on the same clips: else the first model would be charged with what a trial meets only
    at its start, as pages that are not in memory yet, buffers and kernels that are made at their first use.
    """
    config = computed_as(config, None, device)
    learner = Learner(config, build_model(config, store, weights_dir).to(device))
    sampler = Sampler(config, store, device)
    forwards: list[int] = []
    step_flops, read_s, compute_s = 0, 0.0, 0.0
    if config.train.epochs:
        learner.model.train()
        learner.forward, plain = _counted(learner.model, forwards), learner.forward
        with _Flops() as whole:
            learner.step(next(_steps(sampler)), 0, config.train.epochs * sampler.num_steps)
        step_flops, learner.forward = whole.total, plain
        _time_steps(learner, sampler, device)
        read_s, compute_s = _time_steps(learner, sampler, device)
    rows = rows_of(store, ("val", *TEST_SPLITS)) or rows_of(store, ("train",))
    rows = rows[: config.train.eval_batch_size]
    started = 0.0
    for _ in ("to warm up", "to time"):
        started = time.perf_counter()
        for _, probs in predictions(config.train, learner.average, store, rows, device):
            probs.cpu()
    eval_s = (time.perf_counter() - started) / len(rows)
    state, kept = _bytes(learner, store)
    return Cost(
        parts=learner.model.part_sizes(), forward_flops=sum(forwards), step_flops=step_flops,
        step_s=read_s + compute_s, read_s=read_s, eval_s=eval_s, state_bytes=state, kept_bytes=kept,
    )


def _steps(sampler: Sampler) -> "Iterator[list[tuple[int, Batch]]]":
    return itertools.chain.from_iterable(sampler.batches(epoch) for epoch in itertools.count())


def _time_steps(learner: Learner, sampler: Sampler, device: torch.device) -> tuple[float, float]:
    """Seconds of reading and of computing a step, of the first ones of a trial."""
    steps, read_s, compute_s = _steps(sampler), [], []
    next(steps)  # with it comes the order of the whole epoch
    for index in range(TIMED_STEPS):
        started = time.perf_counter()
        parts = next(steps)
        read_s.append(time.perf_counter() - started)
        learner.step(parts, index, learner.config.train.epochs * sampler.num_steps)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        compute_s.append(time.perf_counter() - started - read_s[-1])
    return statistics.median(read_s), statistics.median(compute_s)


def seconds(cost: Cost, config: "TrialConfig", store: "FeatureStore", num_done: int = 0) -> float:
    """Time that is left of a trial of which `num_done` epochs are done: steps, a validation an epoch, the last test."""
    num_epochs, (num_train, num_val, num_all) = config.train.epochs - num_done, _counts(store)
    num_steps = steps_per_epoch(config.train, num_train)
    return num_epochs * (num_steps * cost.step_s + num_val * cost.eval_s) + num_all * cost.eval_s


@functools.lru_cache(maxsize=8)
def _counts(store: "FeatureStore") -> tuple[int, int, int]:
    """Expressions to train on, to validate on, and to evaluate in the end."""
    train, val, every = (rows_of(store, splits) for splits in (("train",), ("val",), ("val", *TEST_SPLITS)))
    return len(train), len(val), len(every)


def alike(config: "TrialConfig") -> tuple[object, ...]:
    """What trials have in common whose steps cost the same."""
    train, loss = config.train, config.loss
    return (
        dataclasses.replace(config.model, beta=1.0), loss.num_points, loss.oversampling, loss.deep_supervision,
        train.batch_size, train.accumulate, train.expressions_per_clip, train.frames, train.precision, train.compile,
        train.ema_decay > 0, train.patience > 0, train.epochs > 0, train.eval_batch_size, config.resources,
    )


def show(console: Console, entries: Sequence[Entry], store: "FeatureStore", resources: Resources) -> None:
    """Prints the cost of each distinct model of a sweep and of all that is to do."""
    models: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        models.setdefault((alike(entry.trial.config), entry.trial.store), []).append(entry)
    table = Table(title="what a trial costs", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("model", "part", "trained", "frozen", "forward", "step", "s/step", "a trial", "disk, then kept"):
        table.add_column(column, justify="left" if column in ("model", "part") else "right")
    measured, left, total_bytes = [], {}, 0.0
    with ProgressBar("trying steps on this machine", len(models), "models") as bar:
        for same in models.values():
            trial = same[0].trial
            with _threads(max(1, int(resources.ask(trial.config.resources).cpus))):
                measured.append(measure(trial.config, store_of(trial, store), torch.device("cpu"), trial.weights_dir))
            bar.advance()
    for same, cost in zip(models.values(), measured, strict=True):
        config, own = same[0].trial.config, store_of(same[0].trial, store)
        numbers = (
            f"{cost.forward_flops / GIGA:.3g} GFLOP", f"{cost.step_flops / GIGA:.3g} GFLOP", f"{cost.step_s:.3g}",
            _duration(seconds(cost, config, own)), f"{_size(cost.state_bytes)}, {_size(cost.kept_bytes)}",
        )
        for index, size in enumerate(cost.parts):
            table.add_row(
                _name(same) if index == 0 else "", size.part, f"{size.trained:,}", f"{size.frozen:,}",
                *(numbers if index == 0 else ()), end_section=index == len(cost.parts) - 1,
            )
        for entry in same:
            if entry.state in TO_DO:
                num_done = len(read_metrics(entry.folder))
                left[entry.key] = [seconds(one, entry.trial.config, own, num_done) for one in (cost, cost.without_read)]
                total_bytes += cost.kept_bytes
    to_do = [entry for entry in entries if entry.key in left]
    groups = groups_on(store, to_do, resources, functools.partial(_places, resources))
    asked = [
        (resources.ask(group[0].trial.config.resources), left[group[0].key][0] + sum(left[e.key][1] for e in group[1:]))
        for group in groups
    ]  # fmt: skip
    total_s, at_once = side_by_side(asked, _this_machine(), resources.max_concurrent)
    together = f", up to {max(map(len, groups))} trials over one read" if resources.fuse != 1 and groups else ""
    console.print(table)
    console.print(
        f"forward and step: products of matrices and convolutions on a batch as torch counts them, a multiplication "
        f"and an addition being two. Estimated from {TIMED_STEPS} steps and a batch of evaluation of each model on "
        f"this machine: {_duration(total_s)} and {_size(total_bytes)} for what is to do, {at_once} at once{together}"
    )


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


class _Flops(TorchDispatchMode):
    """Counts arithmetic with torch's own formulas.

    torch's FlopCounterMode fails on parameters given to a module, and takes the fused attention of a CPU for nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        formula = flop_registry.get(_COUNTED_AS.get(packet, packet))
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=found)
        return found


def _counted(model: "EEMC", found: list[int]) -> Callable[..., "EEMCOutput"]:
    """The model's forward pass, of which each call adds its arithmetic to `found`."""

    def forward(*inputs: object) -> "EEMCOutput":
        with _Flops() as counter:
            output = model(*inputs)
        found.append(counter.total)
        return output

    return forward


def _bytes(learner: Learner, store: "FeatureStore") -> tuple[int, int]:
    """Sizes of a running trial's state and of what stays; call it after a step, when the optimiser has its moments."""
    tensors, _ = learner.state()
    model = sum(value.nbytes for value in tensors["model"].values())
    state = sum(value.nbytes for part in tensors.values() for value in part.values())
    num_frames = len(rows_of(store, ("val", *TEST_SPLITS))) * store.num_frames
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

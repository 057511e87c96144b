"""What the trials of a sweep cost, as `refavs-sweep --dry-run` shows it: a table of the models, and the time of all."""

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from rich import box
from rich.table import Table

from experiments.cluster.grouping import groups_on
from experiments.cluster.resources import Ask, Resources
from experiments.grid.config import TrialResources
from experiments.records.ledger import Entry, read_metrics
from experiments.records.stores import store_of
from experiments.training.cost import Measured, alike, measure, seconds
from experiments.training.flops import FlopCounter
from refavs.errors import ConfigError
from refavs.machine.processors import num_processors
from refavs.store import FeatureStore
from refavs.terminal.console import PlainConsole, ProgressBar

GIGA = 10**9
BUDGET_S = 3.0  # of processor, for all that is measured
NO_GPU = "trials ask for a GPU, and torch sees none on this machine"
TO_DO = ("new", "running", "stopped")


def show(console: PlainConsole, entries: Sequence[Entry], store: FeatureStore, resources: Resources) -> None:
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
    models: Sequence[Sequence[Entry]], store: FeatureStore, resources: Resources
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
    entries: Sequence[Entry], left: Mapping[str, Sequence[float]], store: FeatureStore, resources: Resources
) -> str:
    """How long what is to do takes on this machine, in words."""
    to_do = [entry for entry in entries if entry.key in left]
    groups = groups_on(store, to_do, resources, functools.partial(_places, resources))
    places = [_places(resources, group[0].trial.config.resources) for group in groups]
    taken_s = [left[group[0].key][0] + sum(left[entry.key][1] for entry in group[1:]) for group in groups]
    total_s, at_once = side_by_side(list(zip(places, taken_s, strict=True)))
    together = f", up to {max(map(len, groups))} trials over one read" if resources.fuse != 1 and groups else ""
    return (f"about {_duration(total_s)} on this machine, {at_once} at once{together}, by a few steps and predictions "
            "of each model")  # fmt: skip


def side_by_side(processes: Sequence[tuple[int, float]]) -> tuple[float, int]:
    """How long processes take together, and how many run at once at most.

    Args:
        processes: of each, how many like it run at once, and its seconds.
    """
    of_place = sum(taken_s / places for places, taken_s in processes)
    at_once = min(len(processes), max((places for places, _ in processes), default=0))
    return max([of_place, *(taken_s for _, taken_s in processes)]), at_once


def _places(resources: Resources, asked: TrialResources) -> int:
    """Trials at once on this machine; one that asks for more than there is would run on another one."""
    try:
        return resources.of(asked).places(_this_machine(), asked.workers)
    except ConfigError:
        return 1


def _this_machine() -> list[dict[str, float]]:
    return [{"CPU": float(num_processors()), "GPU": float(torch.cuda.device_count())}]


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

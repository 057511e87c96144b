"""Computes the scores of constant predictions and of text alone on a store's test splits, in several processes."""

import functools
import math
import multiprocessing
import operator
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from experiments.training.evaluate import rows_of
from refavs.data.splits import Splits
from refavs.errors import RefAVSError
from refavs.metrics import Results
from refavs.metrics.constant_baselines import (
    Constants,
    MaskSum,
    best_of,
    centredness,
    control_results,
    text_only,
)
from refavs.metrics.constant_counts import Levels, threshold_jaccard
from refavs.metrics.frame_counts import describe
from refavs.metrics.reference import joined, spread
from refavs.metrics.text_baseline import TEXT_ONLY, TextControl
from refavs.store import FeatureStore
from refavs.store.format.mask_rows import LABELLED, mask_shape, scaled

TRAINING_S_PER_PIXEL, TEST_S_PER_PIXEL = 3e-9, 25e-9  # on one core, measured at 10 x 384 x 384
WORTH_A_PROCESS_S = 5.0  # a process takes two or three seconds to start
MOST_PROCESSES = 8  # each has an interpreter and torch in memory
NICENESS = 10  # trials on the same processors come first
TRAINING_AT_ONCE, TEST_AT_ONCE = 64, 16

Part = TypeVar("Part")
Found = TypeVar("Found")
# Runs a function on the store for each part, in any process; yields results in the order of the parts.
Spread = Callable[[Callable[[FeatureStore, Part], Found], Iterable[Part]], Iterator[Found]]


class StoppedError(Exception):
    """The computation was asked to stop."""


@dataclass(kw_only=True)
class Computation:
    """Progress of a computation, for another thread that may stop it."""

    done: int = 0
    total: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def advance(self, count: int) -> None:
        """Adds `count` finished masks.

        Raises:
            StoppedError: a stop was requested.
        """
        self.done += count
        if self.stop.is_set():
            raise StoppedError


class Wanted(NamedTuple):
    """A mask, how many expressions it has, and the steps in which it is known."""

    row: int
    num_expressions: int
    labelled: Bool[np.ndarray, " t"]


class TrainingResults(NamedTuple):
    """Results from some training masks: their sum, which are empty, and J of the centred disc."""

    total: MaskSum
    empty: list[bool]
    jaccard: Float[np.ndarray, "n k"]


class Fitted(NamedTuple):
    """`Constants` in a form for other processes: torch would share a tensor's memory instead of sending it."""

    mean: Float[np.ndarray, "h w"]
    mean_threshold: float
    centre_threshold: float


def control_results_of(
    store: FeatureStore, progress: Computation | None = None, num_processes: int | None = None
) -> dict[str, Results]:
    """Scores of constant predictions and the text-only control on the test splits; empty without a training split.

    Each distinct mask is scored once. The result does not depend on the number of processes.

    Args:
        num_processes: 0 computes in this thread; by default as many as save time.

    Raises:
        StoppedError: `progress` requested a stop.
    """
    progress, splits = progress or Computation(), Splits.of(store.attributes)
    training, tested = (_wanted(store, names) for names in (splits.train, splits.tested))
    if not training or not tested:
        return {}
    progress.total = 2 * len(training) + len(tested)
    processes = worth(store, len(training), len(tested)) if num_processes is None else num_processes
    with _spread(store, processes) as work:
        fitted, empty = _fitted(store, training, work, progress)
        of_tests = functools.partial(_of_tests, fitted=fitted)
        blocks = list(_counted(work, of_tests, _parts(tested, TEST_AT_ONCE), progress))
    of_objects = {name: joined([block[name] for block in blocks]) for name in blocks[0]}
    place = {each.row: number for number, each in enumerate(tested)}
    table = store.expressions
    rows = [row for row in sorted(rows_of(store, splits.tested)) if table["object"].iloc[row] in place]
    places = np.array([place[index] for index in table["object"].iloc[rows]])
    expressions = describe(table, rows)
    found = {name: spread(results, places, expressions) for name, results in of_objects.items()}
    learned = table.iloc[rows_of(store, splits.train)]
    learned = learned[learned["object"].isin(empty)]
    control = TextControl.fit(learned["text"].tolist(), [empty[index] for index in learned["object"]])
    return {**found, TEXT_ONLY: text_only(control, found)}


def _wanted(store: FeatureStore, splits: Sequence[str]) -> list[Wanted]:
    """The masks of some splits; those that are known in no step are left out."""
    table = store.expressions.iloc[rows_of(store, splits)]
    objects = Counter(zip(table["object"].tolist(), table["clip"].tolist(), strict=True))
    found = [Wanted(row, count, (store.read(LABELLED, row) & store.within([clip])[0]).numpy())
             for (row, clip), count in objects.items()]  # fmt: skip
    return [each for each in found if each.labelled.any()]


def worth(store: FeatureStore, num_training: int, num_tested: int) -> int:
    """The number of processes that saves time; 0 if this thread would finish soon."""
    pixels = len(store.steps) * math.prod(mask_shape(store.mask_size))
    seconds = pixels * (num_training * TRAINING_S_PER_PIXEL + num_tested * TEST_S_PER_PIXEL)
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES, int(seconds / WORTH_A_PROCESS_S))


def _fitted(
    store: FeatureStore, training: Sequence[Wanted], work: Spread, progress: Computation
) -> tuple[Fitted, dict[int, bool]]:
    """Fits the constants to the training masks; also returns which masks are empty."""
    parts, counts = _parts(training, TRAINING_AT_ONCE), [each.num_expressions for each in training]
    centre = Levels(centredness(*mask_shape(store.mask_size)))
    first = list(_counted(work, functools.partial(_of_training, centre=centre), parts, progress))
    mean = functools.reduce(operator.add, (part.total for part in first)).mean()
    second = _counted(work, functools.partial(_of_mean, mean=Levels(mean)), parts, progress)
    fitted = Fitted(
        mean=mean.numpy(), mean_threshold=_best(second, counts),
        centre_threshold=_best((part.jaccard for part in first), counts),
    )  # fmt: skip
    empty = (empty for part in first for empty in part.empty)
    return fitted, dict(zip((each.row for each in training), empty, strict=True))


def _best(jaccard: Iterable[Float[np.ndarray, "n k"]], counts: Iterable[int]) -> float:
    return best_of((torch.from_numpy(line) for part in jaccard for line in part), counts)


def _of_training(store: FeatureStore, part: Sequence[Wanted], centre: Levels) -> TrainingResults:
    masks = [_known(store, each) for each in part]
    sums = (MaskSum.of(mask, each.num_expressions) for mask, each in zip(masks, part, strict=True))
    jaccard = np.stack([threshold_jaccard(centre, mask).numpy() for mask in masks])
    return TrainingResults(functools.reduce(operator.add, sums), [not bool(mask.any()) for mask in masks], jaccard)


def _of_mean(store: FeatureStore, part: Sequence[Wanted], mean: Levels) -> Float[np.ndarray, "n k"]:
    return np.stack([threshold_jaccard(mean, _known(store, each)).numpy() for each in part])


def _of_tests(store: FeatureStore, part: Sequence[Wanted], fitted: Fitted) -> dict[str, Results]:
    constants = Constants(
        mean=torch.from_numpy(fitted.mean), mean_threshold=fitted.mean_threshold,
        centre_threshold=fitted.centre_threshold,
    )  # fmt: skip
    labelled = np.stack([each.labelled for each in part])
    return control_results(constants, (_mask(store, each) for each in part), store.fingerprint, labelled)


def _mask(store: FeatureStore, wanted: Wanted) -> Bool[Tensor, "t h w"]:
    mask = store.mask(wanted.row)
    assert mask is not None  # `rows_of` gives only expressions that have one
    return scaled(mask, mask_shape(store.mask_size))


def _known(store: FeatureStore, wanted: Wanted) -> Bool[Tensor, "labelled h w"]:
    return _mask(store, wanted)[torch.from_numpy(wanted.labelled)]


def _parts(items: Sequence[Part], size: int) -> list[Sequence[Part]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _counted(
    work: Spread, each: Callable[[FeatureStore, Any], Found], parts: Sequence[Sequence[Any]], progress: Computation
) -> Iterator[Found]:
    """Yields the results in order and counts the finished masks."""
    for part, found in zip(parts, work(each, parts), strict=True):
        progress.advance(len(part))
        yield found


@contextmanager
def _spread(store: FeatureStore, num_processes: int) -> Iterator[Spread]:
    """Runs work in separate processes, or in this thread if `num_processes` is 0."""
    if not num_processes:
        yield lambda work, parts: (work(store, part) for part in parts)
        return
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), initializer=_begin)
    place = store.location, store.verify

    def run(work: Callable[[FeatureStore, Any], Found], parts: Iterable[Any]) -> Iterator[Found]:
        futures = [pool.submit(_in_worker, place, work, part) for part in parts]
        return (future.result() for future in futures)

    try:
        yield run
    except BrokenProcessPool as error:
        raise RefAVSError(
            "a process that computes the constant predictions was killed (possibly out of memory); run the same "
            "command again, which recomputes them"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Initialises a worker process: one thread, lower priority than the trials, and an end with its parent."""
    torch.set_num_threads(1)
    os.nice(NICENESS)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_worker(place: tuple[str, str], work: Callable[[FeatureStore, Any], Found], part: Any) -> Found:
    return work(_opened(*place), part)


@functools.lru_cache(maxsize=1)
def _opened(location: str, verify: str) -> FeatureStore:
    return FeatureStore(location, verify=verify)

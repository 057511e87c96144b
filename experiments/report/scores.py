"""Scores of each run on each part of the test splits, from one pass over its statistics.

Only the numbers for tables and figures are kept in memory, not the histograms.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from experiments.report.runs import SavedRun
from refavs.data.splits import Splits
from refavs.errors import StatisticsError
from refavs.machine.processors import num_processors
from refavs.metrics import (
    PROTOCOLS,
    Results,
    Statistics,
    expression_results,
    histograms_of,
    metrics,
    read_facts,
    statistics_blocks,
)
from refavs.metrics.frame_counts import LABELLED, PEAK
from refavs.metrics.groups import PARTS, Values, report_groups, values_of
from refavs.terminal.console import ProgressBar

NUM_BINS = 10
_SAME = ("version", "height", "width", "num_frames", "store")
_COMPARED = ("row", "clip_id", "split")  # the columns of expressions needed to compare two runs
_MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Frames in `NUM_BINS` equal bins by the largest probability of any pixel.

    Attributes:
        num_frames, num_object: number of frames, and of those with an object.
        sum_prob: sum of the largest probabilities.
    """

    num_frames: Int[np.ndarray, " n"]
    num_object: Int[np.ndarray, " n"]
    sum_prob: Float[np.ndarray, " n"]

    def __add__(self, other: "Peaks") -> "Peaks":
        return Peaks(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Expressions and their groups, shared by the runs on one store.

    Attributes:
        compared: the columns needed to compare two runs.
    """

    table: pd.DataFrame
    splits: Splits
    compared: pd.DataFrame
    groups: dict[str, Int[np.ndarray, " m"]]


@dataclass(kw_only=True)
class KnownParts:
    """Thread-safe cache of parts, so that each table of expressions is stored and grouped once."""

    found: list[Parts] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def of(self, expressions: pd.DataFrame, splits: Splits) -> Parts:
        """The parts of these expressions, new or cached."""
        table = expressions.loc[:, [*_COMPARED, *PARTS]]
        with self.lock:
            for parts in self.found:
                if parts.table.equals(table) and parts.splits == splits:
                    return parts
            parts = Parts(
                table=table, splits=splits, compared=table.loc[:, list(_COMPARED)], groups=report_groups(table, splits)
            )
            self.found.append(parts)
            return parts


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """The scores of one run.

    Attributes:
        facts: facts of the statistics: size and number of frames, fingerprint of the store.
        values: results of `values_of`, by protocol.
        counts: number of expressions in each group.
        results: scores of each expression that can be compared with another run's, e.g. `canonical/J`.
    """

    run: SavedRun
    facts: dict[str, object]
    values: dict[str, Values]
    counts: dict[str, int]
    results: Results
    peaks: Peaks

    def measures(self, protocol: str) -> set[str]:
        """The measures known for a protocol."""
        return {name for scores in self.values.get(protocol, {}).values() for name in scores}


def read_scores(runs: Sequence[SavedRun], protocols: Sequence[str]) -> list[RunScores]:
    """Reads the statistics of all runs, several at once, with a progress bar; the order of `runs` does not matter.

    Raises:
        StatisticsError: a run's statistics are missing, damaged, from another store than its settings say, or have no
            expression of a test split.
    """
    num_threads = min(num_processors(), _MAX_THREADS, len(runs))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # reading runs in parallel is faster than each on all processors
    found: list[RunScores] = []
    try:
        with ProgressBar("report", len(runs), "runs") as bar, ThreadPoolExecutor(num_threads) as pool:
            known = KnownParts()
            futures = [pool.submit(scores_of_run, run, protocols, known) for run in runs]
            try:
                for run, future in zip(runs, futures, strict=True):
                    found.append(future.result())
                    bar.advance(1, run.title)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(before)
    return found


def scores_of_run(run: SavedRun, protocols: Sequence[str], known: KnownParts) -> RunScores:
    """Reads the statistics of one run, block by block.

    Raises:
        StatisticsError: as `read_scores`.
    """
    facts = read_facts(run.statistics)
    if facts["store"] != run.store:
        raise StatisticsError(f"{run.statistics} is from the store {facts['store']}, the run from {run.store}; remove "
                              f"{run.folder} and run the sweep's refavs-sweep command again")
    peaks: list[Peaks] = []
    results = expression_results(_tested(run, histograms_of(protocols), peaks), protocols)
    parts = known.of(results.expressions, run.splits)
    groups = parts.groups
    paired = [protocol for protocol in protocols if not PROTOCOLS[protocol].of_batches]
    kept = {f"{protocol}/{name}" for protocol in paired for name in metrics()} & results.values.keys()
    return RunScores(
        run=run, facts={name: facts[name] for name in _SAME}, counts={name: len(rows) for name, rows in groups.items()},
        values={protocol: values_of(results, protocol, groups, run.splits) for protocol in protocols},
        results=Results(
            expressions=parts.compared, curves={}, facts=facts,
            values={name: results.values[name] for name in sorted(kept)},
        ),
        peaks=sum(peaks[1:], start=peaks[0]),
    )  # fmt: skip


def _tested(run: SavedRun, histograms: Sequence[str], peaks: list[Peaks]) -> Iterator[Statistics]:
    """Yields the parts of a run's statistics from test splits; appends their per-frame peaks to `peaks`."""
    splits = run.splits.tested
    for block in statistics_blocks(run.statistics, histograms, splits):
        tested = block.expressions["split"].isin(splits).to_numpy()
        block = block if tested.all() else block.select(tested)
        peaks.append(_peaks(block))
        yield block
    if not peaks:
        found = {split for block in statistics_blocks(run.statistics, ()) for split in block.expressions["split"]}
        raise StatisticsError(f"{run.statistics} has no expression of {', '.join(splits)} (it has "
                              f"{', '.join(sorted(found)) or 'none at all'}); a report needs a store with a test split")


def _peaks(block: Statistics) -> Peaks:
    if PEAK not in block.frames:
        nothing = np.zeros(NUM_BINS, np.int64)
        return Peaks(num_frames=nothing, num_object=nothing, sum_prob=nothing.astype(float))
    chosen = block.frames.get(LABELLED, ...)
    prob = block.frames[PEAK][chosen].astype(float).reshape(-1)
    present = block.frames["target"][chosen].reshape(-1) > 0
    places = np.minimum((prob * NUM_BINS).astype(int), NUM_BINS - 1)
    count = [np.bincount(places[which], minlength=NUM_BINS) for which in (slice(None), present)]
    return Peaks(num_frames=count[0], num_object=count[1], sum_prob=np.bincount(places, prob, minlength=NUM_BINS))

"""What each run reached on each part of the test splits, from one pass over its statistics.

Only the numbers that tables and figures need are kept, so that the memory of a report does not grow with histograms.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from experiments.report.runs import Run
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
_COMPARED = ("row", "clip_id", "split")  # of each expression, what comparing two runs needs
_MAX_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Frames in `NUM_BINS` even bins of the largest probability that a pixel has.

    Attributes:
        num_frames, num_object: all frames, and those with an object.
        sum_prob: of the largest probabilities.
    """

    num_frames: Int[np.ndarray, " n"]
    num_object: Int[np.ndarray, " n"]
    sum_prob: Float[np.ndarray, " n"]

    def __add__(self, other: "Peaks") -> "Peaks":
        return Peaks(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Expressions and the groups they are in, which runs on one store share.

    Attributes:
        compared: the columns that comparing two runs needs.
    """

    table: pd.DataFrame
    splits: Splits
    compared: pd.DataFrame
    groups: dict[str, Int[np.ndarray, " m"]]


@dataclass(kw_only=True)
class KnownParts:
    """The parts of the runs so far, so that each table of expressions is kept and grouped once; for several threads."""

    found: list[Parts] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def of(self, expressions: pd.DataFrame, splits: Splits) -> Parts:
        """Those of the same expressions, or new ones."""
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
        facts: of the statistics: size and number of frames, fingerprint of the store.
        values: by protocol, then as `values_of` gives them.
        counts: expressions of each group.
        results: the scores of each expression that can be compared with another run's, as `canonical/J`.
    """

    run: Run
    facts: dict[str, object]
    values: dict[str, Values]
    counts: dict[str, int]
    results: Results
    peaks: Peaks

    def measures(self, protocol: str) -> set[str]:
        """What is known by a protocol."""
        return {name for scores in self.values.get(protocol, {}).values() for name in scores}


def read_scores(runs: Sequence[Run], protocols: Sequence[str]) -> list[RunScores]:
    """Reads the statistics of all runs, several at once, with a progress bar; the order of `runs` changes no number.

    Raises:
        StatisticsError: a run's statistics are missing, damaged, of another store than its settings say, or without
            any expression of a test split.
    """
    num_threads = min(num_processors(), _MAX_THREADS, len(runs))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # runs are read side by side, which is faster than each on all processors
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


def scores_of_run(run: Run, protocols: Sequence[str], known: KnownParts) -> RunScores:
    """Reads the statistics of one run, block by block.

    Raises:
        StatisticsError: as `read_scores`.
    """
    facts = read_facts(run.statistics)
    if facts["store"] != run.store:
        raise StatisticsError(f"{run.statistics} is of the store {facts['store']}, the run of {run.store}; remove "
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


def _tested(run: Run, histograms: Sequence[str], peaks: list[Peaks]) -> Iterator[Statistics]:
    """The parts of a run's statistics that are of test splits; adds to `peaks` what they say of single frames."""
    splits = run.splits.tested
    for block in statistics_blocks(run.statistics, histograms, splits):
        tested = block.expressions["split"].isin(splits).to_numpy()
        block = block if tested.all() else block.select(tested)
        peaks.append(_peaks(block))
        yield block
    if not peaks:
        found = {split for block in statistics_blocks(run.statistics, ()) for split in block.expressions["split"]}
        raise StatisticsError(f"{run.statistics} holds no expression of {', '.join(splits)} (it holds "
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

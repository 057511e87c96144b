"""How often the right object is segmented, and the most that the cached memory can add; a table for `make proof`.

Counted are the seconds of test_s in which the question is decided and its object in view; right is an IoU above 0.5.
The ceilings are those of observers that know one second, or all seconds until then, perfectly.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from machine import table

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.report.runs import saved_sweep
from refavs.metrics import Statistics
from refavs.metrics.intervals import seed_interval
from refavs.metrics.parquet import statistics_blocks
from tests.refavs.ceilings import SECONDS, accuracy, and_before, ask, now

DIMENSIONS = ("acoustic", "acoustic+temporal", "spatial+temporal")
SPLIT = "test_s"


def share_right(blocks: Iterable[Statistics]) -> dict[str, float]:
    """By dimension, the share of the counted seconds whose IoU is above 0.5."""
    right: dict[str, list[np.ndarray]] = defaultdict(list)
    for block in blocks:
        target, pred, hits = (
            block.frames[name][:, list(SECONDS)].astype(float) for name in ("target", "pred_50", "hits_50")
        )
        for dimension in DIMENSIONS:
            asked = ((block.expressions["split"] == SPLIT) & (block.expressions["dimension"] == dimension)).to_numpy()
            counted = asked[:, None] & (target > 0)
            right[dimension].append((2 * hits > target + pred - hits)[counted])
    return {dimension: float(np.concatenate(parts).mean()) for dimension, parts in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="the folder of a finished sweep on a synthetic benchmark")
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for run in saved_sweep(parser.parse_args().sweep).runs:
        found[run.name].append(share_right(statistics_blocks(run.statistics, histograms=(), splits=(SPLIT,))))
    rows = [[name, str(len(shares)), *(_cell([share[dimension] for share in shares]) for dimension in DIMENSIONS)]
            for name, shares in found.items()]  # fmt: skip
    questions = ask(num_clips=800)
    for name, look in (("ceiling of one second", now), ("ceiling of all until then", and_before)):
        rows.append([name, "", *(f"{100 * accuracy(questions, dimension, look):.1f}" for dimension in DIMENSIONS)])
    print(table(["right in %", "seeds", *DIMENSIONS], rows))


def _cell(shares: list[float]) -> str:
    interval = seed_interval([100 * share for share in shares])
    return f"{interval.mean:.1f}" + ("" if interval.high is None else f" ± {interval.high - interval.mean:.1f}")


if __name__ == "__main__":
    main()

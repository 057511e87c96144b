"""The table that a sweep ends with: trials best first, the constant predictions among them, and a break-down."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import stats

from experiments.sweep.ledger import Entry
from experiments.sweep.stores import store_of
from refavs.data.splits import Splits
from refavs.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a trial over its seeds, or a constant prediction (no seeds)."""

    name: str
    runs: tuple[dict[str, float], ...]
    constant: bool = False

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds that have the metric."""
        values = [run[metric] for run in self.runs if metric in run]
        return float(np.mean(values)) if values else None

    def interval(self, metric: str) -> float | None:
        """Half the 95 % t interval of the mean; None with fewer than two seeds."""
        values = [run[metric] for run in self.runs if metric in run]
        if len(values) < 2:
            return None
        return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def columns_of(splits: Splits) -> list[tuple[str, str]]:
    """Heading and metric of each column; only the first of a group names it."""
    objects = [(group, f"{group}/{name}") for group in splits.about_objects for name in "JF"]
    found = [(f"{group if metric.endswith('J') else ''}\n{metric[-1]}", metric) for group, metric in objects]
    found += [(f"{split}\nS", f"{split}/S") for split in splits.having("null-test")]
    return found + [("false\nempty", f"{split}/false_empty") for split in splits.test[:1]]


def ranked_by(splits: Splits) -> str:
    """The metric that decides which trial is best: J on the first test split."""
    return f"{(*splits.test, *splits.tested)[0]}/J" if splits.tested else ""


def rows_of(entries: Sequence[Entry], controls: dict[str, dict[str, float]], splits: Splits) -> list[Row]:
    """Finished trials, seeds taken together, and constants; best first."""
    runs: dict[str, list[dict[str, float]]] = {}
    for entry in entries:
        result = entry.result
        if entry.state == "finished" and result is not None:
            runs.setdefault(entry.trial.name, []).append(result["metrics"])
    rows = [Row(name=name, runs=tuple(values)) for name, values in runs.items()]
    rows += [Row(name=name, runs=(values,), constant=True) for name, values in controls.items()]

    def rank(row: Row) -> float:
        value = row.mean(ranked_by(splits))
        return -1.0 if value is None else value

    return sorted(rows, key=rank, reverse=True)


def main_table(rows: Sequence[Row], title: str, splits: Splits) -> Table:
    """J, F and the share of falsely empty frames in percent, S as it is; means over seeds with 95 % intervals."""
    table = Table(title=title, title_justify="left", caption=_caption(rows), caption_justify="left",
                  box=box.SIMPLE_HEAD)
    table.add_column("trial")
    columns = columns_of(splits)
    for name in ("seeds", *(name for name, _ in columns), "minutes"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        seconds = row.mean("seconds")
        cells = [cell(row, metric) for _, metric in columns]
        minutes = "" if seconds is None else f"{seconds / 60:.1f}"
        table.add_row(
            row.name, "" if row.constant else str(len(row.runs)), *cells, minutes, style="dim" if row.constant else ""
        )
    return table


def dimension_table(rows: Sequence[Row], splits: Splits) -> Table | None:
    """J on the first test split by the dimension of the expression; None where the store names fewer than two."""
    split = ranked_by(splits).partition("/")[0]
    names = sorted(
        {key.split("/")[1] for row in rows for run in row.runs for key in run if key.startswith(f"{split}/")
         and key.count("/") == 2}
    )
    if len(names) < 2:
        return None
    table = Table(title=f"J on {split} by dimension", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("trial")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [cell(row, f"{split}/{name}/J") for name in names]
        table.add_row(row.name, *cells, style="dim" if row.constant else "")
    return table


def csv_text(entries: Sequence[Entry], controls: dict[str, dict[str, float]], store: FeatureStore) -> str:
    """Every finished trial and constant with all its metrics, as fractions, one line each and seeds apart.

    Args:
        store: of trials that name none of their own; each line says whether an encoder of its features has random
            weights.
    """
    def features(trained_on: FeatureStore) -> dict[str, str]:
        return {"features": "random weights" if trained_on.random_weights else "pretrained"}

    lines = [
        {"trial": entry.trial.name, "seed": entry.trial.config.seed, "key": entry.key,
         **features(store_of(entry.trial, store)), **result["metrics"]}
        for entry in entries
        if (result := entry.result) is not None and entry.state == "finished"
    ]  # fmt: skip
    lines += [{"trial": name, "seed": "", "key": "", **features(store), **values} for name, values in controls.items()]
    return pd.DataFrame(lines).to_csv(index=False)


def cell(row: Row, metric: str) -> str:
    """A mean, with its interval where there are several seeds; a dash where there is nothing."""
    mean, interval = row.mean(metric), row.interval(metric)
    if mean is None:
        return "-"
    scale, digits = (1, 3) if metric.endswith("/S") else (100, 1)
    half = "" if interval is None else f" ± {scale * interval:.{digits}f}"
    return f"{scale * mean:.{digits}f}{half}"


def _caption(rows: Sequence[Row]) -> str:
    text = "J, F, false empty in percent; canonical protocol, per expression; dim rows are constant predictions"
    return f"{text}; ± 95 % t interval over seeds" if any(len(row.runs) > 1 for row in rows) else text

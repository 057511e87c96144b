"""The tables at the end of a sweep: trials and constant predictions, best first, and a breakdown by dimension."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.records.ledger import Entry
from experiments.report.cells import DASH, Number, column_of, main_numbers, seeds_cell
from experiments.report.tables import Cell, Column, Table, TableRow
from refavs.choices import PRIMARY
from refavs.data.splits import Splits
from refavs.metrics import metrics

Values = Mapping[str, float]  # by the metric's name, as `test_s/J`
MINUTES = Column(group="", name="minutes", lower_is_better=None)


def summary_tables(
    name: str, entries: Sequence[Entry], controls: Mapping[str, Values], splits: Splits
) -> list[Table]:
    """Means over the seeds of finished trials with intervals; also by dimension, if there are several.

    Args:
        name: name of the grid.
        controls: values of the constant predictions, by name.
    """
    split = next(iter(splits.tested), "")
    runs: dict[str, list[Values]] = {}
    for entry in entries:
        result = entry.result
        if entry.state == "finished" and result is not None:
            runs.setdefault(entry.trial.name, []).append(result["metrics"])
    lines = [*runs.items(), *((control, [values]) for control, values in controls.items())]
    lines.sort(key=lambda line: np.mean(_known(line[1], f"{split}/{PRIMARY}") or [-1.0]), reverse=True)
    known = {metric.rpartition("/")[2] for _, of in lines for run in of for metric in run}
    numbers = main_numbers(splits, "canonical", known)
    dimensions = sorted({metric.split("/")[1] for _, of in lines for run in of for metric in run
                         if metric.startswith(f"{split}/") and metric.count("/") == 2})  # fmt: skip
    by_dimension = [
        Number(column=column_of(metrics()[PRIMARY], "", each), group=f"{split}/{each}", measure=PRIMARY)
        for each in dimensions
    ]

    def table(title: str, numbers: Sequence[Number], notes: tuple[str, ...] = ()) -> Table:
        cells = [[seeds_cell(_known(of, f"{n.group}/{n.measure}"), n.column.unit) for n in numbers] for _, of in lines]
        minutes = [[_minutes(of)] if notes else [] for _, of in lines]
        return Table(
            name="summary", title=title, protocol="canonical", row_heading="trial", notes=notes,
            columns=(*(number.column for number in numbers), *([MINUTES] if notes else [])),
            rows=tuple(
                TableRow(label=label, protocol="canonical", kind="run" if label in runs else "control",
                    num_seeds=len(of) if label in runs else None, cells=(*cells[place], *minutes[place]))
                for place, (label, of) in enumerate(lines)
            ),
        )  # fmt: skip

    over_seeds = ("± 95 % t interval over seeds.",) if any(len(of) > 1 for of in runs.values()) else ()
    notes = ("Canonical protocol, per expression; dim rows are constant predictions.", *over_seeds)
    found = [table(f"sweep {name}, best first by {PRIMARY} on {split}", numbers, notes)]
    return [*found, table(f"{PRIMARY} on {split} by dimension", by_dimension)] if len(dimensions) > 1 else found


def _known(runs: Sequence[Values], metric: str) -> list[float]:
    return [run[metric] for run in runs if metric in run]


def _minutes(runs: Sequence[Values]) -> Cell:
    seconds = _known(runs, "seconds")
    return Cell(value=float(np.mean(seconds)) / 60, text=f"{np.mean(seconds) / 60:.1f}") if seconds else DASH

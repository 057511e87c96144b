"""Numbers in tables: the columns, and cells for a mean, an interval or a difference."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.report.tables import Cell, Column
from refavs.data.splits import Splits
from refavs.metrics import Difference, Interval, seed_interval
from refavs.metrics.groups import shown
from refavs.metrics.registry import Metric

DASH = Cell(value=None)


@dataclass(frozen=True, kw_only=True)
class Number:
    """The content of a column: a measure of a group of expressions."""

    column: Column
    group: str
    measure: str


def column_of(metric: Metric, group: str, name: str = "") -> Column:
    """The column of a metric, under the heading `group`."""
    return Column(group=group, name=name or metric.heading or metric.name, unit=metric.unit,
                  lower_is_better=metric.better == "lower")  # fmt: skip


def main_numbers(splits: Splits, protocol: str, known: Iterable[str]) -> tuple[Number, ...]:
    """The columns of the paper's Tables 3 and 4, and for the canonical protocol every other metric.

    Args:
        known: the metrics that some row has; others are left out.
    """
    known = {*known, *(each.metric.name for each in shown(splits, ""))}
    return tuple(
        Number(column=column_of(metric, splits.title(group)), group=group, measure=metric.name)
        for group, metric in shown(splits, protocol) if metric.name in known
    )  # fmt: skip


def scaled(value: float | None, unit: str) -> float | None:
    """A value in the unit of its column; None stays None."""
    if value is None or math.isnan(value):
        return None
    return 100 * value if unit == "%" else value


def value_cell(value: float | None, unit: str) -> Cell:
    """A single number."""
    return Cell(value=scaled(value, unit), text=_shown(scaled(value, unit), unit))


def mean_cell(interval: Interval | None, unit: str) -> Cell:
    """A mean with half its interval."""
    if interval is None:
        return DASH
    mean, low, high = (scaled(value, unit) for value in (interval.mean, interval.low, interval.high))
    half = "" if low is None or high is None else f" ± {_shown((high - low) / 2, unit)}"
    return Cell(value=mean, low=low, high=high, text=f"{_shown(mean, unit)}{half}", note=interval.note)


def seeds_cell(values: Sequence[float], unit: str) -> Cell:
    """The mean over seeds with half its t interval; a dash without seeds."""
    return mean_cell(seed_interval(values) if values else None, unit)


def bounds_cell(interval: Interval | None, unit: str) -> Cell:
    """Both ends of an interval."""
    if interval is None:
        return DASH
    mean, low, high = (scaled(value, unit) for value in (interval.mean, interval.low, interval.high))
    return Cell(value=mean, low=low, high=high, text=f"[{_shown(low, unit)}, {_shown(high, unit)}]", note=interval.note)


def difference_cell(difference: Difference | None, unit: str) -> Cell:
    """A difference with both ends of its interval, and whether it is significant."""
    if difference is None:
        return DASH
    mean, low, high = (scaled(value, unit) for value in (difference.mean, difference.low, difference.high))
    text = f"{_shown(mean, unit, '+')} [{_shown(low, unit, '+')}, {_shown(high, unit, '+')}]"
    verdict = "" if difference.shown else f", {difference.verdict}"
    return Cell(value=mean, low=low, high=high, text=f"{text}{verdict}", note=difference.verdict)


def printed_cell(value: float | None) -> Cell:
    """A published number with all its digits, except trailing zeros."""
    return Cell(value=value, text="-" if value is None else repr(value))


def _shown(value: float | None, unit: str, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{1 if unit == '%' else 3}f}"

"""Groups of expressions: splits, the mean of several splits, and parts by dimension, grade, length or category."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from refavs.data.cues import length_bin
from refavs.data.splits import MIX, Splits
from refavs.metrics.reference import PROTOCOLS, Results, grouped, protocol_values
from refavs.metrics.registry import Metric, metrics

Values = dict[str, dict[str, float]]  # by group and measure, as fractions

GRADES = {"1": "1+2", "2": "1+2"}  # merged as in the supplement's Table 2
PARTS = ("grade", "length", "dimension", "category")


class ShownMetric(NamedTuple):
    """A column of a table: a metric of a group."""

    group: str
    metric: Metric


def shown(splits: Splits, protocol: str = "canonical") -> Iterator[ShownMetric]:
    """The columns of tables in order: metrics of splits with objects and of their mean, of null splits, and rates.

    Args:
        protocol: every protocol except the canonical one has only the metrics that publications print.
    """
    printed = {measure for known in PROTOCOLS.values() for measure in known.measures}
    places = {"objects": splits.about_objects, "nulls": splits.having("null-test"), "rate": splits.test[:1]}
    for kind, groups in places.items():
        for group in groups:
            for name, metric in metrics().items():
                if metric.on == kind and (protocol == "canonical" or name in printed):
                    yield ShownMetric(group, metric)


def group_names(splits: Splits, split: str, dimension: str) -> list[str]:
    """The groups that an expression belongs to during the evaluation of a head."""
    name = splits.group_of(split)
    return [name, f"{name}/{dimension}"] if dimension else [name]


def named_values(groups: Mapping[str, Mapping[str, float]], splits: Splits) -> dict[str, float]:
    """Flattens names to `test_s/J`, drops values that are not numbers, and adds `mix` of several test splits."""
    values = {
        f"{group}/{name}": scores[name]
        for group, scores in sorted(groups.items()) for name in metrics()
        if math.isfinite(scores.get(name, math.nan))
    }  # fmt: skip
    for name in (name for name, metric in metrics().items() if metric.on == "objects"):
        parts = [values[f"{split}/{name}"] for split in splits.test if f"{split}/{name}" in values]
        if len(parts) == len(splits.test) > 1:
            values[f"{MIX}/{name}"] = sum(parts) / len(parts)
    return values


def report_groups(expressions: pd.DataFrame, splits: Splits) -> dict[str, Int[np.ndarray, " m"]]:
    """Rows of each test split by name, and of parts of all test splits about objects.

    Parts are e.g. `grade/1+2`, `length/5-8`, `dimension/spatial` or `category/dog`, with grades and lengths in the bins
    of the paper's supplement, Table 2. Expressions without a value are in no part.
    """
    found = {name: rows for name, rows in grouped(expressions, ["split"]).items() if name in splits.tested}
    objects = np.flatnonzero(expressions["split"].isin(splits.test).to_numpy())
    table = expressions.iloc[objects]
    table = table.assign(
        grade=table["grade"].replace(GRADES), length=[length_bin(int(number)) for number in table["length"]]
    )
    for part in PARTS:
        found |= {f"{part}/{name}": objects[rows] for name, rows in grouped(table, [part]).items()}
    return found


def values_of(
    results: Results, protocol: str, groups: Mapping[str, Int[np.ndarray, " m"]], splits: Splits
) -> Values:
    """The protocol's values of each group, and `mix`, the unweighted mean of its parts, if all of them are present."""
    values = {name: protocol_values(results, protocol, rows) for name, rows in groups.items()}
    if MIX in splits.groups and values.keys() >= {*splits.test}:
        parts = [values[split] for split in splits.test]
        values[MIX] = {measure: float(np.mean([part[measure] for part in parts])) for measure in parts[0]}
    return values


def control_values(controls: Mapping[str, Results], splits: Splits) -> dict[str, dict[str, Values]]:
    """Values of the constant predictions by protocol and name; NaN is left out, because JSON has none."""
    groups = {name: report_groups(results.expressions, splits) for name, results in controls.items()}
    return {
        protocol: {
            name: _finite(values_of(results, protocol, groups[name], splits)) for name, results in controls.items()
        }
        for protocol in PROTOCOLS
    }


def canonical_values(controls: Mapping[str, Results], splits: Splits) -> Values:
    """As `named_values`, for the constant predictions by name."""
    found = {}
    for name, results in controls.items():
        groups = grouped(results.expressions, ["split"]) | grouped(results.expressions, ["split", "dimension"])
        values = {group: protocol_values(results, "canonical", rows) for group, rows in groups.items()}
        found[name] = named_values(values, splits)
    return found


def _finite(values: Values) -> Values:
    return {
        group: {measure: value for measure, value in scores.items() if math.isfinite(value)}
        for group, scores in values.items()
    }

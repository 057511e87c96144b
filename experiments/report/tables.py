"""What a report says, as plain data: tables, the numbers behind the figures, and where the gallery looks.

`layout` fills these from the runs of a sweep; `text` and `page` only write them down.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["run", "control", "published"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    Attributes:
        value: in the unit of its column; None where there is nothing.
        low, high: 95 % interval of the mean, None where there is none: over seeds (t), and for a difference of two
            rows over clips and seeds (bootstrap).
        text: the number as a table shows it, with its interval; a dash where there is nothing.
        note: why there is no number, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    text: str = "-"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of numbers.

    Attributes:
        group: the heading that neighbouring columns share, as `Seen`; may be empty.
        name: the heading of this one, as `J`.
        unit: `%`, or empty for a fraction or a count.
        lower_is_better: whether the best row has the smallest number; None where no row is better.
    """

    group: str
    name: str
    unit: str = ""
    lower_is_better: bool | None = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        label: the trial's name, a control's, or a published method's; as the user typed it, not escaped.
        kind: where the numbers are from.
        protocol: by which they were computed; a published row has its own.
        num_seeds: runs behind each number; None for controls and published rows.
        mark: what sets this row apart from the others of its table, as another store; empty where nothing does.
    """

    label: str
    cells: tuple[Cell, ...]
    kind: Kind = "run"
    protocol: str
    num_seeds: int | None = None
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, whose title does not name the protocol: whoever shows it does.

    Attributes:
        name: a short name for files and links, as `table3-canonical`.
        notes: sentences that stand below it.
    """

    name: str
    title: str
    protocol: str
    row_heading: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def origin(row: Row, table: Table) -> list[str]:
    """What a reader must know of a row beside its name: whose it is, by another protocol, on another store."""
    words = [] if row.kind == "run" else [row.kind]
    if row.protocol and row.protocol != table.protocol:
        words.append(f"protocol: {row.protocol}")
    return [*words, row.mark] if row.mark else words


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % t interval; no bounds with one seed, nothing at all where nothing is known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's values of one measure, epoch by epoch.

    Attributes:
        measure: as the history has it: `train/loss`, `val/J`, ...; J, F and S are fractions.
    """

    label: str
    seed: int
    measure: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Estimates along a setting, as J in % against beta; `label` names the split, as `Seen`; `axis` the setting."""

    label: str
    x: tuple[float, ...]
    estimates: tuple[Estimate, ...]
    axis: str = "a setting"


@dataclass(frozen=True, kw_only=True)
class BarSeries:
    """The bars of one row of a table, one for each group of its `Bars`."""

    label: str
    estimates: tuple[Estimate, ...]
    kind: Kind = "run"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars in groups; `measure` is the axis' label with its unit, as `J (%)`.

    Attributes:
        counts: expressions of each group; empty where the groups are not parts of the data.
    """

    title: str
    measure: str
    protocol: str
    groups: tuple[str, ...]
    series: tuple[BarSeries, ...]
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Frames by the largest probability that a run gives any of their pixels, against how many have an object.

    Attributes:
        edges: bounds of the bins in [0, 1], one more than bins.
        num_frames: frames in each bin, over all seeds.
        mean_prob: mean of that probability in each bin; NaN in an empty one.
        share_object: share of frames in each bin that have an object; NaN in an empty one.
    """

    label: str
    edges: tuple[float, ...]
    num_frames: tuple[int, ...]
    mean_prob: tuple[float, ...]
    share_object: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GallerySource:
    """The run that the gallery shows: the reference row's first seed.

    Attributes:
        store: location of the features that it reads; None where the sweep does not say.
        given: whether the user named that location, who may have another host asked for it.
        fingerprint: of that store, which the statistics are of.
    """

    label: str
    statistics: Path
    checkpoint: Path
    store: str | None
    fingerprint: str
    given: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a report shows. Text from grids, folders and CSV files is as it was found: escape it when writing.

    Attributes:
        facts: name and value of what the sweep is of: grid, store, fingerprint, seeds, commit, ...
        warnings: what a reader must know before the numbers; `random_features` is one of them.
        protocols: those of the tables, in their order; figures show the first.
        reference: label of the row that others are compared with.
        beta: J against beta, a line for each split; empty unless runs differ in beta.
        ablations, dimensions, categories: None where there is nothing to compare.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    random_features: bool
    protocols: tuple[str, ...]
    reference: str
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...] = ()
    beta: tuple[Line, ...] = ()
    ablations: Bars | None = None
    dimensions: Bars | None = None
    categories: Bars | None = None
    calibrations: tuple[Calibration, ...] = ()
    gallery: GallerySource | None = None


def column_groups(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The headings that neighbouring columns share, and over how many they stand."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found

"""The content of a report as plain data: tables, the numbers of the figures, and the source of the gallery.

`layout` fills these from the runs of a sweep; `text` and `page` only write them.
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
        value: value in the unit of its column; None if missing.
        low, high: 95 % interval of the mean over seeds (t), or of a difference of two rows over clips and seeds
            (bootstrap); None if there is none.
        text: the number with its interval, as shown in a table; a dash if missing.
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
        group: the heading shared with neighbouring columns, e.g. `Seen`; may be empty.
        name: the heading of this column, e.g. `J`.
        unit: `%`, or empty for a fraction or a count.
        lower_is_better: whether the smallest number is best; None if there is no best.
    """

    group: str
    name: str
    unit: str = ""
    lower_is_better: bool | None = False


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table.

    Attributes:
        label: name of the trial, control or published method; as typed by the user, not escaped.
        kind: origin of the numbers.
        protocol: protocol of the numbers; a published row has its own.
        num_seeds: number of runs behind each number; None for controls and published rows.
        mark: how this row differs from the others of its table, e.g. another store; empty if it does not.
    """

    label: str
    cells: tuple[Cell, ...]
    kind: Kind = "run"
    protocol: str
    num_seeds: int | None = None
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. Its title does not include the protocol, which is added when it is shown.

    Attributes:
        name: a short name for files and links, e.g. `table3-canonical`.
        notes: sentences below the table.
    """

    name: str
    title: str
    protocol: str
    row_heading: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()


def origin(row: TableRow, table: Table) -> list[str]:
    """What a reader must know about a row besides its name: its origin, another protocol, another store."""
    words = [] if row.kind == "run" else [row.kind]
    if row.protocol and row.protocol != table.protocol:
        words.append(f"protocol: {row.protocol}")
    return [*words, row.mark] if row.mark else words


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds with its 95 % t interval; without bounds for one seed, empty if nothing is known."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's values of one measure, epoch by epoch.

    Attributes:
        measure: name in the history: `train/loss`, `val/J`, ...; J, F and S are fractions.
    """

    label: str
    seed: int
    measure: str
    epochs: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Estimates against a setting, e.g. J in % against beta; `label` is the split, e.g. `Seen`, `axis` the setting."""

    label: str
    x: tuple[float, ...]
    estimates: tuple[Estimate, ...]
    axis: str = "a setting"


@dataclass(frozen=True, kw_only=True)
class BarSeries:
    """The bars of one table row, one for each group of its `Bars`."""

    label: str
    estimates: tuple[Estimate, ...]
    kind: Kind = "run"


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Bars in groups; `measure` is the axis label with its unit, e.g. `J (%)`.

    Attributes:
        counts: number of expressions in each group; empty if the groups are not parts of the data.
    """

    title: str
    measure: str
    protocol: str
    groups: tuple[str, ...]
    series: tuple[BarSeries, ...]
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Frames binned by the largest probability of any pixel, with the share that has an object.

    Attributes:
        edges: bounds of the bins in [0, 1], one more than the number of bins.
        num_frames: frames in each bin, over all seeds.
        mean_prob: mean of that probability in each bin; NaN for an empty bin.
        share_object: share of frames with an object in each bin; NaN for an empty bin.
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
        store: location of the features that it reads; None if the sweep does not say.
        given: whether the user named that location; only then may it be on another host.
        fingerprint: fingerprint of the store in the statistics.
    """

    label: str
    statistics: Path
    checkpoint: Path
    store: str | None
    fingerprint: str
    given: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything a report shows. Text from grids, folders and CSV files is unescaped: escape it when writing.

    Attributes:
        facts: names and values that describe the sweep: grid, store, fingerprint, seeds, commit, ...
        warnings: warnings to read before the numbers, including the one for `random_features`.
        protocols: protocols of the tables, in order; figures show the first.
        reference: label of the row that others are compared with.
        beta: J against beta, one line per split; empty unless runs differ in beta.
        ablations, dimensions, categories: None if there is nothing to compare.
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
    """The headings shared by neighbouring columns, and the number of columns below each."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found

"""The tables of a report in the paper's layout: Table 3, Table 4, and Tables 2 and 3 of its supplement.

Every table has one protocol, except the one that compares protocols and names one in each row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.report import published
from experiments.report.cells import (
    Number,
    bounds_cell,
    column_of,
    difference_cell,
    main_numbers,
    mean_cell,
    printed_cell,
    value_cell,
)
from experiments.report.contenders import Contender, few_seeds
from experiments.report.tables import Cell, Column, Table, TableRow
from refavs.choices import PRIMARY
from refavs.data.cues import DIMENSIONS, LENGTH_BINS
from refavs.data.splits import MIX, Splits
from refavs.metrics import PROTOCOLS, metrics
from refavs.metrics.groups import Values

DIFFERENCES = (
    "Mean difference and its 95 % bootstrap interval over clips, and over seeds if there are several, with the same "
    "clips for both rows. Not shown: the interval contains 0."
)
MODALITIES = ("text", "audio", "visual")
POINTS = "In percent points under a heading with %, else fractions."
UNITS = "In the unit of the heading, else fractions; mean over seeds ± 95 % t interval."
PARTS = {
    "grade": ("by grade", ("1+2", "3", "4", "5")),
    "length": ("by number of words", LENGTH_BINS),
    "dimension": ("by dimension", tuple(name for name in DIMENSIONS if name != "semantic")),
}
DETAILS = "In %; mean over seeds ± 95 % t interval."
NOT_COMPARABLE = "Published rows use the protocol that each names; protocols are not comparable."
RANDOM = "RANDOM FEATURES: an encoder has random weights; compare rows with each other, not with published numbers."


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Data shared by all tables of a report.

    Attributes:
        contenders: the reference first, with their marks.
        controls: values of the constant predictions on the reference's store, by protocol and name.
        published: whether published rows are shown.
        random_features: whether features have random weights, which each table must say.
    """

    contenders: tuple[Contender, ...]
    controls: Mapping[str, Mapping[str, Values]]
    published: bool
    random_features: bool

    @property
    def reference(self) -> Contender:
        """The row that others are compared with."""
        return self.contenders[0]

    @property
    def splits(self) -> Splits:
        """The reference's splits."""
        return self.reference.splits

    def numbers(self, protocol: str) -> tuple[Number, ...]:
        """As `main_numbers`, for the metrics that some run has."""
        runs = (run for one in self.contenders for run in one.runs)
        return main_numbers(self.splits, protocol, {name for run in runs for name in run.measures(protocol)})


def main_table(setting: Setting, protocol: str) -> Table:
    """Table 3: every row of the sweep, the constant predictions and, if requested, the published methods."""
    numbers = setting.numbers(protocol)
    rows = [*_run_rows(setting.contenders, protocol, numbers), *_control_rows(setting, protocol, numbers)]
    rows += _published_rows(setting, published.MAIN, numbers)
    title = "Results on the test splits (layout of Table 3)"
    notes = [f"Protocol {protocol}: {PROTOCOLS[protocol].about}."]
    if any(row.kind == "control" for row in rows):
        notes.append("Controls ignore video and audio: constant predictions, and one from the sentence alone.")
    if PROTOCOLS[protocol].of_batches:
        notes.append("Its F and S are per batch, so there are no intervals over clips and no paired differences.")
    if said := choices_said(setting):
        notes.append(f"Chosen where papers and releases differ or stay open: {said}.")
    return _table(setting, protocol, "table3", title, "method", numbers, rows, notes)


def choices_said(setting: Setting) -> str:
    """The choices of each row's head, once for rows that have the same ones."""
    labels: dict[str, list[str]] = {}
    for one in setting.contenders:
        if said := ", ".join(f"{name} {str(value).lower()}" for name, value in one.choices.items()):
            labels.setdefault(said, []).append(one.label)
    return "; ".join(f"{' and '.join(rows)}: {said}" for said, rows in labels.items())


def ablation_table(setting: Setting, protocol: str) -> Table | None:
    """Table 4: the reference and the rows that remove parts of the model; None if there are none."""
    chosen = ablated(setting.contenders)
    if not chosen:
        return None
    numbers = setting.numbers(protocol)
    rows = _run_rows(chosen, protocol, numbers) + _published_rows(setting, published.ABLATIONS, numbers)
    return _table(setting, protocol, "table4", "Ablations (layout of Table 4)", "setting", numbers, rows)


def detail_table(setting: Setting, protocol: str) -> Table | None:
    """Further measures of the canonical protocol; None for the others."""
    if protocol != "canonical":
        return None
    measures = (("J, object", "J_object"), ("background", "background"), ("F, one threshold", "F_split"))
    numbers = tuple(
        Number(column=Column(group=setting.splits.title(split), name=name, unit="%"), group=split, measure=measure)
        for split in setting.splits.tested for name, measure in measures
        if split in setting.splits.test or measure == "background"
    )
    rows = [*_run_rows(setting.contenders, protocol, numbers), *_control_rows(setting, protocol, numbers)]
    notes = ["J, object: over frames with the object. Background: share of the pixels that are rightly left out in "
             "frames without it. F, one threshold: the maximum over thresholds of the split's mean."]  # fmt: skip
    title = "Frames with and without the object, and F at one threshold"
    return _table(setting, protocol, "details", title, "row", numbers, rows, notes, DETAILS)


def ablated(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    """The first contender and those that remove other parts of the model; empty if there are none."""
    others = [one for one in contenders[1:] if one.removed != contenders[0].removed]
    return (contenders[0], *others) if others else ()


def difference_table(setting: Setting, protocol: str) -> Table | None:
    """Each row minus the reference by paired bootstrap over clips; None if there is nothing to compare."""
    reference, others = setting.reference, setting.contenders[1:]
    known = reference.runs[0].results.values
    numbers = tuple(n for n in setting.numbers(protocol) if f"{protocol}/{n.measure}" in known)
    if not others or not numbers:
        return None
    found = {
        one: [one.minus(reference, protocol, number.group, number.measure) for number in numbers] for one in others
    }
    rows = [
        TableRow(
            label=one.label, protocol=protocol, num_seeds=len(one.runs), mark=one.mark,
            cells=tuple(difference_cell(each, n.column.unit) for each, n in zip(differences, numbers, strict=True)),
        ) for one, differences in found.items()
    ]  # fmt: skip
    single = {each.note for differences in found.values() for each in differences if each and each.note}
    notes = [DIFFERENCES, *(f"{note[0].upper()}{note[1:]}." for note in sorted(single))]
    if any(one.kind != reference.kind for one in others):
        notes.append("Rows of another store have no paired difference: their expressions cannot be matched.")
    title = f"Differences from {reference.label}"
    return _table(setting, protocol, "differences", title, "row", numbers, rows, notes, POINTS)


def interval_table(setting: Setting, protocol: str) -> Table | None:
    """Intervals of each mean: over seeds, and over seeds and clips; None if each row has one seed."""
    several = [one for one in setting.contenders if len(one.runs) > 1]
    known = setting.reference.runs[0].results.values
    numbers = [n for n in setting.numbers(protocol) if f"{protocol}/{n.measure}" in known]
    numbers = [n for n in numbers if n.measure == PRIMARY or metrics()[n.measure].on == "nulls"]
    if not several or not numbers:
        return None
    columns = tuple(
        Column(group=f"{n.column.group} {n.measure}", name=name, unit=n.column.unit, lower_is_better=None)
        for n in numbers for name in ("seeds", "seeds and clips")
    )
    rows = []
    for one in several:
        cells = []
        for number in numbers:
            over_seeds = one.interval(protocol, number.group, number.measure)
            sampled = one.sampled(protocol, number.group, number.measure)
            cells += [bounds_cell(found, number.column.unit) for found in (over_seeds, sampled)]
        rows.append(TableRow(
            label=one.label, cells=tuple(cells), protocol=protocol, num_seeds=len(one.runs), mark=one.mark
        ))  # fmt: skip
    notes = ("95 % intervals of the means: the t interval over seeds, and the bootstrap over seeds and clips. With "
             "few seeds the first is the cautious one.",)  # fmt: skip
    return Table(
        name=f"intervals-{protocol}", title="Intervals", protocol=protocol, row_heading="row", columns=columns,
        rows=tuple(rows), notes=(*notes, *_stamp(setting)),
    )  # fmt: skip


def part_table(setting: Setting, protocol: str, part: str) -> Table | None:
    """Supplement Table 2: J by grade, length or dimension; None if no expression has one."""
    title, known = PARTS[part]
    found = [name.split("/", 1)[1] for name in setting.reference.runs[0].counts if name.startswith(f"{part}/")]
    if not found:
        return None
    names = (*(known if set(known) & set(found) else ()), *sorted(set(found) - set(known)))
    numbers = tuple(
        Number(column=column_of(metrics()[PRIMARY], part, name), group=f"{part}/{name}", measure=PRIMARY)
        for name in names
    )
    rows = [*_run_rows(setting.contenders, protocol, numbers), *_control_rows(setting, protocol, numbers)]
    if setting.published:
        printed = published.PARTS[part]
        cells = tuple(printed_cell(printed.get(name)) for name in names)
        rows.append(_published_row(published.EEMC.label, cells, published.EEMC.protocol))
    counts = ", ".join(f"{name}: {setting.reference.count(f'{part}/{name}')}" for name in names)
    together = " and ".join(map(setting.splits.title, setting.splits.test))
    units = f"{PRIMARY} in %, over the expressions of {together} together; mean over seeds ± 95 % t interval."
    notes = [f"Expressions: {counts}."]
    title = f"{PRIMARY} {title} (layout of supplement Table 2)"
    return _table(setting, protocol, f"supplement2-{part}", title, "row", numbers, rows, notes, units)


def encoder_table(setting: Setting, protocol: str, encoders: Mapping[str, Mapping[str, str]]) -> Table | None:
    """Supplement Table 3: the reference's settings with other encoders, of one store or of several.

    Args:
        setting: what is compared.
        protocol: of the numbers.
        encoders: name of the encoder that a store uses by default, by the store's fingerprint and modality.

    Returns:
        The table; None where all rows read the same encoders.
    """
    reference = setting.reference
    read = {
        (one.store, *(name for _, name in _encoders_of(one, encoders))): one for one in reversed(setting.contenders)
        if one.runs[0].run.name == reference.runs[0].run.name
        or (_but_encoders(one) == _but_encoders(reference) and one.removed == reference.removed)
    }  # fmt: skip
    if len(read) < 2:
        return None
    own = dict(_encoders_of(reference, encoders))

    def others(one: Contender) -> list[bool]:
        """Sorts as the supplement does: other texts, other sounds, then both."""
        return [name != own.get(modality) for modality, name in reversed(_encoders_of(one, encoders))]

    overall = list(setting.splits.about_objects)[-1:]
    numbers = tuple(
        n for n in setting.numbers(protocol) if n.group in overall and metrics()[n.measure].on == "objects"
    )
    rows = [
        TableRow(
            label=f"{' + '.join(name for _, name in _encoders_of(one, encoders)) or 'unknown encoders'}: {one.label}",
            num_seeds=len(one.runs), mark=one.mark,
            cells=tuple(mean_cell(one.interval(protocol, n.group, n.measure), n.column.unit) for n in numbers),
            protocol=protocol,
        ) for one in sorted(reversed(read.values()), key=others)
    ]  # fmt: skip
    rows += _published_rows(setting, published.ENCODERS, numbers)
    title = "Encoders (layout of supplement Table 3)"
    return _table(setting, protocol, "supplement3", title, "encoders", numbers, rows)


def _encoders_of(one: Contender, encoders: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    """The encoders that a row reads, by modality: those that its settings name, else the store's."""
    named = {modality: one.config.get(f"model.{modality}") for modality in MODALITIES}
    known = encoders.get(one.store, {})
    found = [(modality, name if isinstance(name, str) else known.get(modality)) for modality, name in named.items()]
    return [(modality, name) for modality, name in found if name]


def _but_encoders(one: Contender) -> dict[str, object]:
    return {name: value for name, value in one.config.items() if name.removeprefix("model.") not in MODALITIES}


def protocol_table(setting: Setting, protocols: Sequence[str]) -> Table:
    """The same predictions under several protocols; each row names its protocol."""
    numbers = setting.numbers("")
    rows = [
        row for protocol in protocols for row in _run_rows(setting.contenders, protocol, numbers)
    ]  # fmt: skip
    notes = [f"Protocol {protocol}: {PROTOCOLS[protocol].about}." for protocol in protocols]
    return _table(
        setting, " and ".join(protocols), "mixed", "One inference by several protocols", "row", numbers, rows, notes
    )


def _table(
    setting: Setting, protocol: str, name: str, title: str, row_heading: str, numbers: Sequence[Number],
    rows: Iterable[TableRow], notes: Sequence[str] = (), units: str = UNITS,
) -> Table:  # fmt: skip
    rows, single = tuple(rows), few_seeds(setting.contenders) if units != POINTS else ""
    lower = dict.fromkeys(number.column.name for number in numbers if number.column.lower_is_better)
    others = (NOT_COMPARABLE,) if any(row.kind == "published" for row in rows) else ()
    best = f"Lower is better: {', '.join(lower)}." if lower else ""
    return Table(
        name=f"{name}-{protocol}", title=title, protocol=protocol, row_heading=row_heading, rows=rows,
        columns=tuple(number.column for number in numbers),
        notes=(units, *filter(None, [best, single]), *notes, *others, *_absent(setting, numbers), *_stamp(setting)),
    )  # fmt: skip


def _stamp(setting: Setting) -> tuple[str, ...]:
    return (RANDOM,) if setting.random_features else ()


def _absent(setting: Setting, numbers: Sequence[Number]) -> list[str]:
    groups = setting.splits.groups
    wanted = {split for number in numbers for split in groups.get(number.group, ())}
    lost = [split for split in setting.splits.tested if split in wanted and not setting.reference.count(split)]
    if not lost:
        return []
    return [f"No expression of {', '.join(lost)}: {', '.join(map(setting.splits.title, lost))} is left out"
            f"{', and with it Mix' if set(lost) & set(groups.get(MIX, ())) else ''}."]


def _run_rows(contenders: Sequence[Contender], protocol: str, numbers: Sequence[Number]) -> list[TableRow]:
    return [
        TableRow(
            label=one.label, protocol=protocol, num_seeds=len(one.runs), mark=one.mark,
            cells=tuple(mean_cell(one.interval(protocol, n.group, n.measure), n.column.unit) for n in numbers),
        ) for one in contenders
    ]  # fmt: skip


def _control_rows(setting: Setting, protocol: str, numbers: Sequence[Number]) -> list[TableRow]:
    return [
        TableRow(
            label=label, kind="control", protocol=protocol,
            cells=tuple(value_cell(values.get(n.group, {}).get(n.measure), n.column.unit) for n in numbers),
        ) for label, values in setting.controls.get(protocol, {}).items()
    ]  # fmt: skip


def _published_rows(setting: Setting, rows: Sequence[published.Published], numbers: Sequence[Number]) -> list[TableRow]:
    if not setting.published:
        return []
    cells = [tuple(printed_cell(row.values.get((n.group, n.measure))) for n in numbers) for row in rows]
    return [_published_row(row.label, each, row.protocol) for row, each in zip(rows, cells, strict=True)]


def _published_row(label: str, cells: tuple[Cell, ...], protocol: str) -> TableRow:
    return TableRow(label=label, cells=cells, kind="published", protocol=protocol)

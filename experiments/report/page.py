"""The report as one HTML file: nothing is loaded from elsewhere, no script runs, all foreign text is escaped."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.report.figures import Drawing, report_figures
from experiments.report.gallery import Gallery, make_gallery
from experiments.report.seconds import HEIGHT, WAVE_HEIGHT, WAVE_WIDTH
from experiments.report.svg import printable
from experiments.report.tables import Cell, Column, Report, Row, Table

TEMPLATE, STYLE = "page.html.jinja", "page.css"
# The last line of defence, should a text ever get by the escaping: nothing is loaded and no script runs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PROTOCOLS: Mapping[str, str] = {
    "canonical": "At the size of the store's masks, means over expressions. J at the threshold 0.5 over all frames; a "
    "frame without object counts 1 if nothing is predicted in it, else 0. F is the largest over 255 thresholds of an "
    "expression's mean over its frames with an object. S is the root of the predicted share of an expression's pixels.",
    "released": "The formulas of the authors' released code: 256 x 256 pixels, J at 0.4, F and S of batches of four "
    "clips in the order of the file, then the mean over batches. The numbers depend on that order.",
    "per_frame": "Each frame is scored alone, as Crab does: a frame without object counts its background in J, 0 in F.",
    "per_expression": "The authors' formulas with each expression as a batch, as SimToken does; J at 0.4.",
    "davis": "Region J and boundary F of DAVIS at 0.5, as OmniAVS does; there is no S.",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tables of one protocol."""

    protocol: str
    tables: tuple[Table, ...]


def render(report: Report, drawings: Sequence[Drawing] | None = None, gallery: Gallery | None = None) -> str:
    """The page.

    Args:
        report: what it says.
        drawings: its figures; None draws them.
        gallery: its pictures; None predicts them with the report's run.
    """
    drawings = report_figures(report) if drawings is None else drawings
    gallery = make_gallery(report.gallery) if gallery is None else gallery
    headline, others = report.tables[:1], report.tables[1:]
    first = headline[0].protocol if headline else ""
    names = dict.fromkeys(table.protocol for table in others if table.protocol != first)
    template = _environment().get_template(TEMPLATE)
    return template.render(
        report=report,
        policy=POLICY,
        style=Markup(_text(STYLE)),
        headline=headline,
        tables=[table for table in others if table.protocol == first],
        sections=[Section(protocol=name, tables=tuple(t for t in others if t.protocol == name)) for name in names],
        drawings=drawings,
        gallery=gallery,
        protocols={name: PROTOCOLS[name] for name in report.protocols if name in PROTOCOLS},
    )


def anchor(name: str) -> str:
    """`name` as the id of an element."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"


def spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The shared headings of neighbouring columns with the number of columns below them; none where all are empty."""
    found: list[tuple[str, int]] = []
    for column in columns:
        if found and found[-1][0] == column.group:
            found[-1] = (column.group, found[-1][1] + 1)
        else:
            found.append((column.group, 1))
    return found if any(name for name, _ in found) else []


def best(table: Table) -> set[tuple[int, int]]:
    """Row and column of the best number of each column among our runs; none where fewer than two have one."""
    found = set()
    for place, column in enumerate(table.columns):
        known = [
            (cell.value, number)
            for number, row in enumerate(table.rows)
            if row.kind == "run" and (cell := row.cells[place]).value is not None
        ]
        if column.lower_is_better is not None and len(known) > 1:
            wanted = min(known)[0] if column.lower_is_better else max(known)[0]
            found |= {(number, place) for value, number in known if value == wanted}
    return found


def origin(row: Row, table: Table) -> list[str]:
    """What a reader must know of a row beside its name."""
    words = [] if row.kind == "run" else [row.kind]
    if row.protocol and row.protocol != table.protocol:
        words.append(f"protocol: {row.protocol}")
    return [*words, row.mark] if row.mark else words


def tip(cell: Cell) -> str:
    """The interval of a number and what was noted of it, in words."""
    bounds = "" if cell.low is None or cell.high is None else f"95 % interval {cell.low:.4g} to {cell.high:.4g}"
    return "; ".join(part for part in (bounds, cell.note) if part)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_finalised,
    )  # fmt: skip
    environment.filters |= {"anchor": anchor, "markup": lambda drawing: Markup(drawing.markup())}
    environment.globals |= {
        "spans": spans, "best": best, "origin": origin, "tip": tip, "height": HEIGHT, "wave_width": WAVE_WIDTH,
        "wave_height": WAVE_HEIGHT,
    }  # fmt: skip
    return environment


def _finalised(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _text(name: str) -> str:
    return (resources.files("experiments") / "report" / name).read_text("utf-8")

"""The report as one HTML file: it loads nothing, runs no script, and escapes all text from users."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.report.clip_steps import HEIGHT, WAVE_HEIGHT, WAVE_WIDTH
from experiments.report.drawing import COLOURS, Drawing
from experiments.report.figures import report_figures
from experiments.report.gallery import Gallery, make_gallery
from experiments.report.svg import printable
from experiments.report.tables import Cell, Column, Report, Table, column_groups, origin
from refavs.metrics import PROTOCOLS
from refavs.metrics.intervals import NOT_SHOWN

TEMPLATE, STYLES = "page.html.jinja", ("card.css", "page.css")
# A second line of defence if escaping ever fails: nothing is loaded and no script runs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tables of one protocol."""

    protocol: str
    tables: tuple[Table, ...]


def render(report: Report, drawings: Sequence[Drawing] | None = None, gallery: Gallery | None = None) -> str:
    """Renders the page.

    Args:
        report: its content.
        drawings: its figures; None draws them.
        gallery: its gallery; None predicts it with the report's run.
    """
    drawings = report_figures(report) if drawings is None else drawings
    gallery = make_gallery(report.gallery) if gallery is None else gallery
    headline, others = report.tables[:1], report.tables[1:]
    first = headline[0].protocol if headline else ""
    names = dict.fromkeys(table.protocol for table in others if table.protocol != first)
    template = environment().get_template(TEMPLATE)
    return template.render(
        report=report,
        policy=POLICY,
        style=Markup("".join(map(resource, STYLES))),
        headline=headline,
        tables=[table for table in others if table.protocol == first],
        sections=[Section(protocol=name, tables=tuple(t for t in others if t.protocol == name)) for name in names],
        drawings=drawings,
        gallery=gallery,
        protocols={name: PROTOCOLS[name].about for name in report.protocols if name in PROTOCOLS},
    )


def anchor(name: str) -> str:
    """`name` as the id of an element."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "part"


def spans(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """The shared headings of neighbouring columns with the number of columns below; empty if no heading is set."""
    found = column_groups(columns)
    return found if any(name for name, _ in found) else []


def best(table: Table) -> set[tuple[int, int]]:
    """Row and column of the best number of each column among our runs; for differences, among the significant ones.

    A column with fewer than two numbers, or with equal numbers, has no best.
    """
    found = set()
    for place, column in enumerate(table.columns):
        known = [
            (cell.value, number)
            for number, row in enumerate(table.rows)
            if row.kind == "run" and (cell := row.cells[place]).value is not None and NOT_SHOWN not in cell.text
        ]
        if column.lower_is_better is not None and len({value for value, _ in known}) > 1:
            wanted = min(known)[0] if column.lower_is_better else max(known)[0]
            found |= {(number, place) for value, number in known if value == wanted}
    return found


def parts(text: str) -> tuple[str, str]:
    """Splits the text of a cell into the number and its interval, `± 1.2` or `[0.1, 2.5]`, with what follows."""
    number, interval = re.fullmatch(r"(.*?)(?: ([±\[].*))?", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return number, interval or ""


def tip(cell: Cell) -> str:
    """The interval and note of a number as text."""
    bounds = "" if cell.low is None or cell.high is None else f"95 % interval {cell.low:.4g} to {cell.high:.4g}"
    return "; ".join(part for part in (bounds, cell.note) if part)


def environment(room: str = "report") -> jinja2.Environment:
    """Templates of `experiments/ROOM` and of the report, which escape all text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: resource(name, room)), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalised,
    )  # fmt: skip
    environment.filters |= {"anchor": anchor, "markup": lambda drawing: Markup(drawing.markup())}
    environment.globals |= {
        "spans": spans, "best": best, "origin": origin, "tip": tip, "parts": parts, "not_shown": NOT_SHOWN,
        "height": HEIGHT, "num_colours": len(COLOURS), "wave_width": WAVE_WIDTH, "wave_height": WAVE_HEIGHT,
    }  # fmt: skip
    return environment


def _finalised(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def resource(name: str, room: str = "report") -> str:
    """A template or style sheet of `experiments/ROOM`, or else of the report."""
    folder = resources.files("experiments")
    own = folder / room / name
    return (own if own.is_file() else folder / "report" / name).read_text("utf-8")

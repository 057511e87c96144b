"""Figures of a report: matplotlib's settings, the `Drawing`, and its rendering as SVG and PNG.

Figures are 360 points wide, so that text is legible on a page of 400 px. Series differ in colour (Okabe and Ito's
palette for colour-blind readers) and in marker, line style or hatching.
"""

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.svg import printable, themed

WIDTH_IN = 5.0
INK, FAINT, PAPER = "#1b1f24", "#8a929c", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c3e", "#4d4d4d")
MARKERS = "osD^vPX*"
DASHES: tuple[Any, ...] = (
    "-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)),
    (0, (8, 2)), (0, (3, 1)), (0, (1, 2)), (0, (8, 2, 1, 2)),
)  # fmt: skip
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||", "++++")
MOST_SERIES = len(COLOURS)
TITLE_WIDTH, LEGEND_WIDTH = 50, 44
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 9.0,
    "axes.titlesize": 10.0, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 9.0,
    "xtick.labelsize": 9.0, "ytick.labelsize": 9.0, "legend.fontsize": 9.0, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": FAINT, "grid.alpha": 0.3, "grid.linewidth": 0.6, "axes.edgecolor": FAINT, "axes.linewidth": 0.8,
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "hatch.linewidth": 0.6,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "axes.unicode_minus": False,
}  # fmt: skip
THEME = {INK: "ink", FAINT: "faint", PAPER: "paper", **{colour: f"series-{i}" for i, colour in enumerate(COLOURS)}}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure.

    Attributes:
        name: short name for files and links.
        caption: describes the content and the protocol.
        alt: text alternative.
        figure: the figure, drawn but not rendered.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        """Renders a stand-alone SVG file."""
        with style(self.name):
            text = io.StringIO()
            self.figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def png(self, dpi: int = 200) -> bytes:
        """Renders a PNG, `5 * dpi` pixels wide."""
        with style(self.name):
            content = io.BytesIO()
            self.figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
        return content.getvalue()

    def markup(self) -> str:
        """Renders an SVG element for a page whose style sheet sets fonts and colours (`--series-0`, `--ink`, ...)."""
        return themed(self.svg(), THEME, prefix=self.name, label=self.alt)


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Applies matplotlib settings for our figures only.

    Glyphs that matplotlib's font lacks are no reason to warn, because the reader's browser has them.
    """
    settings: dict[Any, Any] = {**STYLE, "svg.hashsalt": salt}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(height_in: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    set_title(axes, title)
    return figure, axes


def set_title(axes: Axes, title: str) -> None:
    """Sets a title over the whole figure rather than the axes, whose left edge depends on the labels."""
    figure = axes.get_figure()
    assert figure is not None
    figure.suptitle(
        textwrap.fill(printable(title), TITLE_WIDTH, max_lines=2, placeholder=" …"), x=0.01, ha="left", fontsize=10,
        fontweight="bold",
    )  # fmt: skip


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    short = [shortened(label, LEGEND_WIDTH) for label in labels]
    wide = max((len(label) for label in short), default=0)
    legend = figure.legend(
        handles, [str(place) for place in range(len(short))], loc="outside lower left", handlelength=2.6,
        ncols=max(1, min(4, 58 // (wide + 9))), columnspacing=1.2,
    )  # fmt: skip
    # Set afterwards, because matplotlib leaves out entries whose label starts with an underscore.
    for entry, label in zip(legend.get_texts(), short, strict=True):
        entry.set_text(label)


def settle(figure: Figure) -> None:
    """Fixes the layout, which each rendering would otherwise compute slightly differently."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def shortened(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"

"""Figures of a report: from plain data to SVG and PNG, the same bytes for the same numbers.

Drawn 360 points wide, so that their text is legible where a page is 400 px wide. Series differ in colour (Okabe and
Ito's, which colour-blind readers can tell apart) and in marker, line style or hatching.
"""

import io
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.svg import printable, themed
from experiments.report.tables import Bars, Calibration, Curve, Estimate, Line, Report

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
LABEL_WIDTH, TITLE_WIDTH = 24, 50
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
        name: short, for files and links.
        caption: says what is shown, of which protocol.
        alt: the figure in words, for those who cannot see it.
        figure: drawn but not rendered.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure

    def svg(self) -> str:
        """As a file of its own."""
        with _style(self.name):
            text = io.StringIO()
            self.figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def png(self, dpi: int = 200) -> bytes:
        """As a picture of `5 * dpi` pixels in width."""
        with _style(self.name):
            content = io.BytesIO()
            self.figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
        return content.getvalue()

    def markup(self) -> str:
        """As an element of a page, whose style sheet sets fonts and, by `--series-0`, `--ink` and so on, colours."""
        return themed(self.svg(), THEME, prefix=self.name, label=self.alt)


def report_figures(report: Report) -> tuple[Drawing, ...]:
    """Every figure that the report has numbers for."""
    protocol = report.protocols[0] if report.protocols else ""
    found: list[Drawing | None] = [
        draw_beta(report.beta, protocol),
        draw_bars("ablations", report.ablations),
        draw_bars("dimensions", report.dimensions),
        draw_bars("categories", report.categories),
        draw_curves(report.curves, report.reference),
        draw_calibration(report.calibrations, report.reference),
    ]
    return tuple(drawing for drawing in found if drawing is not None)


def draw_beta(lines: Sequence[Line], protocol: str) -> Drawing | None:
    """J in % along beta, a line for each split, with its intervals; None without lines."""
    lines = lines[:MOST_SERIES]
    if not lines:
        return None
    title = f"J against β, {protocol} protocol"
    with _style("beta"):
        figure, axes = _figure(3.0, title)
        handles = []
        for place, line in enumerate(lines):
            known = [(x, point) for x, point in zip(line.x, line.estimates, strict=True) if point.value is not None]
            shift = (place - (len(lines) - 1) / 2) * 0.01 * (max(line.x, default=0) - min(line.x, default=0))
            xs, points = [x + shift for x, _ in known], [point for _, point in known]
            handles.append(
                axes.errorbar(
                    xs, [point.value for point in points], yerr=_error_bars(points), color=COLOURS[place],
                    linestyle=DASHES[place], marker=MARKERS[place], markersize=5, capsize=3, linewidth=1.6,
                )
            )  # fmt: skip
        ticks = sorted({x for line in lines for x in line.x})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        low, high = _limits([point for line in lines for point in line.estimates], "J (%)")
        axes.set_ylim(max(low - 0.05 * (high - low), 0.0), high + 0.05 * (high - low))
        axes.set(xlabel="β, sensitivity to change against the cached memory (Eq. 2)", ylabel="J (%)")
        _legend(figure, handles, [line.label for line in lines])
        _settle(figure)
    values = "; ".join(
        f"{line.label}: " + ", ".join(f"{_words(p)} at {x:g}" for x, p in zip(line.x, line.estimates, strict=True))
        for line in lines
    )
    return Drawing(
        name="beta", title=title, figure=figure, alt=printable(f"{title}. {values}"),
        caption=f"J by β, mean over seeds; {_bars_mean(p for line in lines for p in line.estimates)}. β = 0 is a model "
        f"without cached memory. Protocol: {protocol}.",
    )  # fmt: skip


def draw_bars(name: str, bars: Bars | None) -> Drawing | None:
    """Horizontal bars in groups, with intervals and values; None without bars.

    A single series takes the groups as its labels; several share a legend.
    """
    if bars is None or not bars.groups or not bars.series:
        return None
    series = bars.series[:MOST_SERIES]
    title = f"{bars.title}, {bars.protocol} protocol"
    step = len(series) + (0.6 if len(series) > 1 else 0.25)
    limits = _limits([point for one in series for point in one.estimates], bars.measure)
    with _style(name):
        height = 0.9 + 0.2 * step * len(bars.groups) + 0.18 * (len(series) > 1) * (1 + len(series) // 3)
        figure, axes = _figure(max(height, 1.6), title)
        handles = []
        for place, one in enumerate(series):
            ys = step * np.arange(len(bars.groups)) + place
            handles.append(_draw_series(axes, ys, one.estimates, place, one.kind, limits[1]))
        counts = bars.counts or (None,) * len(bars.groups)
        labels = [_label(group, count) for group, count in zip(bars.groups, counts, strict=True)]
        axes.set_yticks(step * np.arange(len(labels)) + (len(series) - 1) / 2, labels)
        axes.set_ylim(step * len(labels) - 0.5 * (step - len(series)) - 0.4, -0.6)
        axes.set(xlabel=printable(bars.measure), xlim=(min(0.0, limits[0]), 1.12 * limits[1]))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if len(series) > 1:
            _legend(figure, handles, [one.label for one in series])
        _settle(figure)
    estimates = [point for one in series for point in one.estimates]
    left_out = len(bars.series) - len(series)
    caption = f"{bars.title}: {bars.measure}, mean over seeds; {_bars_mean(estimates)}."
    caption += " n is the number of expressions." if bars.counts else ""
    caption += f" {left_out} more rows are in the tables." if left_out else ""
    values = "; ".join(
        f"{one.label}: " + ", ".join(f"{name} {_words(p)}" for name, p in zip(bars.groups, one.estimates, strict=True))
        for one in series
    )
    return Drawing(
        name=name, title=title, caption=f"{caption} Protocol: {bars.protocol}.", figure=figure,
        alt=printable(f"{title}, {bars.measure}. {values}"),
    )  # fmt: skip


def draw_curves(curves: Sequence[Curve], reference: str = "") -> Drawing | None:
    """Training loss and J on val by epoch: each seed thin, their mean thick; None without curves.

    Args:
        reference: label that is shown whatever the number of others.
    """
    panels = {"train/loss": ("training loss", 1.0), "val/J": ("J on val (%)", 100.0)}
    wanted = [measure for measure in panels if any(curve.measure == measure for curve in curves)]
    if not wanted:
        return None
    labels = _first({curve.label for curve in curves}, [curve.label for curve in curves], reference)
    title = "Learning curves" + (", J of the canonical protocol" if "val/J" in wanted else "")
    with _style("curves"):
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 1.9 * len(wanted)), layout="constrained")
        every = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
        _title(every[0], title)
        handles: dict[str, Any] = {}
        for axes, measure in zip(every, wanted, strict=True):
            axes.set_ylabel(panels[measure][0])
            for place, label in enumerate(labels):
                chosen = [curve for curve in curves if curve.label == label and curve.measure == measure]
                if chosen:
                    handles[label] = _draw_curves(axes, chosen, panels[measure][1], place)
        every[-1].set_xlabel("epoch")
        every[-1].xaxis.get_major_locator().set_params(integer=True)
        _legend(figure, list(handles.values()), list(handles))
        _settle(figure)
    left_out = len({curve.label for curve in curves}) - len(labels)
    caption = "Each seed thin, the mean over seeds thick. The loss is the mean over the batches of an epoch, J that of "
    caption += "the split val after it (canonical protocol)."
    caption += f" {left_out} more trials are not drawn." if left_out else ""
    ends = "; ".join(
        f"{curve.label}, seed {curve.seed}: {curve.measure} {curve.values[-1]:.3g} after {curve.epochs[-1]} epochs"
        for curve in curves if curve.label in labels and curve.measure in wanted and curve.values
    )  # fmt: skip
    return Drawing(name="curves", title=title, caption=caption, figure=figure, alt=printable(f"{title}. {ends}"))


def draw_calibration(calibrations: Sequence[Calibration], reference: str = "") -> Drawing | None:
    """Reliability of p(object): how sure the model is, against how often there is an object; None without runs."""
    labels = _first({one.label for one in calibrations}, [one.label for one in calibrations], reference)
    chosen = [next(one for one in calibrations if one.label == label) for label in labels]
    if not chosen:
        return None
    title = "Calibration of p(object), per frame"
    with _style("calibration"):
        figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        _title(upper, title)
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        handles = []
        for place, one in enumerate(chosen):
            prob, share, count = (np.array(part, float) for part in (one.mean_prob, one.share_object, one.num_frames))
            known = ~(np.isnan(prob) | np.isnan(share)) & (count > 0)
            style = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": DASHES[place], "linewidth": 1.6}
            handles += upper.plot(prob[known], share[known], markersize=5, **style)
            lower.stairs(count, one.edges, color=COLOURS[place], linestyle=DASHES[place], linewidth=1.4)
        upper.set(ylabel="share of frames\nwith an object", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        lower.set(xlabel="largest probability of any pixel of the frame", ylabel="frames", ylim=(0, None))
        lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        _legend(figure, handles, [f"{one.label} (ECE {calibration_error(one):.3f})" for one in chosen])
        _settle(figure)
    left_out = len(calibrations) - len(chosen)
    caption = (
        "Frames of the test splits, all seeds together, in bins by the largest probability the model gives any of "
        "their pixels; below, how many frames a bin holds. On the dotted diagonal the model is as sure as it is right. "
        "ECE is the mean distance from it, weighted by frames."
    ) + (f" {left_out} more trials are not drawn." if left_out else "")  # fmt: skip
    errors = ", ".join(f"{one.label} {calibration_error(one):.3f}" for one in chosen)
    return Drawing(
        name="calibration", title=title, caption=caption, figure=figure,
        alt=printable(f"{title}. Expected calibration error: {errors}"),
    )  # fmt: skip


def calibration_error(calibration: Calibration) -> float:
    """Expected calibration error: mean distance of probability and share over the bins, weighted by their frames."""
    prob, share, count = (
        np.array(part, float) for part in (calibration.mean_prob, calibration.share_object, calibration.num_frames)
    )
    distance = np.where(count > 0, np.abs(np.nan_to_num(prob) - np.nan_to_num(share)), 0.0)
    return float((distance * count).sum() / count.sum()) if count.sum() else float("nan")


def _draw_series(
    axes: Axes, ys: np.ndarray, estimates: Sequence[Estimate], place: int, kind: str, limit: float
) -> Any:
    values = np.array([np.nan if point.value is None else point.value for point in estimates])
    colour = FAINT if kind == "control" else COLOURS[place]
    drawn = axes.barh(
        ys, np.nan_to_num(values), height=0.8, color=colour, hatch=HATCHES[place], edgecolor=PAPER, linewidth=0
    )  # fmt: skip
    for y, point in zip(ys, estimates, strict=True):
        end = 0.0 if point.value is None else point.value
        if point.low is not None and point.high is not None:
            axes.errorbar(
                [point.value], [y], xerr=_error_bars([point]), color=INK, capsize=2.5, linewidth=1.1
            )  # fmt: skip
            end = min(max(end, point.high), limit)
        text = "none" if point.value is None else f"{point.value:.1f}"
        axes.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    return drawn


def _draw_curves(axes: Axes, curves: Sequence[Curve], scale: float, place: int) -> Any:
    for curve in curves:
        axes.plot(curve.epochs, scale * np.array(curve.values), color=COLOURS[place], linewidth=0.7, alpha=0.55)
    shared = sorted(set.intersection(*(set(curve.epochs) for curve in curves)))
    tables = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in curves]
    mean = [scale * float(np.mean([table[epoch] for table in tables])) for epoch in shared]
    alone = {"marker": MARKERS[place], "markersize": 4} if len(shared) < 12 else {}
    return axes.plot(shared, mean, color=COLOURS[place], linestyle=DASHES[place], linewidth=2, **alone)[0]


def _figure(height_in: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = figure.add_subplot()
    _title(axes, title)
    return figure, axes


def _title(axes: Axes, title: str) -> None:
    """Over the whole figure, not over the axes alone, whose left edge depends on the labels."""
    figure = axes.get_figure()
    assert figure is not None
    figure.suptitle(
        textwrap.fill(printable(title), TITLE_WIDTH, max_lines=2, placeholder=" …"), x=0.01, ha="left", fontsize=10,
        fontweight="bold",
    )  # fmt: skip


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    short = [_shortened(label, 44) for label in labels]
    wide = max((len(label) for label in short), default=0)
    legend = figure.legend(
        handles, [str(place) for place in range(len(short))], loc="outside lower left", handlelength=2.6,
        ncols=max(1, min(4, 58 // (wide + 9))), columnspacing=1.2,
    )  # fmt: skip
    # Set afterwards: matplotlib leaves out entries whose label begins with an underscore.
    for entry, label in zip(legend.get_texts(), short, strict=True):
        entry.set_text(label)


def _label(group: str, count: int | None) -> str:
    text = textwrap.fill(printable(group), LABEL_WIDTH, max_lines=2, placeholder=" …")
    return text if count is None else f"{text} (n={count})"


def _shortened(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _first(known: set[str], labels: Sequence[str], reference: str) -> list[str]:
    """The reference and the first others, as many as can be told apart, in the order they came."""
    order = [reference] * (reference in known) + [label for label in dict.fromkeys(labels) if label != reference]
    return order[:MOST_SERIES]


def _limits(points: Sequence[Estimate], measure: str) -> tuple[float, float]:
    """The smallest and largest value with its interval, which may reach beyond what a share can be; never equal."""
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    if measure.endswith("(%)"):
        low, high = max(low, 0.0), min(high, 100.0)
    return low, high if high > low else low + 1.0


def _error_bars(points: Sequence[Estimate]) -> np.ndarray:
    """Distances down and up; zero where a point has no interval."""
    pairs = [
        (0.0, 0.0) if p.value is None or p.low is None or p.high is None else (p.value - p.low, p.high - p.value)
        for p in points
    ]
    return np.array(pairs).reshape(-1, 2).T.clip(min=0)


def _bars_mean(estimates: Iterable[Estimate]) -> str:
    if any(point.low is not None for point in estimates):
        return "error bars are 95 % t intervals of the mean over seeds"
    return "one seed each, so no intervals"


def _words(point: Estimate) -> str:
    if point.value is None:
        return "no value"
    bounds = "" if point.low is None or point.high is None else f" (95 % interval {point.low:.1f} to {point.high:.1f})"
    return f"{point.value:.1f}{bounds}"


def _settle(figure: Figure) -> None:
    """Fixes where everything stands, which each rendering would else decide a little differently."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """matplotlib's settings for our figures, and only for them.

    Names may be of scripts that its font lacks; a reader's browser has them, so that is no reason to warn.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


"""The figures of a report: drawings from plain data; the same numbers give the same bytes."""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.drawing import (
    COLOURS,
    DASHES,
    FAINT,
    HATCHES,
    INK,
    MARKERS,
    MOST_SERIES,
    PAPER,
    WIDTH_IN,
    Drawing,
    add_legend,
    new_figure,
    set_title,
    settle,
    style,
)
from experiments.report.svg import printable
from experiments.report.tables import Bars, Calibration, Curve, Estimate, Line, Report
from refavs.choices import PRIMARY, SCORE

LABEL_WIDTH = 24


def report_figures(report: Report) -> tuple[Drawing, ...]:
    """Every figure for which the report has numbers."""
    protocol = report.protocols[0] if report.protocols else ""
    order = list(dict.fromkeys([report.reference, *(curve.label for curve in report.curves)]))
    found: list[Drawing | None] = [
        draw_beta(report.beta, protocol),
        draw_bars("ablations", report.ablations, order),
        draw_bars("dimensions", report.dimensions, order),
        draw_bars("categories", report.categories, order),
        draw_curves(report.curves, order),
        draw_calibration(report.calibrations, order),
    ]
    return tuple(drawing for drawing in found if drawing is not None)


def draw_beta(lines: Sequence[Line], protocol: str) -> Drawing | None:
    """The primary metric in % against a setting, one line per split, with intervals; None without lines."""
    if not lines:
        return None
    measure = f"{PRIMARY} (%)"
    lines = [
        dataclasses.replace(line, estimates=tuple(_cut(point, measure) for point in line.estimates))
        for line in lines[:MOST_SERIES]
    ]
    axis = lines[0].axis
    symbol = axis.partition(",")[0]
    title = f"{PRIMARY} against {symbol}, {protocol} protocol"
    with style("beta"):
        figure, axes = new_figure(3.0, title)
        handles = []
        for place, line in enumerate(lines):
            known = [(x, point) for x, point in zip(line.x, line.estimates, strict=True) if point.value is not None]
            shift = (place - (len(lines) - 1) / 2) * 0.01 * (max(line.x, default=0) - min(line.x, default=0))
            xs, points = [x + shift for x, _ in known], [point for _, point in known]
            handles.append(
                axes.errorbar(
                    xs, _values(points), yerr=_error_bars(points), color=COLOURS[place],
                    linestyle=DASHES[place], marker=MARKERS[place], markersize=5, capsize=3, linewidth=1.6,
                )
            )  # fmt: skip
        ticks = sorted({x for line in lines for x in line.x})
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        low, high = _limits(point for line in lines for point in line.estimates)
        axes.set_ylim(max(low - 0.05 * (high - low), 0.0), high + 0.05 * (high - low))
        axes.set(xlabel=axis, ylabel=measure)
        add_legend(figure, handles, [line.label for line in lines])
        settle(figure)
    values = "; ".join(
        f"{line.label}: " + ", ".join(f"{_words(p)} at {x:g}" for x, p in zip(line.x, line.estimates, strict=True))
        for line in lines
    )
    return Drawing(
        name="beta", title=title, figure=figure, alt=printable(f"{title}. {values}"),
        caption=f"{PRIMARY} by {symbol}, mean over seeds; {_bars_mean(p for line in lines for p in line.estimates)}. "
        f"Protocol: {protocol}.",
    )  # fmt: skip


def draw_bars(name: str, bars: Bars | None, order: Sequence[str] = ()) -> Drawing | None:
    """Horizontal bars in groups, with intervals and values; None without bars.

    A single series is labelled by its groups; several series share a legend.

    Args:
        order: labels in the order of their colours, so that a trial has the same colour in every figure.
    """
    if bars is None or not bars.groups or not bars.series:
        return None
    series = [
        dataclasses.replace(one, estimates=tuple(_cut(point, bars.measure) for point in one.estimates))
        for one in bars.series[:MOST_SERIES]
    ]
    styles = _styles([one.label for one in series], order)
    title = f"{bars.title}, {bars.protocol} protocol"
    step = len(series) + (0.6 if len(series) > 1 else 0.25)
    limits = _limits(point for one in series for point in one.estimates)
    with style(name):
        height = 0.9 + 0.2 * step * len(bars.groups) + 0.18 * (len(series) > 1) * (1 + len(series) // 3)
        figure, axes = new_figure(max(height, 1.6), title)
        handles = []
        for place, one in enumerate(series):
            ys = step * np.arange(len(bars.groups)) + place
            handles.append(_draw_series(axes, ys, one.estimates, styles[place], one.kind))
        counts = bars.counts or (None,) * len(bars.groups)
        labels = [_label(group, count) for group, count in zip(bars.groups, counts, strict=True)]
        axes.set_yticks(step * np.arange(len(labels)) + (len(series) - 1) / 2, labels)
        axes.set_ylim(step * len(labels) - 0.5 * (step - len(series)) - 0.4, -0.6)
        axes.set(xlabel=printable(bars.measure), xlim=(min(0.0, limits[0]), 1.12 * limits[1]))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if len(series) > 1:
            add_legend(figure, handles, [one.label for one in series])
        settle(figure)
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


def draw_curves(curves: Sequence[Curve], order: Sequence[str] = ()) -> Drawing | None:
    """Training loss and J on val by epoch: a thin line per seed, a thick one for their mean; None without curves.

    Args:
        order: labels in the order of their colours; if there are too many, the first are shown.
    """
    score = SCORE
    panels = {"train/loss": ("training loss", 1.0), score: (f"{PRIMARY} on val (%)", 100.0)}
    wanted = [measure for measure in panels if any(curve.measure == measure for curve in curves)]
    if not wanted:
        return None
    labels = _first([curve.label for curve in curves], order)
    styles = dict(zip(labels, _styles(labels, order), strict=True))
    title = "Learning curves" + (f", {PRIMARY} of the canonical protocol" if score in wanted else "")
    with style("curves"):
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 1.9 * len(wanted)), layout="constrained")
        every = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
        set_title(every[0], title)
        handles: dict[str, Any] = {}
        for axes, measure in zip(every, wanted, strict=True):
            axes.set_ylabel(panels[measure][0])
            for label in labels:
                chosen = [curve for curve in curves if curve.label == label and curve.measure == measure]
                if chosen:
                    handles[label] = _draw_curves(axes, chosen, panels[measure][1], styles[label])
        every[-1].set_xlabel("epoch")
        every[-1].xaxis.get_major_locator().set_params(integer=True)
        add_legend(figure, list(handles.values()), list(handles))
        settle(figure)
    left_out = len({curve.label for curve in curves}) - len(labels)
    caption = "Each seed thin, the mean over seeds thick. The loss is the mean over the batches of an epoch, "
    caption += f"{PRIMARY} that of the split val after it. Protocol: canonical."
    caption += f" {left_out} more trials are not drawn." if left_out else ""
    ends = "; ".join(
        f"{curve.label}, seed {curve.seed}: {curve.measure} {curve.values[-1]:.3g} after {curve.epochs[-1]} epochs"
        for curve in curves if curve.label in labels and curve.measure in wanted and curve.values
    )  # fmt: skip
    return Drawing(name="curves", title=title, caption=caption, figure=figure, alt=printable(f"{title}. {ends}"))


def draw_calibration(calibrations: Sequence[Calibration], order: Sequence[str] = ()) -> Drawing | None:
    """Reliability of p(object): the model's confidence against the frequency of objects; None without runs.

    Args:
        order: as for `draw_curves`.
    """
    labels = _first([one.label for one in calibrations], order)
    chosen = [next(one for one in calibrations if one.label == label) for label in labels]
    if not chosen:
        return None
    title = "Calibration of p(object), per frame"
    with style("calibration"):
        figure = Figure(figsize=(WIDTH_IN, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        set_title(upper, title)
        upper.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        handles = []
        for place, one in zip(_styles(labels, order), chosen, strict=True):
            prob, share, count = (np.array(part, float) for part in (one.mean_prob, one.share_object, one.num_frames))
            known = ~(np.isnan(prob) | np.isnan(share)) & (count > 0)
            look = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": DASHES[place], "linewidth": 1.6}
            handles += upper.plot(prob[known], share[known], markersize=5, **look)
            lower.stairs(count, one.edges, color=COLOURS[place], linestyle=DASHES[place], linewidth=1.4)
        upper.set(ylabel="share of frames\nwith an object", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        lower.set(xlabel="largest probability of any pixel of the frame", ylabel="frames", ylim=(0, None))
        lower.yaxis.get_major_locator().set_params(integer=True, nbins=3)
        add_legend(figure, handles, [f"{one.label} (ECE {calibration_error(one):.3f})" for one in chosen])
        settle(figure)
    left_out = len(calibrations) - len(chosen)
    caption = (
        "Frames of the test splits, all seeds together, in bins by the largest probability the model gives any of "
        "their pixels; below, the number of frames in each bin. On the dotted diagonal the model is calibrated. "
        "ECE is the mean distance from it, weighted by frames. Protocol: none, no mask is scored."
    ) + (f" {left_out} more trials are not drawn." if left_out else "")  # fmt: skip
    errors = ", ".join(f"{one.label} {calibration_error(one):.3f}" for one in chosen)
    return Drawing(
        name="calibration", title=title, caption=caption, figure=figure,
        alt=printable(f"{title}. Expected calibration error: {errors}"),
    )  # fmt: skip


def calibration_error(calibration: Calibration) -> float:
    """Expected calibration error: mean distance between probability and share over bins, weighted by frames."""
    prob, share, count = (
        np.array(part, float) for part in (calibration.mean_prob, calibration.share_object, calibration.num_frames)
    )
    distance = np.where(count > 0, np.abs(np.nan_to_num(prob) - np.nan_to_num(share)), 0.0)
    return float((distance * count).sum() / count.sum()) if count.sum() else float("nan")


def _draw_series(
    axes: Axes, ys: np.ndarray, estimates: Sequence[Estimate], place: int, kind: str
) -> Any:
    values = _values(estimates)
    colour = FAINT if kind == "control" else COLOURS[place]
    drawn = axes.barh(
        ys, np.nan_to_num(values), height=0.8, color=colour, hatch=HATCHES[place], edgecolor=PAPER, linewidth=0
    )  # fmt: skip
    for y, point in zip(ys, estimates, strict=True):
        end = 0.0 if point.value is None else point.value
        if point.low is not None and point.high is not None:
            axes.errorbar(
                [end], [y], xerr=_error_bars([point]), color=INK, capsize=2.5, linewidth=1.1
            )  # fmt: skip
            end = max(end, point.high)
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


def _label(group: str, count: int | None) -> str:
    text = textwrap.fill(printable(group), LABEL_WIDTH, max_lines=2, placeholder=" …")
    return text if count is None else f"{text} (n={count})"


def _first(labels: Iterable[str], order: Sequence[str]) -> list[str]:
    """The first labels, as many as there are styles; those in `order` come first."""
    known = dict.fromkeys(labels)
    first = [label for label in order if label in known]
    return [*first, *(label for label in known if label not in first)][:MOST_SERIES]


def _limits(points: Iterable[Estimate]) -> tuple[float, float]:
    """The smallest and largest value including intervals, never equal."""
    ends = [end for p in points for end in (p.value, p.low, p.high) if end is not None]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _cut(point: Estimate, measure: str) -> Estimate:
    """Clips a t interval to the range of a percentage."""
    if not measure.endswith("(%)") or point.low is None or point.high is None:
        return point
    return dataclasses.replace(point, low=max(point.low, 0.0), high=min(point.high, 100.0))


def _styles(labels: Sequence[str], order: Sequence[str]) -> list[int]:
    """A distinct colour index for each label: its position in `order` if that has a colour, else a free one."""
    known = {label: place for place, label in enumerate(order[:MOST_SERIES]) if label in labels}
    free = iter(place for place in range(MOST_SERIES) if place not in known.values())
    return [known[label] if label in known else next(free) for label in labels]


def _values(points: Sequence[Estimate]) -> np.ndarray:
    """The means; NaN for missing ones."""
    return np.array([point.value for point in points], np.float64)


def _error_bars(points: Sequence[Estimate]) -> np.ndarray:
    """Distances to the lower and upper bounds; zero for a point without an interval."""
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

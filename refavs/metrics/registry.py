"""The table of metrics: evaluation computes them, tables and figures show them, and a search can optimise any of them.

A package adds a metric with an entry point of the same name:

    # pyproject.toml
    [project.entry-points."refavs.metrics"]
    area_error = "my_metrics:AREA_ERROR"
    centre_miss = "my_metrics:CENTRE_MISS"

    # my_metrics.py
    from refavs.metrics.registry import Metric

    # From built-in counts: how far the predicted area is from the object's.
    AREA_ERROR = Metric(
        name="area_error", unit="%", better="lower", heading="area error",
        per_expression=lambda counts: counts.over_frames((counts.pred - counts.target).abs() / counts.num_pixels),
    )

    # With a count of its own: how often the centre pixel is wrong, over the frames with an object.
    def count(probs, masks):  # probabilities and masks of frames, (n h w)
        middle = masks.shape[-2] // 2, masks.shape[-1] // 2
        return {"wrong": (probs[:, *middle] > 0.5) != masks[:, *middle]}

    def per_expression(counts):  # a ratio of sums: numerator and denominator of each expression
        return (counts.own["centre_miss/wrong"] & counts.present).sum(1), counts.present.sum(1)

    CENTRE_MISS = Metric(
        name="centre_miss", unit="%", better="lower", columns=("wrong",), counts=count, per_expression=per_expression,
    )

    # test_my_metrics.py
    from refavs.metrics.contract import check_metric

    def test_metrics_keep_the_contract():
        check_metric(AREA_ERROR)
        check_metric(CENTRE_MISS)
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refavs.choices import PRIMARY
from refavs.metrics.segmentation import FrameCounts, jaccard_per_frame
from refavs.plugins import all_entries
from refavs.terminal.printing import warn

GROUP = "refavs.metrics"
HISTOGRAMS = ("background", "object")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number of each expression, and its mean over a group.

    Attributes:
        name: its name in files and in MLflow, e.g. `test_s/NAME`.
        unit: `%` for a fraction that tables show in percent; values with another or no unit are shown unchanged.
        better: whether higher or lower values are better.
        per_expression: maps the counts of expressions, with axes `b t`, to one value each, NaN if undefined; a group's
            value is the mean of the others. It may return two tensors instead; a group's value is then the ratio of
            their sums.
        counts: additional counts: maps probabilities and masks of any number of frames to one number per frame and
            column. `per_expression` reads them as `counts.own["NAME/COLUMN"]`.
        columns: names of the columns that `counts` returns.
        reads: built-in columns it needs that older statistics may lack.
        heading: heading of the column in tables; empty uses the name.
        on: where tables show it. `objects`: test splits whose expressions refer to an object, and their mean; `nulls`:
            splits whose expressions refer to nothing; `rate`: the first split with objects, next to the nulls.
        bounds: its smallest and largest possible value.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    per_expression: Callable[[FrameCounts], Tensor | tuple[Tensor, Tensor]]
    counts: Callable[[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]], Mapping[str, Tensor]] | None = None
    columns: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    heading: str = ""
    on: Literal["objects", "nulls", "rate"] = "objects"
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def own(self) -> tuple[str, ...]:
        """The columns of its additional counts in a file."""
        return tuple(f"{self.name}/{column}" for column in self.columns)

    def known(self, columns: Container[str]) -> bool:
        """Whether it can be computed from statistics with these columns."""
        return all(column in columns for column in (*self.reads, *self.own))


def _f_score(counts: FrameCounts) -> Tensor:
    return counts.f_sum.amax(-1) / counts.present.sum(1)


def _empty_score(counts: FrameCounts) -> Tensor:
    return counts.over_frames(counts.pred.double() / counts.num_pixels).sqrt()


def _false_empty(counts: FrameCounts) -> tuple[Tensor, Tensor]:
    return (counts.present & (counts.pred == 0)).sum(1), counts.present.sum(1)


# J: mean over the frames; a frame without object counts 1 if nothing is predicted in it, else 0.
JACCARD = Metric(name=PRIMARY, unit="%", better="higher",
                 per_expression=lambda counts: counts.over_frames(jaccard_per_frame(counts)))  # fmt: skip
# F: the largest over 255 thresholds of the mean F over the frames with an object; NaN if none has one.
F_SCORE = Metric(name="F", unit="%", better="higher", reads=HISTOGRAMS, per_expression=_f_score)
# S: sqrt(predicted area / frame area); meaningful only on null expressions.
EMPTY_SCORE = Metric(name="S", unit="", better="lower", on="nulls", per_expression=_empty_score)
# Fraction of the frames with an object in which nothing is predicted. It exposes a head that reaches S = 0 by never
# predicting anything.
FALSE_EMPTY = Metric(name="false_empty", unit="%", better="lower", on="rate", heading="falsely empty",
                     per_expression=_false_empty)  # fmt: skip
BUILT_IN = {
    metric.name: f"{__name__}:{place}" for place, metric in tuple(globals().items()) if isinstance(metric, Metric)
}  # in the order of tables


@cache
def metrics() -> dict[str, Metric]:
    """All metrics by name: the built-in ones, then those of installed packages; warns about entries that are invalid.

    Raises:
        ConfigError: two packages define a metric with the same name.
    """
    found = sorted(all_entries(GROUP, BUILT_IN).items(), key=lambda item: "" if item[0] in BUILT_IN else item[0])
    good = {name: each for name, each in found if isinstance(each, Metric) and each.name == name and "/" not in name}
    for name, each in found:
        if name not in good:
            warn(f"{name!r} of {GROUP} is {str(each)[:99]}; accepted: a Metric of that name, without /; it is left out")
    return good


def own_counts(
    probs: Float[Tensor, "*frames h w"], masks: Bool[Tensor, "*frames h w"], of: Iterable[Metric] | None = None
) -> dict[str, Tensor]:
    """The additional counts of metrics, by column; None means all metrics.

    Raises:
        ValueError: a metric does not return its columns with one number per frame.
    """
    found: dict[str, Tensor] = {}
    *frames, height, width = masks.shape
    for metric in metrics().values() if of is None else of:
        if metric.counts is None:
            continue
        counted = metric.counts(probs.detach().float().reshape(-1, height, width), masks.reshape(-1, height, width))
        shapes = {column: tuple(values.shape) for column, values in counted.items()}
        if shapes != dict.fromkeys(metric.columns, (math.prod(frames),)):
            raise ValueError(f"the metric {metric.name!r} counts {shapes}; accepted: one number for each of "
                             f"{math.prod(frames)} frames in {', '.join(metric.columns)}")
        found |= {f"{metric.name}/{column}": values.reshape(frames) for column, values in counted.items()}
    return found


def sums_of(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Numerators and denominators of expressions; a group's value is the ratio of their sums."""
    return found if isinstance(found, tuple) else (found, ~torch.isnan(found))

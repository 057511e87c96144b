"""Every metric as a running sum over expressions, independent of the size and order of batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from refavs.metrics.registry import metrics, own_counts, sums_of
from refavs.metrics.segmentation import THRESHOLD, FrameCounts, counts_at

Sums = Mapping[str, tuple[Tensor, Tensor]]  # by metric: numerators and denominators of expressions


@dataclass(kw_only=True)
class SegmentationMetrics:
    """Running sums of all metrics; `update` with batches of any size, `merge` across workers, then `compute`.

    Attributes:
        sums: sums of numerators and denominators, by metric.
    """

    num_expressions: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=lambda: dict.fromkeys(metrics(), (0.0, 0.0)))

    def update(
        self, probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t h w"],
        labelled: Bool[Tensor, "b t"] | None = None,
    ) -> None:
        """Adds `b` expressions: probabilities after the sigmoid, and the object's masks (all False if no object)."""
        self.add(expression_sums(batch_counts(probs, masks, labelled)), range(len(probs)))

    def add(self, scored: Sums, rows: Sequence[int]) -> None:
        """Adds the `rows` of expressions that have already been scored."""
        chosen = list(rows)
        self.num_expressions += len(chosen)
        for name, (over, under) in scored.items():
            before = self.sums[name]
            self.sums[name] = before[0] + float(over[chosen].nansum()), before[1] + float(under[chosen].sum())

    def merge(self, other: "SegmentationMetrics") -> "SegmentationMetrics":
        """The metrics of both parts together; changes neither."""
        both = {name: (a + other.sums[name][0], b + other.sums[name][1]) for name, (a, b) in self.sums.items()}
        return SegmentationMetrics(num_expressions=self.num_expressions + other.num_expressions, sums=both)

    def compute(self) -> dict[str, float]:
        """Each metric by name, as fractions; NaN if it is undefined for all expressions."""
        return {name: over / under if under else math.nan for name, (over, under) in self.sums.items()}


def batch_counts(
    probs: Float[Tensor, "b t h w"], masks: Bool[Tensor, "b t h w"], labelled: Bool[Tensor, "b t"] | None = None
) -> FrameCounts:
    """The counts that all metrics need; `Recorder.add` also counts what is written to a file."""
    return counts_at(probs, masks, THRESHOLD, labelled, own_counts(probs, masks))


def expression_sums(counts: FrameCounts) -> dict[str, tuple[Tensor, Tensor]]:
    """Numerator and denominator of each metric for each expression."""
    return {name: sums_of(metric.per_expression(counts)) for name, metric in metrics().items()}


def add_to_groups(
    groups: dict[str, SegmentationMetrics], counts: FrameCounts, names: Sequence[Sequence[str]]
) -> None:
    """Adds each expression of a batch to its groups, creating new groups if needed.

    Args:
        groups: updated in place, e.g. `{"test_s": ..., "test_s/spatial": ...}`.
        names: the groups that each expression belongs to.
    """
    scored = expression_sums(counts)
    rows: dict[str, list[int]] = {}
    for row, chosen in zip(range(len(counts.target)), names, strict=True):
        for name in chosen:
            rows.setdefault(name, []).append(row)
    for name, members in rows.items():
        groups.setdefault(name, SegmentationMetrics()).add(scored, members)

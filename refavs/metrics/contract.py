"""The contract test of metrics: `check_metric(MY_METRIC)` raises an AssertionError if the metric breaks it."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from refavs.metrics.registry import Metric, own_counts, sums_of
from refavs.metrics.segmentation import THRESHOLD, FrameCounts, counts_at

NUM_EXPRESSIONS, NUM_FRAMES, HEIGHT, WIDTH = 7, 4, 24, 32
TOLERANCE = 1e-9
Twin = Callable[[np.ndarray, np.ndarray], float]


def check_metric(metric: Metric, twin: Twin | None = None) -> None:
    """Scores smooth predictions that correlate with their masks, and checks the properties of a metric.

    Values must stay within `bounds` and must not depend on other expressions of a batch, the order, or frames without a
    label. The counts of a frame must not depend on other frames. Parts must add up to the whole.

    Args:
        twin: the metric of one expression in plain NumPy, for probabilities and masks (t h w); NaN if undefined. The
            metric must equal it within 1e-6.
    """
    assert metric.better in ("higher", "lower") and metric.on in ("objects", "nulls", "rate"), f"{metric}"
    assert bool(metric.columns) == (metric.counts is not None), f"{metric.name}: `counts` and `columns` go together"
    probs, masks = example_predictions()
    over, under = _scored(metric, probs, masks)
    assert over.shape == under.shape == (len(probs),), f"{metric.name}: {tuple(over.shape)} values for {len(probs)}"
    values = over / under
    low, high = metric.bounds
    said = values[~values.isnan()]
    assert len(said), f"{metric.name} is undefined for every expression"
    assert ((said >= low) & (said <= high)).all(), f"{metric.name}: values {said.tolist()} outside {metric.bounds}"
    for size in (1, 3):
        parts = [_scored(metric, *part) for part in zip(probs.split(size), masks.split(size), strict=True)]
        _same(metric, "batches", torch.cat([part[0] / part[1] for part in parts]), values)
        _same(metric, "parts", _ratio(parts), _ratio([(over, under)]))
    order = torch.arange(len(probs) - 1, -1, -1)
    backwards = _scored(metric, probs[order], masks[order])
    _same(metric, "the order", (backwards[0] / backwards[1])[order], values)
    labelled = torch.ones(masks.shape[:2], dtype=torch.bool)
    _same(metric, "labels", torch.divide(*_scored(metric, probs, masks, labelled)), values)
    labelled[:, -1] = False
    others = torch.cat([probs[:, :-1], 1 - probs[:, -1:]], 1), torch.cat([masks[:, :-1], ~masks[:, -1:]], 1)
    found = [torch.divide(*_scored(metric, *part, labelled)) for part in ((probs, masks), others)]
    _same(metric, "frames without a label", found[1], found[0])
    if twin is not None:
        expected = [twin(prob.numpy(), mask.numpy()) for prob, mask in zip(probs, masks, strict=True)]
        _same(metric, "the twin", values.double(), torch.tensor(expected, dtype=torch.float64), 1e-6)


def example_predictions() -> tuple[Float[Tensor, "b t h w"], Bool[Tensor, "b t h w"]]:
    """Example data: every third expression and every first frame have no object; one frame has no prediction."""
    maker = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, NUM_EXPRESSIONS * NUM_FRAMES, 1, 5, 6, generator=maker)
    smooth = [functional.interpolate(part, size=(HEIGHT, WIDTH), mode="bilinear")[:, 0] for part in coarse]
    shape = (NUM_EXPRESSIONS, NUM_FRAMES, HEIGHT, WIDTH)
    masks = (smooth[0] > 0.4).reshape(shape)
    probs = (3 * smooth[0] + 2 * smooth[1] - 2).sigmoid().reshape(shape)
    masks[:, 0] = False
    masks[2::3] = False
    probs[1, 2] = 0.01
    return probs, masks


def _scored(metric: Metric, probs: Tensor, masks: Tensor, labelled: Tensor | None = None) -> tuple[Tensor, Tensor]:
    counts: FrameCounts = counts_at(probs, masks, THRESHOLD, labelled, own_counts(probs, masks, [metric]))
    over, under = sums_of(metric.per_expression(counts))
    return over.double(), under.double()


def _ratio(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The value of a group given in parts."""
    over, under = (torch.stack([part[side].nansum() for part in parts]).sum() for side in (0, 1))
    return over / under


def _same(metric: Metric, what: str, found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    close = torch.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True).all()
    assert close, f"{metric.name} depends on {what}: {found.tolist()} and {expected.tolist()}"

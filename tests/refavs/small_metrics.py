"""Metrics as packages would add them."""

import dataclasses

from refavs.metrics import Metric

AREA_ERROR = Metric(
    name="area_error", unit="%", better="lower", heading="area error",
    per_expression=lambda counts: counts.over_frames((counts.pred - counts.target).abs() / counts.num_pixels),
)  # fmt: skip
CENTRE_MISS = Metric(
    name="centre_miss", unit="%", better="lower", columns=("wrong",),
    counts=lambda probs, masks: {"wrong": (probs[:, 12, 16] > 0.5) != masks[:, 12, 16]},
    per_expression=lambda counts: (
        (counts.own["centre_miss/wrong"] & counts.present).sum(1), counts.present.sum(1),
    ),
)  # fmt: skip
OTHER_COUNT = dataclasses.replace(CENTRE_MISS, columns=("right",))
TOP_LEFT_MISS = dataclasses.replace(
    CENTRE_MISS, name="top_left_miss",
    counts=lambda probs, masks: {"wrong": (probs[:, 0, 0] > 0.5) != masks[:, 0, 0]},
    per_expression=lambda counts: counts.over_frames(counts.own["top_left_miss/wrong"].double()),
)  # fmt: skip

"""How far the predicted area is from the object's, as a share of the frame."""

from refavs.metrics.registry import Metric

AREA_ERROR = Metric(
    name="area_error", unit="%", better="lower", heading="area error",
    per_expression=lambda counts: counts.over_frames((counts.pred - counts.target).abs() / counts.num_pixels),
)

"""J, F and S of segmentation masks: streaming sums, the authors' released formulas, and what constants reach."""

from refavs.metrics.controls import best_threshold, constant_controls, grouped_controls, mean_mask
from refavs.metrics.protocols import Scores, canonical, released
from refavs.metrics.segmentation import (
    ExpressionScores,
    SegmentationMetrics,
    merge_groups,
    score_expressions,
    update_groups,
)

__all__ = [
    "ExpressionScores",
    "Scores",
    "SegmentationMetrics",
    "best_threshold",
    "canonical",
    "constant_controls",
    "grouped_controls",
    "mean_mask",
    "merge_groups",
    "released",
    "score_expressions",
    "update_groups",
]

"""J, F and S of segmentation masks: streaming sums, statistics for every protocol, and what constants reach."""

from refavs.metrics.controls import best_threshold, constant_controls, grouped_controls, mean_mask
from refavs.metrics.protocols import Scores, canonical, released
from refavs.metrics.recompute import (
    PROTOCOLS,
    Results,
    all_protocols,
    expression_results,
    grouped,
    protocol_values,
)
from refavs.metrics.segmentation import (
    ExpressionScores,
    SegmentationMetrics,
    add_to_groups,
    expression_scores,
    merge_groups,
    score_expressions,
    update_groups,
)
from refavs.metrics.statistics import Recorder, Statistics, concat
from refavs.metrics.statistics_file import (
    STATISTICS_FILE,
    merge_files,
    read_facts,
    read_statistics,
    statistics_blocks,
    write_statistics,
)

__all__ = [
    "PROTOCOLS",
    "STATISTICS_FILE",
    "ExpressionScores",
    "Recorder",
    "Results",
    "Scores",
    "SegmentationMetrics",
    "Statistics",
    "add_to_groups",
    "all_protocols",
    "best_threshold",
    "canonical",
    "concat",
    "constant_controls",
    "expression_results",
    "expression_scores",
    "grouped",
    "grouped_controls",
    "mean_mask",
    "merge_files",
    "merge_groups",
    "protocol_values",
    "read_facts",
    "read_statistics",
    "released",
    "score_expressions",
    "statistics_blocks",
    "update_groups",
    "write_statistics",
]

"""J, F and S of segmentation masks: streaming sums, statistics for every protocol, and what constants reach."""

from refavs.metrics.constant_baselines import Constants, best_threshold, control_results, mean_mask, text_only
from refavs.metrics.frame_counts import Recorder, Statistics, concat
from refavs.metrics.intervals import (
    Difference,
    Interval,
    SeedScores,
    bootstrap_interval,
    paired_difference,
    scores_of,
    seed_interval,
)
from refavs.metrics.parquet import (
    STATISTICS_FILE,
    merge_files,
    read_facts,
    read_statistics,
    statistics_blocks,
    write_statistics,
)
from refavs.metrics.protocols import Scores, canonical, released
from refavs.metrics.reference import (
    PROTOCOLS,
    Results,
    all_protocols,
    expression_results,
    grouped,
    histograms_of,
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
from refavs.metrics.text_baseline import TextControl

__all__ = [
    "PROTOCOLS",
    "STATISTICS_FILE",
    "Constants",
    "Difference",
    "ExpressionScores",
    "Interval",
    "Recorder",
    "Results",
    "Scores",
    "SeedScores",
    "SegmentationMetrics",
    "Statistics",
    "TextControl",
    "add_to_groups",
    "all_protocols",
    "best_threshold",
    "bootstrap_interval",
    "canonical",
    "concat",
    "control_results",
    "expression_results",
    "expression_scores",
    "grouped",
    "histograms_of",
    "mean_mask",
    "merge_files",
    "merge_groups",
    "paired_difference",
    "protocol_values",
    "read_facts",
    "read_statistics",
    "released",
    "score_expressions",
    "scores_of",
    "seed_interval",
    "statistics_blocks",
    "text_only",
    "update_groups",
    "write_statistics",
]

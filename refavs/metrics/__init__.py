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
    read_facts,
    statistics_blocks,
    write_statistics,
)
from refavs.metrics.protocols import Scores, canonical, released
from refavs.metrics.reference import (
    PROTOCOLS,
    Results,
    expression_results,
    grouped,
    histograms_of,
    protocol_values,
)
from refavs.metrics.registry import PRIMARY, Metric, metrics
from refavs.metrics.sums import SegmentationMetrics, add_to_groups, batch_counts
from refavs.metrics.text_baseline import TextControl

__all__ = [
    "PRIMARY",
    "PROTOCOLS",
    "STATISTICS_FILE",
    "Constants",
    "Difference",
    "Interval",
    "Metric",
    "Recorder",
    "Results",
    "Scores",
    "SeedScores",
    "SegmentationMetrics",
    "Statistics",
    "TextControl",
    "add_to_groups",
    "batch_counts",
    "best_threshold",
    "bootstrap_interval",
    "canonical",
    "concat",
    "control_results",
    "expression_results",
    "grouped",
    "histograms_of",
    "mean_mask",
    "metrics",
    "paired_difference",
    "protocol_values",
    "read_facts",
    "released",
    "scores_of",
    "seed_interval",
    "statistics_blocks",
    "text_only",
    "write_statistics",
]

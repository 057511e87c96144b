"""Segmentation metrics: their table, streaming sums, statistics for every protocol and constant baselines."""

from refavs.metrics.frame_counts import Recorder, Statistics, concat
from refavs.metrics.intervals import (
    Difference,
    Interval,
    bootstrap_interval,
    paired_difference,
    scores_of,
    seed_interval,
)
from refavs.metrics.parquet import STATISTICS_FILE, read_facts, statistics_blocks, write_statistics
from refavs.metrics.protocols import Scores, canonical, released
from refavs.metrics.reference import PROTOCOLS, Results, expression_results, grouped, histograms_of, protocol_values
from refavs.metrics.registry import Metric, metrics
from refavs.metrics.sums import SegmentationMetrics, add_to_groups, batch_counts

__all__ = [
    "PROTOCOLS", "STATISTICS_FILE", "Difference", "Interval", "Metric", "Recorder", "Results", "Scores",
    "SegmentationMetrics", "Statistics", "add_to_groups", "batch_counts", "bootstrap_interval", "canonical", "concat",
    "expression_results", "grouped", "histograms_of", "metrics", "paired_difference", "protocol_values", "read_facts",
    "released", "scores_of", "seed_interval", "statistics_blocks", "write_statistics",
]  # fmt: skip

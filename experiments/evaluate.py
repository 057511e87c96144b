"""J, F and S of a head on the splits of a store, as a whole and by dimension, and of the constant predictions."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from refavs.console import ProgressBar
from refavs.data.dataset import Batch, batches
from refavs.metrics import (
    Recorder,
    SegmentationMetrics,
    add_to_groups,
    best_threshold,
    expression_scores,
    grouped_controls,
    mean_mask,
    score_expressions,
    write_statistics,
)
from refavs.model.decoder import predict
from refavs.model.eemc import EEMC

if TYPE_CHECKING:
    from experiments.train import TrainConfig
    from refavs.store import FeatureStore

MEASURES = ("J", "F", "S", "false_empty")
TEST_SPLITS = ("test_s", "test_u", "test_n")
MIX = ("test_s", "test_u")


def evaluate_splits(
    config: "TrainConfig", model: EEMC, store: "FeatureStore", splits: Sequence[str], device: torch.device,
    recorder: Recorder | None = None,
) -> dict[str, float]:
    """Metrics as fractions by name: `test_s/J`, `test_s/acoustic/J`, and where both are there `mix/J`.

    A split without expressions, and a measure that says nothing on a split, is left out.

    Args:
        recorder: receives the statistics of each expression and frame, from which all other protocols follow.
    """  # fmt: skip
    groups: dict[str, SegmentationMetrics] = {}
    rows = rows_of(store, splits)
    place = 0
    for batch, probs in predictions(config, model, store, rows, device):
        assert batch.mask is not None
        names = [group_names(*places) for places in zip(batch.split, batch.dimension, strict=True)]
        if recorder is None:
            scores = score_expressions(probs, batch.mask)
        else:
            scores = expression_scores(recorder.add(rows[place : place + len(batch)], probs, batch.mask))
        add_to_groups(groups, scores, names)
        place += len(batch)
    return named_values({name: metrics.compute() for name, metrics in groups.items()})


def record_splits(
    config: "TrainConfig", model: EEMC, store: "FeatureStore", splits: Sequence[str], device: torch.device, path: Path
) -> dict[str, float]:
    """As `evaluate_splits`, and writes the statistics of the same inference to `path`; none for splits without masks.

    Raises:
        StatisticsError: the probabilities are not numbers; names the expressions.
    """
    recorder = Recorder(table=store.expressions, store=store.fingerprint)
    metrics = evaluate_splits(config, model, store, splits, device, recorder)
    if metrics:
        write_statistics(path, recorder.statistics())
    return metrics


@torch.no_grad()
def predictions(
    config: "TrainConfig", model: EEMC, store: "FeatureStore", rows: Sequence[int], device: torch.device
) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of `rows` with the probabilities of each pixel at the size of the masks."""
    was_training = model.training
    model.eval()
    for batch in batches(store, rows, config.eval_batch_size, seed=None, epoch=0):
        batch = batch.to(device)
        assert batch.mask is not None
        with autocast(config, device):
            output = model(batch)
        height, width = batch.mask.shape[-2:]
        yield batch, predict(output, (height, width))
    model.train(was_training)


def autocast(config: "TrainConfig", device: torch.device) -> torch.autocast:
    """The context in which the model runs at the precision of `config`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16")


def rows_of(store: "FeatureStore", splits: Sequence[str]) -> list[int]:
    """The expressions of `splits` that have masks, clip by clip so that each clip's maps are read once."""
    table = store.expressions
    rows = np.flatnonzero((table["split"].isin(list(splits)) & (table["object"] >= 0)).to_numpy())
    clips = table["clip"].to_numpy()[rows]
    return [int(row) for row in rows[np.argsort(clips, kind="stable")]]


def controls(store: "FeatureStore") -> dict[str, dict[str, float]]:
    """What constant predictions reach on the test splits, by the name of the constant and of the metric."""
    table = store.expressions

    training = Counter(int(table["object"].iloc[row]) for row in rows_of(store, ("train",)))
    if not training:
        return {}
    tested: dict[int, Counter[str]] = {}
    for row in rows_of(store, TEST_SPLITS):
        names = group_names(table["split"].iloc[row], table["dimension"].iloc[row])
        tested.setdefault(int(table["object"].iloc[row]), Counter()).update(names)
    with ProgressBar("constant predictions", 2 * len(training) + len(tested), "masks") as bar:

        def masks(objects: Iterable[int]) -> Iterator[Tensor]:
            for index in objects:
                mask = store.mask(index)
                assert mask is not None  # `rows_of` gives only expressions that have one
                yield mask
                bar.advance()

        mean = mean_mask(masks(training), training.values())
        threshold = best_threshold(mean, masks(training), training.values())
        found = grouped_controls(mean, zip(masks(tested), tested.values(), strict=True), threshold)
    return {
        name: named_values({group: sums.compute() for group, sums in groups.items()})
        for name, groups in found.items() if groups
    }


def group_names(split: str, dimension: str) -> list[str]:
    """The groups in which an expression is counted."""
    return [split, f"{split}/{dimension}"] if dimension else [split]


def named_values(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """One level of names, without the values that are not numbers; Mix is the mean of seen and unseen."""
    values = {
        f"{group}/{measure}": scores[measure]
        for group, scores in sorted(groups.items())
        for measure in MEASURES
        if math.isfinite(scores[measure])
    }
    for measure in MEASURES[:2]:
        parts = [values[f"{split}/{measure}"] for split in MIX if f"{split}/{measure}" in values]
        if len(parts) == len(MIX):
            values[f"mix/{measure}"] = sum(parts) / len(parts)
    return values

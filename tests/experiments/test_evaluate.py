"""Evaluation: names and groups of the metrics, also for a store that lacks some parts."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.grid.config import TrainConfig, TrialConfig
from experiments.training.evaluate import (
    Trained,
    evaluate_together,
    named_values,
    predictions,
    record_together,
    rows_of,
)
from experiments.training.loop import build_model
from refavs.config import replace
from refavs.data.splits import Splits
from refavs.metrics import canonical, expression_results, grouped, protocol_values, statistics_blocks
from refavs.model.heads.protocol import Head
from refavs.store import FeatureStore
from tests.experiments.small_store import make_store

CPU = torch.device("cpu")
SMALL = {"model.num_layers": 1, "model.num_queries": 2, "model.num_heads": 2, "model.decoder_layers": 0,
         "model.visual_downsample": 2}  # fmt: skip


def evaluated(
    model: Head, store: FeatureStore, splits: Sequence[str], path: Path | None = None, config: TrainConfig | None = None
) -> dict[str, float]:
    """The metrics of one head; its statistics are written to `path`."""
    heads = [Trained(config or TrainConfig(), model)]
    (found,) = (evaluate_together(heads, store, splits, CPU, [None]) if path is None
                else record_together(heads, store, splits, CPU, [path]))  # fmt: skip
    if isinstance(found, Exception):
        raise found
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


@pytest.mark.long
def test_evaluation_equals_the_mean_of_single_expressions(store: FeatureStore) -> None:
    torch.manual_seed(0)
    model = build_model(replace(TrialConfig(), SMALL), store)
    found = evaluated(model, store, ("test_s", "test_u"))
    scores: dict[str, list[float]] = {}
    rows = rows_of(store, ("test_s", "test_u"))
    for batch, probs in predictions(TrainConfig(eval_batch_size=1), model, store, rows, CPU):
        assert batch.mask is not None
        score = canonical(probs[0].clamp(1e-6, 1 - 1e-6).logit(), batch.mask[0]).J
        for group in (batch.split[0], f"{batch.split[0]}/{batch.dimension[0]}"):
            scores.setdefault(group, []).append(score)
    for group, values in scores.items():
        assert found[f"{group}/J"] == pytest.approx(np.mean(values), abs=1e-6)
    assert found["mix/J"] == pytest.approx((found["test_s/J"] + found["test_u/J"]) / 2)


@pytest.mark.long
def test_statistics_come_from_the_same_inference(store: FeatureStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(replace(TrialConfig(), SMALL), store)
    splits = ("test_u", "test_n", "test_s")
    plain = evaluated(model, store, splits)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, size in zip(files, (16, 5), strict=True):
        assert evaluated(model, store, splits, path, TrainConfig(eval_batch_size=size)) == pytest.approx(plain)
    results = expression_results(statistics_blocks(files[0]))
    assert results.facts["store"] == store.fingerprint and results.facts["num_frames"] == store.seconds
    assert results.expressions["row"].tolist() == sorted(rows_of(store, splits)), "in the file's order"
    for columns in (["split"], ["split", "dimension"]):
        for name, rows in grouped(results.expressions, columns).items():
            found = protocol_values(results, "canonical", rows)
            for measure in ("J", "F", "S", "false_empty"):
                assert found[measure] == pytest.approx(plain.get(f"{name}/{measure}", np.nan), nan_ok=True)
    if files[0].read_bytes() != files[1].read_bytes():  # the model may round otherwise in another batch
        other = expression_results(statistics_blocks(files[1]))
        assert other.values["canonical/J"] == pytest.approx(results.values["canonical/J"], abs=1e-3)


def test_splits_without_masks_leave_no_statistics(store: FeatureStore, tmp_path: Path) -> None:
    model = build_model(replace(TrialConfig(), SMALL), store)
    assert evaluated(model, store, ("nowhere",), tmp_path / "a.parquet") == {}
    assert not list(tmp_path.iterdir())


def test_evaluation_leaves_the_model_training_as_it_was(store: FeatureStore) -> None:
    model = build_model(replace(TrialConfig(), SMALL), store)
    for training in (True, False):
        model.train(training)
        evaluated(model, store, ("val",))
        assert model.training is training


def test_evaluation_of_an_absent_split_is_empty(store: FeatureStore) -> None:
    model = build_model(replace(TrialConfig(), SMALL), store)
    assert evaluated(model, store, ("nowhere",)) == {}


def test_values_that_say_nothing_are_left_out() -> None:
    nothing = {"J": 1.0, "F": float("nan"), "S": 0.0, "false_empty": float("nan")}
    assert named_values({"test_n": nothing}, Splits.of({})) == {"test_n/J": 1.0, "test_n/S": 0.0}


def test_rows_of_one_clip_are_adjacent(store: FeatureStore) -> None:
    rows = rows_of(store, ("train", "test_u"))
    clips = store.expressions["clip_id"].iloc[rows].tolist()
    assert len(rows) == 24 and sum(a != b for a, b in itertools.pairwise(clips)) == 7

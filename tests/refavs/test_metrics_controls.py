"""Constant predictions against the same predictions scored as a model's."""

import csv
import functools
import math
import operator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from refavs.metrics import Results, SegmentationMetrics, protocol_values
from refavs.metrics.constant_baselines import Constants, MaskSum, best_of, centredness, control_results, text_only
from refavs.metrics.constant_counts import ConstantPrediction, Levels, constant_statistics, threshold_jaccard
from refavs.metrics.frame_counts import HISTOGRAMS, PEAK, frame_statistics
from refavs.metrics.reference import spread
from refavs.metrics.segmentation import curve_thresholds
from refavs.metrics.text_baseline import TextControl


def training_masks(num_expressions: int = 5, num_frames: int = 3, size: int = 10) -> list[torch.Tensor]:
    """Blobs that favour the middle, so that the mean mask is a hill below one half at its foot."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    masks = []
    for _ in range(num_expressions):
        y, x = rng.normal(size / 2, 1.5, size=(2, num_frames, 1, 1))
        masks.append(torch.from_numpy((rows - y) ** 2 + (columns - x) ** 2 < 6))
    masks[1] = torch.zeros_like(masks[1])
    return masks


def mean_jaccard(pred: np.ndarray, masks: list[torch.Tensor]) -> float:
    scores = []
    for mask in (frame.numpy() for expression in masks for frame in expression):
        scores.append((pred & mask).sum() / (pred | mask).sum() if mask.any() else float(not pred.any()))
    return float(np.mean(scores))


def mean_mask(masks: list[torch.Tensor]) -> torch.Tensor:
    return functools.reduce(operator.add, map(MaskSum.of, masks)).mean()


def best_threshold(scores: torch.Tensor, masks: list[torch.Tensor]) -> float:
    return best_of(threshold_jaccard(Levels(scores), mask) for mask in masks)


def test_mean_mask_equals_numpy_mean() -> None:
    masks = training_masks()
    np.testing.assert_allclose(mean_mask(masks).numpy(), torch.cat(masks).numpy().mean(0), rtol=1e-6)


def test_best_threshold_is_the_best_of_all_levels() -> None:
    masks = training_masks()
    mean = mean_mask(masks)
    chosen = mean_jaccard(mean.numpy() >= best_threshold(mean, masks), masks)
    levels = [*np.unique(mean.numpy()), 2.0]
    assert chosen == pytest.approx(max(mean_jaccard(mean.numpy() >= level, masks) for level in levels))
    assert chosen > mean_jaccard(mean.numpy() > 0.5, masks)


def test_best_disc_is_the_best_of_all_radii() -> None:
    masks = training_masks()
    centre = centredness(10, 10)
    chosen = mean_jaccard(centre.numpy() >= best_threshold(centre, masks), masks)
    radii = np.hypot(*(np.mgrid[:10, :10] - 4.5))
    assert chosen == pytest.approx(max(mean_jaccard(radii <= radius, masks) for radius in np.unique(radii)))


def fitted(masks: list[torch.Tensor]) -> Constants:
    mean = mean_mask(masks)
    return Constants(mean=mean, mean_threshold=best_threshold(mean, masks),
                     centre_threshold=best_threshold(centredness(*mean.shape), masks))  # fmt: skip


def canonical(results: Results) -> dict[str, float]:
    return protocol_values(results, "canonical", np.arange(len(results)))


def test_constants_equal_streaming_metrics_of_the_same_predictions() -> None:
    masks = training_masks()
    constants = fitted(masks)
    found = control_results(constants, iter(masks), "x")
    assert list(found) == [
        "all background", "all foreground", "mean training mask", "mean training mask, best threshold", "centred disc",
    ]  # fmt: skip
    for name in ("all background", "all foreground", "mean training mask"):
        metrics = SegmentationMetrics()
        for mask in masks:
            metrics.update(constants.predictions()[name][0].expand(1, *mask.shape), mask[None])
        values = canonical(found[name])
        for measure in ("J", "F", "S", "false_empty"):
            assert values[measure] == pytest.approx(metrics.compute()[measure]), (name, measure)


def test_constants_know_empty_and_full_predictions() -> None:
    masks = training_masks()
    found = control_results(fitted(masks), masks, "x")
    empty, full = canonical(found["all background"]), canonical(found["all foreground"])
    assert (empty["J"], empty["S"], empty["false_empty"], empty["background"]) == (pytest.approx(1 / 5), 0, 1, 1)
    assert (full["S"], full["false_empty"], full["background"]) == (1, 0, 0)
    assert empty["F"] == full["F"]


def test_best_constants_count_their_best_masks_and_keep_their_curve() -> None:
    masks = training_masks()
    constants = fitted(masks)
    found = control_results(constants, masks, "x")
    best = canonical(found["mean training mask, best threshold"])
    pred = constants.mean.numpy() >= constants.mean_threshold
    assert best["J"] == pytest.approx(mean_jaccard(pred, masks))
    assert best["S"] == pytest.approx(math.sqrt(pred.mean()))
    assert best["F"] == canonical(found["mean training mask"])["F"]
    disc = centredness(10, 10).numpy() >= constants.centre_threshold
    assert canonical(found["centred disc"])["J"] == pytest.approx(mean_jaccard(disc, masks))


@pytest.mark.long
@pytest.mark.parametrize(("size", "num_frames"), [(10, 3), (256, 2), (300, 4)])
def test_constants_are_counted_as_a_models_predictions_are(size: int, num_frames: int) -> None:
    masks = [mask[:num_frames] for mask in training_masks(4, num_frames, size)]
    masks[2] = torch.rand(masks[2].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    constants, target = fitted(masks), torch.stack(masks)
    maps = constants.predictions()
    found = constant_statistics({name: ConstantPrediction(*pair) for name, pair in maps.items()}, target)
    for name, (scores, pred) in maps.items():
        hard, soft = (frame_statistics(part.expand(target.shape), target) for part in (pred, scores))
        for count, values in {**hard, **{each: soft[each] for each in HISTOGRAMS}}.items():
            if count != PEAK:  # which is the map's, and no score's
                np.testing.assert_array_equal(found[name][count], values, f"{name}, {count}", strict=True)
        assert set(found[name]) == {*hard} - {PEAK}


def test_jaccard_by_threshold_is_that_of_each_mask_cut_out() -> None:
    masks = training_masks()
    mean = mean_mask(masks)
    for mask in masks:
        found = threshold_jaccard(Levels(mean), mask)
        for place, threshold in enumerate(curve_thresholds().tolist()):
            assert found[place].item() == pytest.approx(len(mask) * mean_jaccard(mean.numpy() >= threshold, [mask]))


@pytest.mark.long
def test_many_masks_are_scored_as_each_alone() -> None:
    masks = training_masks(20)
    constants = fitted(masks)
    whole = control_results(constants, masks, "x")["centred disc"]
    alone = [control_results(constants, [mask], "x")["centred disc"].values["davis/F"][0] for mask in masks]
    assert whole.values["davis/F"].tolist() == alone and whole.expressions["row"].tolist() == list(range(20))


def test_text_only_takes_nothing_or_the_mean_mask() -> None:
    masks = training_masks()
    found = control_results(fitted(masks), masks, "x")
    table = pd.DataFrame({"row": range(5), "text": ["null", "cat", "null", "dog", "cat"]})
    found = {name: spread(results, np.arange(5), table) for name, results in found.items()}
    control = TextControl.fit(["null", "null", "cat", "dog"], [True, True, False, False])
    result = text_only(control, found)
    for row, name in enumerate(["all background", "mean training mask, best threshold"] * 2):
        assert result.values["canonical/J"][row] == found[name].values["canonical/J"][row]
        assert result.curves["released"][row].tolist() == found[name].curves["released"][row].tolist()
    assert result.expressions["text"].tolist() == table["text"].tolist()


def test_known_sentences_are_decided_by_their_majority() -> None:
    texts = ["The sounding object"] * 3 + ["the cat"] * 2 + ["a tie"] * 2
    control = TextControl.fit(texts, [True, True, False, False, True, True, False])
    assert control.predict(["The sounding object", "the cat", "a tie"]).tolist() == [True, False, False]


def test_unknown_sentences_are_decided_by_their_words() -> None:
    texts = ["the object making a sound", "the loudest object", "the sounding object", "the cat", "the dog", "a cat"]
    control = TextControl.fit(texts, [True, True, True, False, False, False])
    assert control.predict(["object", "the first sounding object", "cat", "the left dog"]).tolist() == [
        True, True, False, False,
    ]  # fmt: skip
    # By hand: each word once, one imagined sentence with it and one without.
    odds = {word: math.log((a + 1) / 5) - math.log((b + 1) / 5) for word, a, b in (("object", 3, 0), ("cat", 0, 2))}
    assert control.log_odds["object"] == pytest.approx(odds["object"])
    assert control.log_odds["cat"] == pytest.approx(odds["cat"]) and control.prior == 0


def test_training_without_nulls_never_says_empty() -> None:
    control = TextControl.fit(["a cat", "a dog"], [False, False])
    assert not control.predict(["a cat", "nothing at all", ""]).any()
    assert not TextControl.fit([], []).predict(["a cat"]).any()


def test_the_sentence_alone_solves_the_null_split_of_the_benchmark(shared: Path) -> None:
    with (shared / "data" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["split"], row["exp"], row["uid"].startswith("null_")) for row in csv.DictReader(file)]
    train = [row for row in rows if row[0] == "train"]
    control = TextControl.fit([text for _, text, _ in train], [empty for _, _, empty in train])
    share = {
        split: control.predict([text for name, text, _ in rows if name == split]).mean()
        for split in ("test_n", "test_s", "test_u")
    }
    assert share["test_n"] == 1.0, "S = 0 without looking or listening"
    assert share["test_s"] < 0.005 and share["test_u"] < 0.005, "at next to no cost elsewhere"

"""Constant predictions against the same predictions scored as a model's."""

import math

import numpy as np
import pytest
import torch

from refavs.metrics import SegmentationMetrics, best_threshold, constant_controls, grouped_controls, mean_mask


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


def test_mean_mask_equals_numpy_mean() -> None:
    masks = training_masks()
    np.testing.assert_allclose(mean_mask(iter(masks)).numpy(), torch.cat(masks).numpy().mean(0), rtol=1e-6)


def test_mean_mask_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the mean of no masks; expected at least one training expression"):
        mean_mask(iter([]))


def test_best_threshold_is_the_best_of_all_levels() -> None:
    masks = training_masks()
    mean = mean_mask(masks)
    chosen = mean_jaccard(mean.numpy() >= best_threshold(mean, iter(masks)), masks)
    levels = [*np.unique(mean.numpy()), 2.0]
    assert chosen == pytest.approx(max(mean_jaccard(mean.numpy() >= level, masks) for level in levels))
    assert chosen > mean_jaccard(mean.numpy() > 0.5, masks)


def test_constant_controls_equal_streaming_metrics() -> None:
    masks = training_masks()
    mean = mean_mask(masks)
    controls = constant_controls(mean, iter(masks))
    assert list(controls) == ["all background", "all foreground", "mean training mask"]
    for name, probs in zip(controls, (torch.zeros_like(mean), torch.ones_like(mean), mean), strict=True):
        metrics = SegmentationMetrics()
        for mask in masks:
            metrics.update(probs.expand(1, *mask.shape), mask[None])
        assert controls[name] == pytest.approx(metrics.compute())


def test_constant_controls_know_empty_and_full_predictions() -> None:
    masks = training_masks()
    controls = constant_controls(mean_mask(masks), masks)
    assert controls["all background"]["J"] == pytest.approx(1 / 5)
    assert controls["all background"]["S"] == 0.0
    assert controls["all background"]["false_empty"] == 1.0
    assert controls["all foreground"]["S"] == 1.0
    assert controls["all foreground"]["false_empty"] == 0.0
    assert controls["all background"]["F"] == controls["all foreground"]["F"]


def test_constant_controls_with_best_threshold_add_a_row() -> None:
    masks = training_masks()
    mean = mean_mask(masks)
    threshold = best_threshold(mean, masks)
    row = constant_controls(mean, masks, threshold)["mean training mask, best threshold"]
    assert row["J"] == pytest.approx(mean_jaccard(mean.numpy() >= threshold, masks))
    assert row["S"] == pytest.approx(math.sqrt(np.mean(mean.numpy() >= threshold)))


def test_distinct_masks_with_counts_equal_masks_repeated() -> None:
    masks, counts = training_masks(), [3, 1, 2, 1, 4]
    repeated = [mask for mask, count in zip(masks, counts, strict=True) for _ in range(count)]
    mean = mean_mask(masks, counts)
    assert torch.equal(mean, mean_mask(repeated))
    threshold = best_threshold(mean, iter(masks), counts)
    assert threshold == best_threshold(mean, repeated)
    groups = [{"all": count} | ({"even": count} if index % 2 == 0 else {}) for index, count in enumerate(counts)]
    found = grouped_controls(mean, zip(masks, groups, strict=True), threshold)
    even = [mask for index, mask in enumerate(masks) if index % 2 == 0 for _ in range(counts[index])]
    for group, members in (("all", repeated), ("even", even)):
        for name, values in constant_controls(mean, members, threshold).items():
            assert found[name][group].compute() == pytest.approx(values, nan_ok=True)

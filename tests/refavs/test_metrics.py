"""Metrics against plain NumPy twins, and their independence of how expressions are batched."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refavs.metrics import Scores, SegmentationMetrics, add_to_groups, batch_counts, canonical, released
from refavs.metrics.segmentation import _bins, _histogram, curve_thresholds, pixel_histogram, threshold_bins

THRESHOLDS = np.linspace(0, 1 - 1e-10, 255)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


def f_scores_numpy(probs: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """F of each frame with an object (rows) at each threshold (columns), one threshold at a time."""
    rows = []
    for prob, mask in zip(probs, masks, strict=True):
        if not mask.any():
            continue
        row = []
        for threshold in THRESHOLDS.astype(np.float32):
            pred = prob >= threshold
            hits = (pred & mask).sum()
            precision, recall = hits / (pred.sum() + 1e-20), hits / (mask.sum() + 1e-20)
            denominator = 0.3 * precision + recall
            row.append(1.3 * precision * recall / denominator if denominator else 0.0)
        rows.append(row)
    return np.array(rows).reshape(-1, len(THRESHOLDS))


def released_numpy(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    jaccard = []
    for prob, mask in zip(probs, masks, strict=True):
        pred = prob > 0.4
        if mask.any():
            jaccard.append((pred & mask).sum() / ((pred | mask).sum() + 1e-7))
        else:
            jaccard.append((~pred).sum() / mask.size)
    curve = f_scores_numpy(probs, masks)
    f_score = curve.mean(0).max() if len(curve) else 0.0
    return {"J": np.mean(jaccard), "F": f_score, "S": math.sqrt((probs > 0.5).sum() / probs.size)}


def canonical_numpy(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    jaccard = []
    for prob, mask in zip(probs, masks, strict=True):
        pred = prob > 0.5
        union = (pred | mask).sum()
        jaccard.append((pred & mask).sum() / union if mask.any() else float(not pred.any()))
    curve = f_scores_numpy(probs, masks)
    f_score = curve.mean(0).max() if len(curve) else math.nan
    return {"J": np.mean(jaccard), "F": f_score, "S": math.sqrt((probs > 0.5).sum() / probs.size)}


def jfs(scores: Scores) -> list[float]:
    return [scores.J, scores.F, scores.S]


def frames(seed: int, num_frames: int = 5, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know a little of the masks; the first frame has no object, the second no prediction."""
    rng = np.random.default_rng(seed)
    masks = rng.random((num_frames, size, size)) > rng.uniform(0.2, 0.9)
    logits = (rng.normal(size=masks.shape) * 3 + masks * 2).astype(np.float32)
    masks[0] = False
    logits[1] = -9
    return logits, masks


def expressions(seed: int, num_expressions: int, num_frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks (b t h w), some expressions without any object."""
    parts = [frames(seed + i, num_frames) for i in range(num_expressions)]
    probs = torch.stack([torch.from_numpy(sigmoid(logits)) for logits, _ in parts])
    masks = torch.stack([torch.from_numpy(m) for _, m in parts])
    masks[::3] = False
    return probs, masks


def test_released_matches_golden_file(shared: Path) -> None:
    golden = np.load(shared / "golden" / "metrics.npz")
    scores = released(golden["logits"][:, 0], golden["gt"][:, 0])
    assert jfs(scores) == pytest.approx([float(golden[name]) for name in "JFS"], abs=1e-4)
    np.testing.assert_allclose(scores.J_per_frame, golden["J_per_frame"], atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("protocol", "twin"), [(released, released_numpy), (canonical, canonical_numpy)])
def test_protocol_matches_numpy_twin(protocol, twin, seed: int) -> None:
    logits, masks = frames(seed)
    scores, expected = protocol(logits, masks), twin(sigmoid(logits), masks)
    assert jfs(scores) == pytest.approx([expected[name] for name in "JFS"], abs=1e-6)
    assert np.mean(scores.J_per_frame) == pytest.approx(scores.J)


@pytest.mark.parametrize("protocol", [released, canonical])
def test_protocol_takes_tensors_arrays_and_integer_masks(protocol) -> None:
    logits, masks = frames(1)
    from_array = protocol(logits, masks)
    assert protocol(torch.from_numpy(logits), torch.from_numpy(masks).long()) == from_array
    assert protocol(torch.from_numpy(logits).double(), masks.astype(np.uint8)) == from_array


def test_protocols_differ_in_threshold_and_empty_frames() -> None:
    masks = np.zeros((1, 2, 5), bool)
    logits = np.full(masks.shape, -9.0)
    logits[0, 0, 0] = -0.2  # probability .45: predicted at .4, not at .5
    assert jfs(released(logits, masks))[0] == pytest.approx(0.9)
    assert canonical(logits, masks).J == 1.0
    logits[0, 0, 0] = 9.0
    assert canonical(logits, masks).J == 0.0
    assert canonical(logits, masks).S == released(logits, masks).S == pytest.approx(math.sqrt(0.1))
    assert released(logits, masks).F == 0.0
    assert math.isnan(canonical(logits, masks).F)


def test_perfect_prediction_scores_one() -> None:
    masks = np.zeros((2, 6, 6), bool)
    masks[:, 2:4] = True
    for protocol in (released, canonical):
        scores = protocol(np.where(masks, 9.0, -9.0), masks)
        assert jfs(scores)[:2] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("protocol", [released, canonical])
def test_protocol_refuses_other_shapes_and_values(protocol) -> None:
    logits, masks = frames(0)
    with pytest.raises(ValueError, match=r"logits of shape \(5, 12, 12\) and masks of shape \(4, 12, 12\)"):
        protocol(logits, masks[1:])
    with pytest.raises(ValueError, match=r"expected \(N, H, W\)"):
        protocol(logits[:, None], masks[:, None])
    with pytest.raises(ValueError, match=r"masks hold values from 0 to 255; expected booleans or 0 and 1"):
        protocol(logits, masks.astype(np.int64) * 255)


def test_threshold_bins_equal_a_binary_search() -> None:
    edges = curve_thresholds()
    around = [edges, torch.nextafter(edges, torch.tensor(2.0)), torch.nextafter(edges, torch.tensor(-1.0))]
    every = torch.arange(0, 0x3F800001, 4099, dtype=torch.int32).view(torch.float32)
    probs = torch.cat([*around, every]).clamp(0, 1).reshape(1, -1)
    assert torch.equal(threshold_bins(probs), torch.bucketize(probs, edges, right=True, out_int32=True))


def test_histograms_of_processor_and_accelerator_are_equal() -> None:
    edges = curve_thresholds()
    around = [edges, torch.nextafter(edges, torch.tensor(2.0)), torch.nextafter(edges, torch.tensor(-1.0))]
    probs = torch.cat([*around, torch.rand(55, generator=torch.Generator().manual_seed(0))]).clamp(0, 1)
    probs = probs.reshape(2, 10, -1)
    masks = torch.rand(probs.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    flat_probs, flat_masks = probs.flatten(1), masks.flatten(1)
    expected = [
        [np.bincount(threshold_bins(prob[None, None]).flatten()[side], minlength=256) for side in (~mask, mask)]
        for prob, mask in zip(flat_probs, flat_masks, strict=True)
    ]
    np.testing.assert_array_equal(pixel_histogram(probs, masks), expected)
    np.testing.assert_array_equal(_histogram(_bins(flat_probs), flat_masks), expected)  # what an accelerator runs


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_metrics_refuse_values_outside_0_to_1(value: float) -> None:
    probs, masks = torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    probs[0, 0, 1, 2] = value
    with pytest.raises(ValueError, match=r"expected values in \[0, 1\], after the sigmoid"):
        SegmentationMetrics().update(probs, masks)


def test_streaming_metrics_match_numpy_twin() -> None:
    probs, masks = expressions(7, 6)
    metrics = SegmentationMetrics()
    metrics.update(probs, masks)
    each = [canonical_numpy(p.numpy(), m.numpy()) for p, m in zip(probs, masks, strict=True)]
    present, empty = masks.numpy().any((2, 3)), ~(probs.numpy() > 0.5).any((2, 3))
    assert metrics.compute() == pytest.approx({
        "J": np.mean([e["J"] for e in each]),
        "F": np.nanmean([e["F"] for e in each]),
        "S": np.mean([e["S"] for e in each]),
        "false_empty": (present & empty).sum() / present.sum(),
    }, abs=1e-6)
    assert metrics.num_expressions == 6
    assert 0 < metrics.compute()["false_empty"] < 1


def test_streaming_metrics_equal_canonical_on_one_expression() -> None:
    logits, masks = frames(3)
    metrics = SegmentationMetrics()
    metrics.update(torch.from_numpy(logits).sigmoid()[None], torch.from_numpy(masks)[None])
    scores, values = canonical(logits, masks), metrics.compute()
    assert (values["J"], values["F"], values["S"]) == pytest.approx((scores.J, scores.F, scores.S))


def test_streaming_metrics_take_bf16_probs() -> None:
    probs, masks = expressions(5, 2)
    coarse, fine = SegmentationMetrics(), SegmentationMetrics()
    coarse.update(probs.bfloat16(), masks)
    fine.update(probs.bfloat16().float(), masks)
    assert coarse == fine


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_metrics_are_independent_of_batch_size(batch_size: int) -> None:
    probs, masks = expressions(11, 7)
    whole, parts = SegmentationMetrics(), SegmentationMetrics()
    whole.update(probs, masks)
    for part in zip(probs.split(batch_size), masks.split(batch_size), strict=True):
        parts.update(*part)
    assert parts.compute() == pytest.approx(whole.compute(), abs=1e-12)


@settings(max_examples=20, deadline=None, database=None)
@given(order=st.permutations(range(5)), cut=st.integers(0, 5))
def test_metrics_are_independent_of_order_and_merge(order: list[int], cut: int) -> None:
    probs, masks = expressions(2, 5)
    whole = SegmentationMetrics()
    whole.update(probs, masks)
    sides = []
    for rows in (order[:cut], order[cut:]):
        side = SegmentationMetrics()
        for row in rows:
            side.update(probs[row : row + 1], masks[row : row + 1])
        sides.append(side)
    before = copy.deepcopy(sides)
    for first, second in itertools.permutations(sides):
        assert first.merge(second).compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert sides == before


def test_metrics_of_nothing_are_nan() -> None:
    assert all(math.isnan(value) for value in SegmentationMetrics().compute().values())


def test_metrics_of_null_expressions_have_no_f_score() -> None:
    metrics = SegmentationMetrics()
    metrics.update(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.bool))
    values = metrics.compute()
    assert (values["J"], values["S"]) == (1.0, 0.0)
    assert math.isnan(values["F"]) and math.isnan(values["false_empty"])


def test_groups_equal_metrics_of_their_members() -> None:
    probs, masks = expressions(4, 6)
    names = [("test_s", "test_s/spatial"), ("test_u",), ("test_s",), (), ("test_u", "test_u/acoustic"), ("test_s",)]
    groups: dict[str, SegmentationMetrics] = {}
    other: dict[str, SegmentationMetrics] = {}
    add_to_groups(groups, batch_counts(probs[:3], masks[:3]), names[:3])
    add_to_groups(other, batch_counts(probs[3:], masks[3:]), names[3:])
    merged = {name: metrics.merge(other[name]) if name in other else metrics for name, metrics in groups.items()}
    merged |= {name: metrics for name, metrics in other.items() if name not in groups}
    assert sorted(merged) == ["test_s", "test_s/spatial", "test_u", "test_u/acoustic"]
    for name, metrics in merged.items():
        rows = [row for row, chosen in enumerate(names) if name in chosen]
        alone = SegmentationMetrics()
        alone.update(probs[rows], masks[rows])
        assert metrics.compute() == pytest.approx(alone.compute(), abs=1e-12, nan_ok=True)


def test_groups_refuse_names_of_another_batch() -> None:
    probs, masks = expressions(4, 2)
    with pytest.raises(ValueError, match="shorter"):
        add_to_groups({}, batch_counts(probs, masks), [("test_s",)])

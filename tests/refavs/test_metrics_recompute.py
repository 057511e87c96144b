"""Protocols recomputed from statistics against the authors' formulas written out, and their independence of batches."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from refavs.errors import ConfigError, StatisticsError
from refavs.metrics import (
    PROTOCOLS,
    Recorder,
    Results,
    SegmentationMetrics,
    expression_results,
    grouped,
    histograms_of,
    protocol_values,
    released,
)
from refavs.metrics.frame_counts import HISTOGRAMS, released_view
from tests.refavs.small_predictions import MASKS, PROBS, TABLE, make_predictions, record
from tests.refavs.test_metrics import f_scores_numpy
from tests.refavs.test_metrics_boundary import literal_counts


@pytest.fixture(scope="module")
def results() -> Results:
    return expression_results([record([range(len(TABLE))])])


def background_jaccard(prob: np.ndarray, mask: np.ndarray, threshold: float) -> float:
    pred = prob > np.float32(threshold)
    return (pred & mask).sum() / ((pred | mask).sum() + 1e-7) if mask.any() else (~pred).mean()


def area(probs: np.ndarray) -> float:
    return float((probs > np.float32(0.5)).mean())


def mean_values(scored: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.nanmean([line[name] for line in scored])) for name in scored[0]}


def literal_canonical(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    jaccard, of_object, background = [], [], []
    for prob, mask in zip(probs, masks, strict=True):
        pred = prob > np.float32(0.5)
        if mask.any():
            of_object.append((pred & mask).sum() / (pred | mask).sum())
        else:
            background.append((~pred).mean())
        jaccard.append(of_object[-1] if mask.any() else float(not pred.any()))
    curve = f_scores_numpy(probs, masks)
    return {
        "J": np.mean(jaccard), "F": curve.mean(0).max() if len(curve) else math.nan, "S": math.sqrt(area(probs)),
        "J_object": np.mean(of_object) if of_object else math.nan,
        "background": np.mean(background) if background else math.nan,
    }  # fmt: skip


def literal_per_frame(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    scored = []
    for prob, mask in zip(probs, masks, strict=True):
        curve = f_scores_numpy(prob[None], mask[None])
        scored.append({
            "J": background_jaccard(prob, mask, 0.5), "F": curve.max() if len(curve) else 0.0,
            "S": math.sqrt(area(prob)),
        })  # fmt: skip
    return mean_values(scored)


def literal_per_expression(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    curve = f_scores_numpy(probs, masks)
    jaccard = [background_jaccard(prob, mask, 0.4) for prob, mask in zip(probs, masks, strict=True)]
    return {"J": np.mean(jaccard), "F": curve.mean(0).max() if len(curve) else 0.0, "S": math.sqrt(area(probs))}


def literal_davis(probs: np.ndarray, masks: np.ndarray) -> dict[str, float]:
    preds = probs > np.float32(0.5)
    if not masks.any():
        return dict.fromkeys("JF", float(not preds.any()))
    jaccard, contour = [], []
    for pred, mask in zip(preds, masks, strict=True):
        jaccard.append(((pred & mask).sum() + 1e-7) / ((pred | mask).sum() + 1e-7))
        counts = literal_counts(pred, mask)
        if not counts["pred"] or not counts["target"]:
            contour.append(float(counts["pred"] == counts["target"]))
            continue
        precision, recall = counts["pred_met"] / counts["pred"], counts["target_met"] / counts["target"]
        contour.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return {"J": np.mean(jaccard), "F": np.mean(contour)}


LITERAL = {
    "canonical": literal_canonical, "per_frame": literal_per_frame, "per_expression": literal_per_expression,
    "davis": literal_davis,
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("protocol", LITERAL)
def test_protocol_equals_its_formulas_written_out(results: Results, protocol: str) -> None:
    scored = [LITERAL[protocol](prob.numpy(), mask.numpy()) for prob, mask in zip(PROBS, MASKS, strict=True)]
    found = protocol_values(results, protocol, np.arange(len(results)))
    for name, value in mean_values(scored).items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_released_equals_the_formulas_in_batches_of_four_clips(results: Results) -> None:
    rows = np.arange(7)  # two batches, the last one short
    batches = []
    for chosen in (rows[:4], rows[4:]):
        probs, masks = released_view(PROBS[chosen].flatten(0, 1), MASKS[chosen].flatten(0, 1))
        scores = released(probs.double().logit().numpy(), masks.numpy())
        batches.append({"J": scores.J, "F": scores.F, "S": scores.S})
    assert protocol_values(results, "released", rows) == pytest.approx(mean_values(batches), abs=1e-6)
    alone = protocol_values(results, "released", np.array([2]))
    assert alone["F"] == 0.0, "a batch without objects counts 0"


def test_released_equals_the_golden_file(shared: Path) -> None:
    """The golden 64 x 64 frames with each pixel four by four times, which changes no ratio."""
    golden = np.load(shared / "golden" / "metrics.npz")
    logits, masks = (
        torch.from_numpy(golden[name][:, 0]).repeat_interleave(4, 1).repeat_interleave(4, 2).reshape(4, 10, 256, 256)
        for name in ("logits", "gt")
    )
    recorder = Recorder(table=TABLE, store="golden")
    recorder.add(range(4), logits.double().sigmoid().float(), masks > 0)
    results = expression_results([recorder.statistics()])
    found = protocol_values(results, "released", np.arange(4))
    assert found == pytest.approx({name: float(golden[name]) for name in "JFS"}, abs=1e-5)
    per_frame = golden["J_per_frame"].reshape(4, 10).mean(1)
    assert results.values["released/J"] == pytest.approx(per_frame, abs=1e-5)


def test_canonical_equals_streaming_sums(results: Results) -> None:
    for split, rows in grouped(results.expressions, ["split"]).items():
        metrics = SegmentationMetrics()
        metrics.update(PROBS[rows], MASKS[rows])
        found, expected = protocol_values(results, "canonical", rows), metrics.compute()
        for name in ("J", "F", "S", "false_empty"):
            assert found[name] == pytest.approx(expected[name], abs=1e-12, nan_ok=True), (split, name)


def test_canonical_has_one_threshold_for_a_split(results: Results) -> None:
    rows = results.rows(split="test_s")
    curves = [f_scores_numpy(PROBS[row].numpy(), MASKS[row].numpy()) for row in rows]
    expected = np.mean([curve.mean(0) for curve in curves if len(curve)], axis=0).max()
    found = protocol_values(results, "canonical", rows)
    assert found["F_split"] == pytest.approx(expected, abs=1e-6) and found["F_split"] < found["F"]


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (3, 5), (2, 1, 5)])
def test_no_value_depends_on_how_expressions_came(results: Results, sizes: tuple[int, ...]) -> None:
    rows = list(range(8))[::-1]
    stops = list(itertools.accumulate(sizes))
    blocks = [record([rows[stop - size : stop]]) for size, stop in zip(sizes, stops, strict=True)]
    groups = grouped(results.expressions, ["split"])
    found = expression_results(blocks)
    for protocol, rows in itertools.product(PROTOCOLS, groups.values()):
        values = (str(protocol_values(part, protocol, rows)) for part in (found, results))
        assert len(set(values)) == 1, f"{protocol}: equal to the last bit"
    assert list(PROTOCOLS) == ["canonical", "released", "per_frame", "per_expression", "davis"]


def test_perfect_predictions_are_perfect_under_every_protocol_but_the_released() -> None:
    _, masks = make_predictions(2)
    recorder = Recorder(table=TABLE, store="x")
    recorder.add([0, 1], masks.float(), masks)
    results = expression_results([recorder.statistics()])
    found = {protocol: protocol_values(results, protocol, np.arange(2))["J"] for protocol in PROTOCOLS}
    assert 0.8 < found.pop("released") < 0.95, "masks of 40 x 48 grow by most of a pixel"
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=1e-6)
    assert protocol_values(results, "davis", np.arange(2))["F"] == 1.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_protocol_needs_its_histograms_alone(results: Results, protocol: str) -> None:
    whole = record([range(len(TABLE))])
    kept = {name: values for name, values in whole.frames.items() if name not in HISTOGRAMS}
    kept |= {name: whole.frames[name] for name in histograms_of([protocol])}
    assert len(kept) == len(whole.frames) - (4 if protocol == "davis" else 2)
    alone = expression_results([dataclasses.replace(whole, frames=kept)], [protocol])
    rows = np.arange(len(results))
    assert str(protocol_values(alone, protocol, rows)) == str(protocol_values(results, protocol, rows))
    with pytest.raises(ConfigError, match="no protocol 'canonic'"):
        expression_results([whole], ["canonic"])


def test_groups_leave_out_what_is_not_known(results: Results) -> None:
    assert set(grouped(results.expressions, ["split", "dimension"])) == {
        f"{split}/{dimension}" for split in ("test_s", "test_u", "test_n") for dimension in ("spatial", "acoustic")
    }
    assert grouped(results.expressions, ["grade"]) == {}


def test_what_is_not_there_is_one_line(results: Results) -> None:
    with pytest.raises(StatisticsError, match="no expression with split 'val'; they have test_n, test_s, test_u"):
        results.rows(split="val")
    with pytest.raises(ConfigError, match="no protocol 'canonic'; did you mean 'canonical'"):
        protocol_values(results, "canonic", np.arange(2))
    with pytest.raises(StatisticsError, match="a group without expressions has no scores"):
        protocol_values(results, "canonical", np.array([], int))
    with pytest.raises(StatisticsError, match="no statistics of any expression"):
        expression_results([])

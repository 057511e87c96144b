"""The table of metrics: the contract, valid and invalid plug-ins, and files with other columns."""

import dataclasses
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from refavs.errors import ConfigError, StatisticsError
from refavs.metrics import (
    Recorder,
    SegmentationMetrics,
    expression_results,
    grouped,
    metrics,
    protocol_values,
    registry,
    statistics_blocks,
    write_statistics,
)
from refavs.metrics.contract import check_metric
from refavs.metrics.registry import BUILT_IN
from tests.refavs.small_metrics import AREA_ERROR, CENTRE_MISS
from tests.refavs.small_predictions import MASKS, PROBS, TABLE, make_predictions, record
from tests.refavs.test_metrics import canonical_numpy

HERE = "tests.refavs.small_metrics"


def area_error_numpy(probs: np.ndarray, masks: np.ndarray) -> float:
    areas = (probs > np.float32(0.5)).mean((1, 2)), masks.mean((1, 2))
    return float(np.abs(areas[0] - areas[1]).mean())


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_metric_keeps_the_contract(name: str) -> None:
    twin = (lambda probs, masks: canonical_numpy(probs, masks)[name]) if name in "JFS" else None
    check_metric(metrics()[name], twin)


def test_contract_takes_metrics_with_and_without_counts_of_their_own() -> None:
    check_metric(AREA_ERROR, area_error_numpy)
    check_metric(CENTRE_MISS)


def test_readme_lists_the_metrics_and_its_example_runs() -> None:
    text = Path(registry.__file__).with_name("README.md").read_text()
    for name, metric in metrics().items():
        assert f"| `{name}` | {metric.unit or 'fraction'} | {metric.better} |" in text
    example: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], example)  # type: ignore[index]
    example["test_area_error_keeps_the_contract"]()


def test_example_of_the_module_runs() -> None:
    lines = [line[4:] for line in (registry.__doc__ or "").splitlines()[3:]]
    assert len(lines) < 40
    code = "\n".join(lines[lines.index("# my_metrics.py") :])
    example: dict[str, Any] = {}
    exec(code, example)
    example["test_metrics_keep_the_contract"]()


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("outside", {"bounds": (0.0, 0.01)}),
        ("depends on batches", {"per_expression": lambda counts: counts.over_frames(counts.pred / counts.pred.max())}),
        ("depends on frames without a label", {"per_expression": lambda counts: (counts.pred / 768).mean(1)}),
        ("go together", {"columns": ("wrong",)}),
        ("depends on the twin", {"per_expression": lambda counts: counts.over_frames((counts.pred > 9).double())}),
    ],
)
def test_contract_says_what_a_metric_breaks(message: str, changes: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=message):
        check_metric(dataclasses.replace(AREA_ERROR, **changes), area_error_numpy)


def test_installed_metric_is_counted_kept_and_grouped(install: Callable[..., None], tmp_path: Path) -> None:
    install(("centre_miss", "b", f"{HERE}:CENTRE_MISS"), ("area_error", "a", f"{HERE}:AREA_ERROR"))
    assert list(metrics()) == ["J", "F", "S", "false_empty", "area_error", "centre_miss"]
    write_statistics(tmp_path / "a.parquet", record([[0, 1, 2], [3, 4, 5, 6, 7]]))
    assert pq.read_schema(tmp_path / "a.parquet").names[-1] == "centre_miss/wrong"
    results = expression_results(statistics_blocks(tmp_path / "a.parquet"))
    errors = [area_error_numpy(prob, mask) for prob, mask in zip(PROBS.numpy(), MASKS.numpy(), strict=True)]
    wrong = ((PROBS[..., 12, 16] > 0.5) != MASKS[..., 12, 16]).numpy()
    present = MASKS.numpy().any((2, 3))
    for split, rows in grouped(results.expressions, ["split"]).items():
        streamed = SegmentationMetrics()
        for part in (rows[:1], rows[1:]):
            streamed.update(PROBS[part], MASKS[part])
        found = protocol_values(results, "canonical", rows)
        assert found["area_error"] == pytest.approx(np.mean([errors[row] for row in rows])), split
        assert found["centre_miss"] == pytest.approx(wrong[rows][present[rows]].mean()), split
        for name in metrics():
            assert streamed.compute()[name] == pytest.approx(found[name], nan_ok=True)
    assert "area_error" not in protocol_values(results, "released", np.arange(4))


def test_file_with_other_columns_stays_readable(install: Callable[..., None], tmp_path: Path) -> None:
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    write_statistics(old, record([range(8)]))
    before = protocol_values(expression_results(statistics_blocks(old)), "canonical", np.arange(8))
    install(("centre_miss", "a", f"{HERE}:CENTRE_MISS"))
    write_statistics(new, record([range(8)]))
    found = protocol_values(expression_results(statistics_blocks(old)), "canonical", np.arange(8))
    assert found == before and "centre_miss" not in found
    shutil.rmtree(tmp_path / "site")
    install()
    assert protocol_values(expression_results(statistics_blocks(new)), "canonical", np.arange(8)) == before


def test_missing_counts_leave_out_their_metrics(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_statistics(path, record([range(8)]))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["background", "hits_40", "max_prob", "boundary_pred"]), path)
    blocks = list(statistics_blocks(path))
    found = protocol_values(expression_results(blocks, ["canonical"]), "canonical", np.arange(8))
    assert {"J", "S", "false_empty"} <= set(found) and not {"F", "F_split"} & set(found)
    for protocol, lacking in (("davis", "boundary_pred"), ("per_expression", "hits_40, background")):
        with pytest.raises(StatisticsError, match=f"lack {lacking}, which the protocol {protocol} needs"):
            expression_results(blocks, [protocol])


def test_two_metrics_of_one_name_are_one_line_that_names_both_packages(install: Callable[..., None]) -> None:
    install(("area_error", "second", f"{HERE}:AREA_ERROR"), ("area_error", "first", f"{HERE}:AREA_ERROR"))
    with pytest.raises(ConfigError, match=r"two packages add 'area_error' to refavs\.metrics: (first|second) "):
        metrics()


def test_metric_of_a_built_in_name_is_one_line_that_names_both_packages(install: Callable[..., None]) -> None:
    install(("J", "another", f"{HERE}:AREA_ERROR"))
    with pytest.raises(ConfigError, match=r"'J' to refavs\.metrics: refavs .* and another "):
        metrics()


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        ("no_such_module:METRIC", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("math:pi", "is 3.14"),
        (f"{HERE}:CENTRE_MISS", "name='centre_miss'"),
    ],
)
def test_bad_plugin_is_named_and_the_rest_works(
    install: Callable[..., None], capsys: pytest.CaptureFixture[str], loaded: str, reason: str
) -> None:
    install(("area_error", "good", f"{HERE}:AREA_ERROR"), ("broken", "bad", loaded))
    assert list(metrics()) == [*BUILT_IN, "area_error"]
    assert list(metrics()), "asked again, it is not told again"
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("'broken' of refavs.metrics ") and reason in told


def test_metric_that_counts_something_else_is_named(install: Callable[..., None]) -> None:
    install(("centre_miss", "a", f"{HERE}:OTHER_COUNT"))
    with pytest.raises(ValueError, match=r"metric 'centre_miss' counts {'wrong': \(8,\)}; accepted: .* in right"):
        record([[0, 1]])


def labelled_record(batches: Sequence[Sequence[int]], labelled: torch.Tensor, masks: torch.Tensor = MASKS) -> Any:
    recorder = Recorder(table=TABLE, store="x")
    for rows in batches:
        recorder.add(rows, PROBS[list(rows)], masks[list(rows)], labelled[list(rows)])
    return recorder.statistics()


@pytest.mark.parametrize("protocol", ["canonical", "released", "per_frame", "per_expression", "davis"])
def test_frames_without_a_label_take_no_part(tmp_path: Path, protocol: str) -> None:
    labelled = torch.ones(MASKS.shape[:2], dtype=torch.bool)
    labelled[:4, 3] = False
    labelled[5] = False
    kept, wrong = tmp_path / "kept.parquet", MASKS.clone()
    wrong[:4, 3] = ~wrong[:4, 3]
    write_statistics(kept, labelled_record([range(3), range(3, 8)], labelled))
    found = expression_results(statistics_blocks(kept), [protocol])
    assert found.expressions["row"].tolist() == [0, 1, 2, 3, 4, 6, 7], "an expression without a label says nothing"
    other = expression_results([labelled_record([range(8)], labelled, wrong)], [protocol])
    rows = np.arange(7)
    assert protocol_values(other, protocol, rows) == protocol_values(found, protocol, rows)
    shorter = Recorder(table=TABLE, store="x")
    shorter.add(range(4), PROBS[:4, :3], MASKS[:4, :3])
    expected = protocol_values(expression_results([shorter.statistics()], [protocol]), protocol, np.arange(4))
    assert protocol_values(found, protocol, np.arange(4)) == pytest.approx(expected, nan_ok=True)


def test_labels_of_every_frame_change_no_byte(tmp_path: Path) -> None:
    write_statistics(tmp_path / "a.parquet", labelled_record([range(8)], torch.ones(MASKS.shape[:2], dtype=torch.bool)))
    write_statistics(tmp_path / "b.parquet", record([range(8)], store="x"))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_sums_leave_out_frames_without_a_label() -> None:
    probs, masks = make_predictions(4)
    labelled = torch.ones(masks.shape[:2], dtype=torch.bool)
    labelled[:, 2:] = False
    found, expected = SegmentationMetrics(), SegmentationMetrics()
    found.update(probs, masks, labelled)
    expected.update(probs[:, :2], masks[:, :2])
    assert found.compute() == pytest.approx(expected.compute())

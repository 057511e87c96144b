"""A metric of another package in everything that reads the table of metrics: search, evaluation, tables, reports."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments.grid.expand import expand
from experiments.records.ledger import Ledger
from experiments.records.record_types import write_json
from experiments.report.contents import ReportOptions, build_report
from experiments.report.summary import summary_tables
from experiments.report.text import csv_text
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.metrics.groups import named_values
from tests.experiments.small_sweep import TABLE, make_masks, make_probs, write_facts, write_trial

AREA_ERROR = ("area_error", "other-package", "tests.refavs.small_metrics:AREA_ERROR")
TOP_LEFT_MISS = ("top_left_miss", "third-package", "tests.refavs.small_metrics:TOP_LEFT_MISS")


def search(metric: str) -> dict:
    return {"search": {"budget": 2, "metric": metric, "ranges": {"model.beta": {"uniform": [0, 2]}}}}


def test_search_takes_an_installed_metric_in_its_direction(install: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match="metric is 'val/area_error'; known: val/F, val/J, val/S, val/false_empty"):
        expand("g", search("val/area_error"), "g.yaml", {})
    install(AREA_ERROR)
    for metric, maximize in (("val/area_error", False), ("val/acoustic/area_error", False), ("val/J", True)):
        plan = expand("g", search(metric), "g.yaml", {}).search.plan  # type: ignore[union-attr]
        assert (plan.metric, plan.maximize) == (metric, maximize)
    with pytest.raises(ConfigError, match="metric is 'val/area_eror'; did you mean 'val/area_error'"):
        expand("g", search("val/area_eror"), "g.yaml", {})


def test_evaluation_names_it_and_its_mean_over_splits(install: Callable[..., None]) -> None:
    install(AREA_ERROR)
    groups = {"test_s": {"area_error": 0.25, "S": 0.5}, "test_u": {"area_error": 0.75}, "val": {"J": 0.5}}
    assert named_values(groups, Splits.of({})) == {
        "test_s/S": 0.5, "test_s/area_error": 0.25, "test_u/area_error": 0.75, "val/J": 0.5, "mix/area_error": 0.5,
    }  # fmt: skip


def test_table_at_the_end_of_a_sweep_shows_it(install: Callable[..., None], tmp_path: Path) -> None:
    install(AREA_ERROR)
    (entry,) = Ledger(tmp_path).entries(expand("g", {"cases": {"a": {}}}, "g.yaml", {}).trials, lambda trial: "store")
    entry.folder.mkdir(parents=True)
    metrics = {"test_s/J": 0.5, "test_s/area_error": 0.125, "seconds": 90.0}
    write_json(entry.folder / "result.json", {"epoch": 1, "time_ms": 0, "metrics": metrics})
    entry.set_status("finished")
    (table,) = summary_tables("g", [entry], {}, Splits.of({}))
    assert [column.name for column in table.columns][:3] == ["J", "F", "area error"]
    assert [cell.text for cell in table.rows[0].cells][:3] == ["50.0", "-", "12.5"]


@pytest.mark.long
def test_report_shows_it_and_names_the_run_that_lacks_its_counts(install: Callable[..., None], tmp_path: Path) -> None:
    write_facts(tmp_path / "s")
    write_trial(tmp_path / "s", "before", quality=0.4)
    install(AREA_ERROR, TOP_LEFT_MISS)
    write_trial(tmp_path / "s", "full", quality=0.6)
    report = build_report([tmp_path / "s"], ReportOptions(published=True))
    (warning,) = (warning for warning in report.warnings if "left out" in warning)
    assert warning == "top_left_miss is left out for before, seed 0: the statistics lack its counts."
    lines = [line for line in csv.DictReader(io.StringIO(csv_text(report))) if line["table"] == "table3-canonical"]
    found = {(line["row"], line["group"], line["column"]): line["value"] for line in lines}
    seen = (TABLE["split"] == "test_s").to_numpy()
    for name, quality in (("before", 0.4), ("full", 0.6)):
        pred, masks = make_probs(quality, 0)[seen] > np.float32(0.5), make_masks()[seen]
        expected = np.abs(pred.mean((2, 3)) - masks.mean((2, 3))).mean()
        assert float(found[name, "Seen", "area error"]) == pytest.approx(100 * expected)
    assert found["before", "Seen", "top_left_miss"] == "" != found["full", "Seen", "top_left_miss"]
    assert found["EEMC (Ref-AVS, ECCV 2024)", "Mix", "J"] == "41.87"
    assert found["EEMC (Ref-AVS, ECCV 2024)", "Mix", "area error"] == ""
    released = build_report([tmp_path / "s"], ReportOptions(protocols=("released",))).tables[0]
    assert {column.name for column in released.columns} == {"J", "F", "S"}

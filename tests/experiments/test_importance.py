"""The importance of a search's settings in its report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.report.contents import ReportOptions, build_report
from experiments.report.importance import importances
from tests.experiments.small_sweep import write_facts, write_trial


def points_of(number: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"train.learning_rate": float(10 ** rng.uniform(-5, -2)), "model.beta": float(rng.uniform(0, 2)),
         "train.batch_size": int(rng.choice([4, 8, 16])), "model.fusion_variant": str(rng.choice(["a", "b"]))}
        for _ in range(number)
    ]  # fmt: skip


def test_setting_that_decides_is_the_most_important() -> None:
    points = points_of(60)
    settings = list(points[0])
    for name in ("train.learning_rate", "model.beta"):
        scores = np.array([-abs(np.log10(point[name])) for point in points])
        found = importances(points, scores, settings)
        assert max(found, key=lambda setting: found[setting]) == name and sum(found.values()) == pytest.approx(1)
    chosen = importances(points, np.array([point["model.fusion_variant"] == "a" for point in points], float), settings)
    assert max(chosen, key=lambda setting: chosen[setting]) == "model.fusion_variant"


def write_search(root: Path, number: int) -> Path:
    """A search in which a larger beta is better."""
    write_facts(root)
    points = [{"model.beta": round(2 * place / number, 3), "train.learning_rate": 1e-4 * (1 + place * 7 % 5)}
              for place in range(number)]  # fmt: skip
    for place, point in enumerate(points):
        settings = {name.replace(".", "__"): value for name, value in point.items()}
        folder = write_trial(root, f"point {place}", quality=0.5, **settings)
        record = {"epoch": 1, "metrics": {"val/J": point["model.beta"] / 4}}
        (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (root / "search").mkdir()
    (root / "search" / "x.json").write_text(json.dumps({"search": "x", "points": points, "metric": "val/J"}))
    return root


@pytest.mark.long
def test_report_of_a_search_has_the_importance_of_its_settings(tmp_path: Path) -> None:
    report = build_report([write_search(tmp_path / "searched", 12)], ReportOptions())
    (table,) = (table for table in report.tables if table.name.startswith("importance"))
    first, second = table.rows
    assert first.label == "model.beta" and [cell.text for cell in first.cells][1:] == ["+1.00", "1.833"]
    assert first.cells[0].value + second.cells[0].value == pytest.approx(100)
    assert "Of 12 finished points, by val/J." in table.notes[0]
    few = build_report([write_search(tmp_path / "few", 5)], ReportOptions())
    assert not any(table.name.startswith("importance") for table in few.tables)

"""The final table: order, seeds with intervals, constants, dimensions."""

import csv
import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from experiments.grid.expand import expand
from experiments.grid.trial import TrialStore
from experiments.records.ledger import Entry, Ledger
from experiments.records.record_types import write_json
from experiments.report.summary import summary_tables
from experiments.report.text import terminal
from experiments.sweep.summary import csv_text
from refavs.data.splits import Splits
from refavs.store import FeatureStore
from refavs.terminal.console import PlainConsole

BENCH = Splits.of({})
RANDOM, PRETRAINED = (
    cast(FeatureStore, SimpleNamespace(fingerprint=str(random), random_weights=random, use={}))
    for random in (True, False)
)
CONTROLS = {"all background": {"test_s/J": 0.0, "test_n/S": 0.0}, "all foreground": {"test_s/J": 0.3, "test_n/S": 1.0}}


def entries_with(folder: Path, scores: dict[str, list[float]], extra: dict[str, float] | None = None) -> list[Entry]:
    num_seeds = max(map(len, scores.values()))
    cases = {name: {"model.beta": index} for index, name in enumerate(scores)}
    content = {"cases": cases, "seeds": list(range(num_seeds))}
    entries = Ledger(folder).entries(expand("g", content, "g.yaml", {}).trials, lambda trial: "store")
    for entry in entries:
        values = scores[entry.trial.name]
        if entry.trial.config.seed < len(values):
            metrics = {"test_s/J": values[entry.trial.config.seed], "test_n/S": 0.0123, "seconds": 90.0}
            metrics |= extra or {}
            entry.folder.mkdir(parents=True)
            write_json(entry.folder / "result.json", {"epoch": 1, "time_ms": 0, "metrics": metrics})
            entry.set_status("finished")
    return entries


def rendered(entries: list[Entry], controls: dict[str, dict[str, float]] = CONTROLS) -> list[str]:
    console = PlainConsole(width=200, file=io.StringIO())
    tables = summary_tables("g", entries, controls, BENCH)
    for table in tables:
        console.print(terminal(table))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_table_is_best_first_with_the_constants_among_the_trials(tmp_path: Path) -> None:
    lines = rendered(entries_with(tmp_path, {"poor": [0.2], "good": [0.6]}))
    assert lines[0].strip() == "sweep g, best first by J on test_s"
    assert [line.split()[:2] for line in lines if "." in line][:4] == [
        ["good", "1"], ["all", "foreground"], ["poor", "1"], ["all", "background"],
    ]  # fmt: skip
    text = "\n".join(lines)
    assert "60.0" in text and "0.012" in text and "1.5" in text and "dim rows are constant" in text
    assert "\\n" not in text and sum("Seen" in line for line in lines) == 1, "heads have two lines"


def test_table_takes_seeds_together_with_their_interval(tmp_path: Path) -> None:
    entries = entries_with(tmp_path, {"a": [0.5, 0.6, 0.7]})
    cell = summary_tables("g", entries, {}, BENCH)[0].rows[0].cells[0]
    assert cell.value == pytest.approx(60.0) and cell.high is not None
    assert cell.high - 60.0 == pytest.approx(100 * 4.302653 * 0.1 / 3**0.5, abs=1e-3)
    assert any("60.0 ± 24.8" in line for line in rendered(entries))


def test_table_leaves_out_what_is_not_finished(tmp_path: Path) -> None:
    entries = entries_with(tmp_path, {"a": [0.5], "b": []})
    assert [row.label for row in summary_tables("g", entries, {}, BENCH)[0].rows] == ["a"]
    entries[0].set_status("failed", reason="x")
    assert summary_tables("g", entries, {}, BENCH)[0].rows == ()


def test_dimension_table_needs_two_dimensions(tmp_path: Path) -> None:
    extra = {"test_s/spatial/J": 0.25, "test_s/acoustic+temporal/J": 0.75, "test_u/other/J": 1.0}
    _, table = summary_tables("g", entries_with(tmp_path, {"a": [0.5]}, extra), CONTROLS, BENCH)
    assert [column.name for column in table.columns] == ["acoustic+temporal", "spatial"]
    assert {row.label: [cell.text for cell in row.cells] for row in table.rows}["a"] == ["75.0", "25.0"]
    assert table.rows[-1].cells[0].text == "-"
    assert len(summary_tables("g", entries_with(tmp_path / "b", {"a": [0.5]}), CONTROLS, BENCH)) == 1


def test_table_has_the_splits_of_a_layout(tmp_path: Path) -> None:
    splits = Splits({"fit": "train", "exam": "test", "void": "null-test"})
    entries = entries_with(tmp_path, {"poor": [0.9], "good": [0.1]})
    for entry, value in zip(entries, (0.2, 0.6), strict=True):
        metrics = {"exam/J": value, "void/S": 0.5}
        write_json(entry.folder / "result.json", {"epoch": 1, "time_ms": 0, "metrics": metrics})
    (table,) = summary_tables("g", entries, {}, splits)
    assert table.title == "sweep g, best first by J on exam"
    assert [(column.group, column.name) for column in table.columns[:-1]] == [
        ("exam", "J"), ("exam", "F"), ("void", "S"),
    ]  # fmt: skip
    assert [(row.label, row.cells[0].text, row.cells[2].text) for row in table.rows] == [
        ("good", "60.0", "0.500"), ("poor", "20.0", "0.500"),
    ]  # fmt: skip


def test_csv_has_a_line_for_each_trial_and_constant(tmp_path: Path) -> None:
    entries = entries_with(tmp_path, {"a": [0.5, 0.7]})
    lines = list(csv.DictReader(io.StringIO(csv_text(entries, CONTROLS, RANDOM))))
    assert {line["features"] for line in lines} == {"random weights"}
    assert ",pretrained," in csv_text(entries, CONTROLS, PRETRAINED)
    assert [(line["trial"], line["seed"], line["test_s/J"]) for line in lines] == [
        ("a", "0", "0.5"), ("a", "1", "0.7"), ("all background", "", "0.0"), ("all foreground", "", "0.3"),
    ]  # fmt: skip


def test_csv_tells_of_each_trials_own_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, other = entries_with(tmp_path, {"a": [0.5, 0.7]})
    own = TrialStore(name="b", location="there", fingerprint=PRETRAINED.fingerprint)
    other = dataclasses.replace(other, trial=dataclasses.replace(other.trial, store=own))
    monkeypatch.setattr("experiments.records.stores.opened", lambda location, use: {"there": PRETRAINED}[location])
    lines = csv.DictReader(io.StringIO(csv_text([plain, other], {}, RANDOM)))
    assert [line["features"] for line in lines] == ["random weights", "pretrained"]

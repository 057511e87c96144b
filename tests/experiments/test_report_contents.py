"""Content of a report: how runs form rows, the description of stores, and what must never appear."""

import json
from pathlib import Path

import pytest

from experiments.report.contents import ReportOptions, build_report
from tests.experiments.small_sweep import TABLE, make_masks, write_facts, write_trial
from tests.experiments.test_report_tables import cell_of, table_of

MASKS = make_masks()


@pytest.mark.long
def test_seeds_on_other_machines_are_one_row_and_digests_are_short(tmp_path: Path) -> None:
    write_trial(tmp_path, "full", 0)
    write_trial(tmp_path, "full", 1, resources__workers=2)
    for seed, init in ((0, "/here"), (1, "/there")):
        path = write_trial(tmp_path, "full", seed, 0.6, train__init=init) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "digests": {"init": "0123456789abcdef"}}))
    rows = table_of(build_report([tmp_path], ReportOptions()), "table3-canonical").rows
    assert {(row.label, row.num_seeds) for row in rows if row.kind == "run"} == {
        ("full (init None)", 2), ("full (init 01234567)", 2),
    }  # fmt: skip


@pytest.mark.long
def test_split_of_nothing_but_null_expressions_has_no_f_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = MASKS & ~(TABLE["split"] == "test_u").to_numpy()[:, None, None, None]
    monkeypatch.setattr("tests.experiments.small_sweep.make_masks", lambda table: nothing)
    for name in ("full", "other"):
        write_trial(tmp_path, name, quality=0.5, model__text=name == "full")
    report = build_report([tmp_path], ReportOptions())
    differences = table_of(report, "differences-canonical")
    assert [cell_of(differences, "other", group, "F").text for group in ("Unseen", "Mix")] == ["-", "-"]
    assert cell_of(differences, "other", "Seen", "F").value is not None
    assert cell_of(table_of(report, "table3-canonical"), "full", "Mix", "F").text == "-"


def test_only_the_store_that_a_sweep_describes_is_known_to_be_random_or_not(tmp_path: Path) -> None:
    write_facts(tmp_path / "s", fingerprint="another-store", random_features=True)
    write_trial(tmp_path / "s", "full")
    report = build_report([tmp_path / "s"], ReportOptions())
    assert not report.random_features
    assert "Whether the features have random weights is not known" in " ".join(report.warnings)


def test_passwords_are_not_shown(tmp_path: Path) -> None:
    write_facts(tmp_path / "s", tracking_uri="postgresql://me:secret@host:5432/runs", run_id="7",
                store="https://me:secret@host/store")  # fmt: skip
    write_trial(tmp_path / "s", "full")
    facts = dict(build_report([tmp_path / "s"], ReportOptions()).facts)
    assert facts["MLflow"] == "postgresql://host:5432/runs, run 7" and facts["store"] == "https://host/store"

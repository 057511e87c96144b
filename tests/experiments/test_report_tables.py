"""The numbers of a report's tables against plain NumPy, the choice of comparisons, and errors."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.report.contenders import Contender
from experiments.report.contents import ReportOptions, build_report
from experiments.report.layout import RANDOM, Setting, choices_said
from experiments.report.tables import Cell, Report, Table, TableRow, origin
from refavs.errors import ConfigError, StatisticsError
from tests.experiments.small_sweep import CLIPS, TABLE, make_masks, make_probs, make_table, write_facts, write_trial
from tests.refavs.test_metrics import f_scores_numpy

pytestmark = pytest.mark.long  # for what its fixtures make

QUALITY = {"full": 0.46, "no_audio": 0.45, "no_text": 0.38}
SEEDS = (0, 1, 2)
MASKS = make_masks()


def write_sweep(sweep: Path, order: int = 1, batches: tuple[int, ...] = ()) -> Path:
    """Three seeds of the full model and of two ablations, of which one is hardly worse."""
    write_facts(sweep)
    trials = [(name, seed) for name in QUALITY for seed in SEEDS][::order]
    for name, seed in trials:
        off = {} if name == "full" else {f"model__{name[3:]}": False}
        write_trial(sweep, name, seed, QUALITY[name], batches=batches, **off)
    return sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "ablations")


@pytest.fixture(scope="module")
def report(sweep: Path) -> Report:
    return build_report([sweep], ReportOptions(protocols=("canonical", "released"), published=True))


def table_of(report: Report, name: str) -> Table:
    return next(table for table in report.tables if table.name == name)


def row_of(table: Table, label: str) -> TableRow:
    return next(row for row in table.rows if row.label == label)


def cell_of(table: Table, label: str, group: str, name: str) -> Cell:
    places = [place for place, column in enumerate(table.columns) if (column.group, column.name) == (group, name)]
    return row_of(table, label).cells[places[0]]


def literal(name: str, seed: int, measure: str, chosen: np.ndarray) -> float:
    """The canonical mean of some expressions, frame by frame and threshold by threshold."""
    probs, found = make_probs(QUALITY[name], seed), []
    for place in np.flatnonzero(chosen):
        pred, mask = probs[place] > np.float32(0.5), MASKS[place]
        if measure == "J":
            pairs = list(zip(pred, mask, strict=True))
            found.append(np.mean([(p & m).sum() / (p | m).sum() if m.any() else not p.any() for p, m in pairs]))
        elif measure == "F":
            found.append(f_scores_numpy(probs[place], mask).mean(0).max())
        else:
            found.append(np.sqrt(pred.mean()))
    return float(np.mean(found))


@pytest.mark.parametrize("name", QUALITY)
@pytest.mark.parametrize(("group", "measure"), [("Seen", "J"), ("Seen", "F"), ("Unseen", "J"), ("Mix", "J"),
                                                ("Mix", "F"), ("Null", "S")])  # fmt: skip
def test_cells_are_means_over_seeds_with_t_intervals(report: Report, name: str, group: str, measure: str) -> None:
    splits = {"Seen": ["test_s"], "Unseen": ["test_u"], "Mix": ["test_s", "test_u"], "Null": ["test_n"]}[group]
    chosen = [(TABLE["split"] == split).to_numpy() for split in splits]
    values = [np.mean([literal(name, seed, measure, rows) for rows in chosen]) for seed in SEEDS]
    scale = 1 if measure == "S" else 100
    half = 4.302652729911275 * np.std(values, ddof=1) / np.sqrt(3)  # Student's t of 2 degrees of freedom at 97.5 %
    low, high = np.mean(values) - half, np.mean(values) + half
    for table in ("table3-canonical", "table4-canonical"):
        cell = cell_of(table_of(report, table), name, group, measure)
        assert (cell.value, cell.low, cell.high) == pytest.approx(
            (scale * np.mean(values), scale * low, scale * high), rel=1e-6
        )
        digits = 3 if measure == "S" else 1
        assert cell.text == f"{scale * np.mean(values):.{digits}f} ± {scale * (high - low) / 2:.{digits}f}"


@pytest.mark.parametrize(("part", "value", "chosen"), [
    ("grade", "1+2", TABLE["grade"].isin(["1", "2"])), ("grade", "5", TABLE["grade"] == "5"),
    ("length", "<=4", TABLE["text"].str.split().str.len() <= 4), ("length", "5-8", TABLE["grade"] == "2"),
    ("length", ">12", TABLE["grade"] == "5"), ("dimension", "spatial", TABLE["grade"] == "2"),
    ("dimension", "acoustic+temporal", TABLE["grade"] == "5"), ("dimension", "semantic", TABLE["grade"] == "1"),
])  # fmt: skip
def test_parts_are_means_over_seen_and_unseen(report: Report, part: str, value: str, chosen: np.ndarray) -> None:
    rows = (np.asarray(chosen) & TABLE["split"].isin(["test_s", "test_u"])).astype(bool).to_numpy()
    expected = 100 * np.mean([literal("full", seed, "J", rows) for seed in SEEDS])
    table = table_of(report, f"supplement2-{part}-canonical")
    assert cell_of(table, "full", part, value).value == pytest.approx(expected, rel=1e-6)
    assert f"{value}: {rows.sum()}" in " ".join(table.notes)


def test_choices_of_the_heads_are_printed_below_the_results() -> None:
    settings = {"gavs": {}, "gavs + text": {}, "published": {"model.faithful": True}, "refused": {"model.channels": 1},
                "eemc": {"model.head": "eemc"}}  # fmt: skip
    lines = tuple(Contender(label=label, config={"model.head": "gavs", "model.gone": 1} | own, runs=())
                  for label, own in settings.items())  # fmt: skip
    setting = Setting(contenders=lines, controls={}, published=False, random_features=False)
    assert choices_said(setting) == ("gavs and gavs + text: noise add, mask_loss bce_dice, level backbone; "
                                     "published: noise replace, mask_loss bce, level backbone")


def test_parts_that_no_expression_has_are_dashes(report: Report) -> None:
    table = table_of(report, "supplement2-grade-canonical")
    assert [column.name for column in table.columns] == ["1+2", "3", "4", "5"]
    assert cell_of(table, "full", "grade", "3").text == "-"


def test_controls_and_published_rows_are_shown_and_labelled(report: Report) -> None:
    table = table_of(report, "table3-canonical")
    assert [row.kind for row in table.rows][:5] == ["run", "run", "run", "control", "published"]
    control = row_of(table, "all background")
    assert [cell.text for cell in control.cells] == ["10.0", "0.0", "-", "-", "-", "-", "0.000", "-"]
    eemc = row_of(table, "EEMC (Ref-AVS, ECCV 2024)")
    assert [cell.text for cell in eemc.cells][:7] == ["34.2", "51.3", "49.54", "64.8", "41.87", "58.1", "0.007"]
    assert origin(eemc, table) == ["published", "protocol: released"]
    assert origin(row_of(table, "TSAM (CVPR 2025)"), table) == ["published", "protocol: not stated"]
    assert origin(control, table) == ["control"]
    assert row_of(table_of(report, "table4-canonical"), "EEMC without text").cells[0].value == 23.67
    assert row_of(table_of(report, "supplement2-dimension-canonical"), eemc.label).cells[0].value == 33.83


def test_every_table_names_its_protocol(report: Report) -> None:
    assert [table.name for table in report.tables] == [
        "table3-canonical", "table4-canonical", "differences-canonical", "intervals-canonical",
        "supplement2-grade-canonical", "supplement2-length-canonical", "supplement2-dimension-canonical",
        "details-canonical", "table3-released", "table4-released", "supplement2-grade-released",
        "supplement2-length-released",
        "supplement2-dimension-released",
    ]  # fmt: skip
    for table in report.tables:
        assert table.name.endswith(table.protocol)
        assert {row.protocol for row in table.rows if row.kind != "published"} == {table.protocol}
    assert "no intervals over clips" in " ".join(table_of(report, "table3-released").notes)


def test_differences_are_those_of_the_means_and_say_when_they_are_not_shown(report: Report) -> None:
    means, differences = (table_of(report, f"{name}-canonical") for name in ("table3", "differences"))
    assert [row.label for row in differences.rows] == ["no_audio", "no_text"]
    for row in differences.rows:
        for group, measure in (("Seen", "J"), ("Unseen", "F"), ("Mix", "J"), ("Null", "S")):
            found = cell_of(differences, row.label, group, measure)
            values = [cell_of(means, name, group, measure).value for name in (row.label, "full")]
            assert None not in values and found.value == pytest.approx(values[0] - values[1], abs=1e-9)  # type: ignore
            assert found.low is not None and found.high is not None
            hidden = found.low <= 0 <= found.high
            assert found.text.endswith(", not shown") == hidden and (found.note == "not shown") == hidden
    verdicts = [cell_of(differences, "no_text", group, "J").note for group in ("Seen", "Unseen", "Mix")]
    assert verdicts == ["lower"] * 3


def test_intervals_over_clips_hold_the_mean(report: Report) -> None:
    table = table_of(report, "intervals-canonical")
    assert [(column.group, column.name) for column in table.columns][:2] == [
        ("Seen J", "seeds"), ("Seen J", "seeds and clips"),
    ]  # fmt: skip
    for row in table.rows:
        for cell in row.cells:
            assert cell.low is not None and cell.high is not None and cell.value is not None
            assert cell.low < cell.value < cell.high and cell.text.startswith("[")


@pytest.mark.parametrize("batches", [pytest.param((1,) * 35, marks=pytest.mark.slow), (7, 11)])
def test_no_number_depends_on_the_order_of_runs_or_on_batches(
    sweep: Path, report: Report, tmp_path: Path, batches: tuple[int, ...]
) -> None:
    other = write_sweep(tmp_path / "ablations", order=-1, batches=batches)
    again = build_report([other], ReportOptions(protocols=("canonical", "released"), published=True))
    assert again.tables == report.tables and again.curves == report.curves and again.categories == report.categories


def test_figures_have_their_numbers(report: Report) -> None:
    assert report.title == "ablations" and report.reference == "full" and report.beta == ()
    assert {curve.measure for curve in report.curves} == {"train/loss", "val/J"} and len(report.curves) == 18
    assert report.curves[0].epochs == (1, 2) and report.curves[0].values == (1.0, 0.5)
    assert report.ablations is not None and report.ablations.groups == ("Seen", "Unseen", "Mix")
    assert [series.label for series in report.ablations.series] == ["full", "no_audio", "no_text"]
    assert report.dimensions is not None
    assert report.dimensions.groups == ("semantic", "spatial", "acoustic+temporal")
    assert report.categories is not None and set(report.categories.groups) == {"dog", "cat", "bee"}
    assert report.categories.counts == (9, 9, 9)
    assert report.gallery is not None and report.gallery.store == "/data/ablations-store"


def test_calibration_counts_each_frame_of_the_test_splits(report: Report) -> None:
    found = report.calibrations[0]
    tested = (TABLE["split"] != "val").to_numpy()
    peaks = np.concatenate([make_probs(QUALITY["full"], seed)[tested].max((2, 3)).reshape(-1) for seed in SEEDS])
    present = np.concatenate([MASKS[tested].any((2, 3)).reshape(-1)] * len(SEEDS))
    assert sum(found.num_frames) == len(peaks) and len(found.edges) == len(found.num_frames) + 1
    for low, high, count, mean, share in zip(
        found.edges, found.edges[1:], found.num_frames, found.mean_prob, found.share_object, strict=False
    ):
        inside = (peaks >= low) & (peaks < high)
        assert count == inside.sum()
        if count:
            assert (mean, share) == pytest.approx((peaks[inside].mean(), present[inside].mean()))


def test_beta_lines_use_runs_that_differ_only_in_beta(tmp_path: Path) -> None:
    write_facts(tmp_path / "beta")
    for beta in (2.0, 0.5, 1.0):
        for seed in (0, 1):
            write_trial(tmp_path / "beta", f"beta {beta:g}", seed, 0.5 + beta / 10, model__beta=beta)
    write_trial(tmp_path / "beta", "deep", model__num_layers=6)
    report = build_report([tmp_path / "beta"], ReportOptions())
    assert [line.label for line in report.beta] == ["Seen", "Unseen", "Mix"]
    assert report.beta[0].x == (0.5, 1.0, 2.0)
    table = table_of(report, "table3-canonical")
    for place, label in enumerate(("beta 0.5", "beta 1", "beta 2")):
        cell, estimate = cell_of(table, label, "Seen", "J"), report.beta[0].estimates[place]
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((cell.value, cell.low, cell.high))
    assert report.ablations is None and report.reference == "beta 0.5"


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path) -> None:
    write_facts(tmp_path / "one")
    write_trial(tmp_path / "one", "full")
    write_trial(tmp_path / "one", "other", quality=0.5, model__beta=2.0)
    report = build_report([tmp_path / "one"], ReportOptions())
    cell = cell_of(table_of(report, "table3-canonical"), "full", "Seen", "J")
    assert cell.low is None and "±" not in cell.text and cell.note == "one seed: no interval"
    said = "One seed: no interval over seeds (every row)."
    assert said in report.warnings and said in table_of(report, "table3-canonical").notes
    assert "intervals-canonical" not in [table.name for table in report.tables]
    notes = table_of(report, "differences-canonical").notes
    assert "One seed: holds for these trained heads only, other seeds may differ." in notes


def test_split_without_expressions_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    write_facts(tmp_path / "seen")
    write_trial(tmp_path / "seen", "full", table=make_table({"test_s": 2, "test_n": 1}))
    report = build_report([tmp_path / "seen"], ReportOptions())
    table = table_of(report, "table3-canonical")
    assert "No expression of test_u: Unseen is left out, and with it Mix." in table.notes
    assert cell_of(table, "full", "Unseen", "J").text == cell_of(table, "full", "Mix", "J").text == "-"
    assert cell_of(table, "full", "Seen", "J").value is not None
    assert ("expressions", "Seen 6, Unseen 0, Null 3") in report.facts


def test_run_without_any_test_split_is_refused(tmp_path: Path) -> None:
    write_trial(tmp_path, "full", table=make_table({"val": 2}))
    with pytest.raises(StatisticsError, match=r"has no expression of test_s, test_u, test_n \(it has val\); a rep"):
        build_report([tmp_path], ReportOptions())


def test_random_features_are_stamped_on_every_table(tmp_path: Path) -> None:
    write_facts(tmp_path / "s", random_features=True)
    write_trial(tmp_path / "s", "full")
    report = build_report([tmp_path / "s"], ReportOptions(protocols=("canonical", "davis"), mixed=True))
    assert report.random_features and RANDOM in report.warnings
    assert all(RANDOM in table.notes for table in report.tables) and len(report.tables) == 10


def test_missing_facts_of_an_older_sweep_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"id": "x"}))
    write_trial(tmp_path, "full")
    write_trial(tmp_path, "broken", quality=None, state="failed")
    warnings = " ".join(build_report([tmp_path], ReportOptions()).warnings)
    assert "Whether the features have random weights is not known" in warnings
    assert "Constant predictions are missing for canonical" in warnings
    assert "Not finished, and left out: broken, seed 0 (failed)." in warnings


def test_protocols_side_by_side_are_asked_for_and_marked(sweep: Path, report: Report) -> None:
    assert "mixed" not in "".join(table.name for table in report.tables)
    mixed = build_report([sweep], ReportOptions(protocols=("canonical", "davis"), mixed=True)).tables[-1]
    assert mixed.protocol == "canonical and davis"
    assert [origin(row, mixed) for row in mixed.rows] == [["protocol: canonical"]] * 3 + [["protocol: davis"]] * 3
    assert cell_of(mixed, "full", "Seen", "J") == cell_of(table_of(report, "table3-canonical"), "full", "Seen", "J")


def two_stores(tmp_path: Path) -> list[Path]:
    for name, store in (("one", "fingerprint-of-tests"), ("two", "another-store")):
        write_facts(tmp_path / name, fingerprint=store, encoders={"text": name, "audio": "vggish"})
        write_trial(tmp_path / name, "full", store=store, quality=0.6)
    return [tmp_path / "one", tmp_path / "two"]


def test_runs_of_different_stores_are_refused_unless_asked_for_and_then_marked(tmp_path: Path) -> None:
    sweeps = two_stores(tmp_path)
    with pytest.raises(StatisticsError, match=r"two-store another-.*one-store fingerpr.* cannot be compared in"):
        build_report(sweeps, ReportOptions(reference="full (one-store fingerpr)"))
    report = build_report(sweeps, ReportOptions(mixed=True, published=True, reference="full (one-store fingerpr)"))
    rows = table_of(report, "table3-canonical").rows
    assert rows[0].mark == "" and rows[1].mark == "store two-store another-, masks of 3 x 12 x 16"
    differences = table_of(report, "differences-canonical")
    assert {cell.text for cell in differences.rows[0].cells} == {"-"} and differences.rows[0].mark
    encoders = table_of(report, "supplement3-canonical")
    assert [row.label for row in encoders.rows][:3] == [
        "one + vggish: full (one-store fingerpr)", "two + vggish: full (two-store another-)", "RoBERTa + VGGish",
    ]  # fmt: skip
    assert [column.group for column in encoders.columns] == ["Mix", "Mix"]


def test_encoders_of_one_store_are_compared(tmp_path: Path) -> None:
    """Rows that differ from the reference in their encoders alone; an ablation and another setting are none of them."""
    write_facts(tmp_path, encoders={"text/roberta": "roberta", "audio/vggish": "vggish"})
    lines = {"full": {}, "t": {"model__text": "flan-t5-base/tokens"}, "a": {"model__audio": "languagebind"},
             "no_text": {"model__text": False}, "beta": {"model__beta": 2.0}}  # fmt: skip
    for name, changes in lines.items():
        write_trial(tmp_path, name, **changes)
    table = table_of(build_report([tmp_path], ReportOptions(published=True)), "supplement3-canonical")
    assert [row.label for row in table.rows] == [
        "roberta + vggish: full", "flan-t5-base/tokens + vggish: t", "roberta + languagebind: a", "RoBERTa + VGGish",
        "text Flan-T5", "text LanguageBind", "audio LanguageBind",
    ]  # fmt: skip


def test_stores_of_other_splits_have_columns_of_the_reference_alone(tmp_path: Path) -> None:
    roles = {"exam": "test", "void": "null-test"}
    for name, splits in (("one", roles), ("two", roles), ("bench", None)):
        facts = {} if splits is None else {"splits": splits}
        write_facts(tmp_path / name, fingerprint=name, encoders={"text": name}, **facts)
        table = make_table({"test_s": 2} if splits is None else {"exam": 3, "void": 1})
        for seed in (0, 1):
            write_trial(tmp_path / name, "full", seed, store=name, table=table)
    sweeps = [tmp_path / name for name in ("one", "two", "bench")]
    report = build_report(sweeps, ReportOptions(mixed=True, published=True, reference="full (one-store one)"))
    assert [column.group for column in table_of(report, "supplement3-canonical").columns] == ["exam", "exam"]
    main = table_of(report, "table3-canonical")
    assert [column.group for column in main.columns] == ["exam", "exam", "void", "exam"]
    assert {cell.text for cell in row_of(main, "full (bench-store bench)").cells} == {"-"}
    assert all(row.kind != "published" for row in main.rows), "those are of Ref-AVS Bench"


def test_masks_of_another_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_facts(tmp_path / "s")
    write_trial(tmp_path / "s", "full")
    monkeypatch.setattr("tests.experiments.small_sweep.HEIGHT", 14)
    write_trial(tmp_path / "s", "tall", model__beta=2.0)
    with pytest.raises(StatisticsError, match=r"masks of 3 x 14 x 16\) and full .*3 x 12 x 16.*; report the"):
        build_report([tmp_path / "s"], ReportOptions())


def test_same_name_with_other_settings_is_a_separate_row(tmp_path: Path) -> None:
    for rate in (1e-4, 1e-3):
        write_trial(tmp_path, "full", train__learning_rate=rate, quality=0.4 + 100 * rate)
    report = build_report([tmp_path], ReportOptions(reference="full (learning_rate 0.001)"))
    labels = [row.label for row in table_of(report, "table3-canonical").rows]
    assert labels == ["full (learning_rate 0.001)", "full (learning_rate 0.0001)"]


def test_run_that_is_there_twice_is_refused_and_one_of_two_sweeps_counts_once(tmp_path: Path) -> None:
    folder = write_trial(tmp_path / "a", "full")
    write_trial(tmp_path / "b", "full")
    report = build_report([tmp_path / "a", tmp_path / "b"], ReportOptions())
    assert table_of(report, "table3-canonical").rows[0].num_seeds == 1
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "key": "another"}))
    with pytest.raises(ConfigError, match=r"full, seed 0 occurs twice with the same settings, in .*; remove one of"):
        build_report([tmp_path / "a", tmp_path / "b"], ReportOptions())


def test_statistics_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, "full", quality=None)
    with pytest.raises(StatisticsError, match=r"has no statistics \(statistics.parquet is missing\); evaluate the"):
        build_report([tmp_path], ReportOptions())
    other = write_trial(tmp_path / "other", "full", store="elsewhere")
    (folder / "statistics.parquet").write_bytes((other / "statistics.parquet").read_bytes())
    with pytest.raises(StatisticsError, match="is from the store elsewhere, the run from fingerprint-of-tests; remove"):
        build_report([tmp_path], ReportOptions())
    path = write_trial(tmp_path / "good", "full") / "statistics.parquet"
    good, columns = path.read_bytes(), pq.read_metadata(path).row_group(0)
    (place,) = [column.data_page_offset + 40 for column in map(columns.column, range(columns.num_columns))
                if column.path_in_schema == "target"]  # fmt: skip
    for damaged in (good[: len(good) // 2], bytes(100), good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]):
        (folder / "statistics.parquet").write_bytes(damaged)
        with pytest.raises(StatisticsError, match=r"cannot be used \("):
            build_report([tmp_path], ReportOptions())


def test_details_are_of_frames_with_and_without_the_object_and_of_one_threshold(report: Report) -> None:
    jaccard, background, curve = [], [], []
    chosen = (TABLE["split"] == "test_u").to_numpy()
    for seed in SEEDS:
        probs, masks = make_probs(QUALITY["full"], seed)[chosen], MASKS[chosen]
        pred = probs > np.float32(0.5)
        hits, union = (pred & masks).sum((2, 3)), (pred | masks).sum((2, 3))
        jaccard.append((hits / union)[:, 1:].mean())  # the first frame has no object
        background.append(1 - pred[:, 0].mean())
        curves = [f_scores_numpy(p[1:], m[1:]).mean(0) for p, m in zip(probs, masks, strict=True)]
        curve.append(np.mean(curves, 0).max())
    table = table_of(report, "details-canonical")
    for name, values in (("J, object", jaccard), ("background", background), ("F, one threshold", curve)):
        assert cell_of(table, "full", "Unseen", name).value == pytest.approx(100 * np.mean(values), rel=1e-6)
    assert [column.name for column in table.columns if column.group == "Null"] == ["background"]


def test_unknown_reference_is_one_line(sweep: Path) -> None:
    with pytest.raises(ConfigError, match="--reference 'ful' is not a row; did you mean 'full'"):
        build_report([sweep], ReportOptions(reference="ful"))
    report = build_report([sweep], ReportOptions(reference="no_text"))
    assert report.reference == "no_text" == table_of(report, "table3-canonical").rows[0].label


def test_table_of_expressions_is_kept_once_and_histograms_are_not(sweep: Path) -> None:
    from experiments.report.runs import saved_sweep
    from experiments.report.scores import read_scores

    found = read_scores(saved_sweep(sweep).runs, ("canonical",))
    assert len({id(scores.results.expressions) for scores in found}) == 1
    assert len(found[0].results.expressions) == 3 * (sum(CLIPS.values()) - CLIPS["val"])
    assert all(not scores.results.curves for scores in found)

"""Markdown, LaTeX and CSV: numbers are unchanged, and text from users is never interpreted as markup."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.report.tables import Cell, Column, Report, Table, TableRow
from experiments.report.text import csv_text, escape_latex, escape_markdown, latex, markdown

NASTY = (
    "a|b", "back\\slash", "50 % & more", "under_score*s*", "=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "two\nlines",
    "<script>alert(1)</script>", "[x](javascript:y)", "`code`", "~^{}$#", "\t=1", "\r\n=2", "‮left", "# title", "",
)  # fmt: skip


def make_report(*labels: str, random_features: bool = False) -> Report:
    cell = Cell(value=12.345678901234567, low=-1.5, high=None, text="12.3 ± 4.5", note="one seed: no interval")
    rows = [TableRow(label=label, cells=(cell, Cell(value=None)), protocol="canonical", num_seeds=3, mark="other store")
            for label in labels]  # fmt: skip
    rows.append(TableRow(label="all background", kind="control", cells=(cell, cell), protocol="canonical"))
    columns = (Column(group="Seen", name="J", unit="%"), Column(group="Seen", name="S"))
    table = Table(name="table3-canonical", title="Results", protocol="canonical", row_heading="method",
                  columns=columns, rows=tuple(rows), notes=("J in %.",))  # fmt: skip
    return Report(
        title="my|grid", facts=(("store", "/data/a_b|c"),), warnings=("Careful: 100 %_sure",), tables=(table,),
        random_features=random_features, protocols=("canonical",), reference=labels[0],
    )  # fmt: skip


def test_markdown_is_a_table_that_names_its_protocol() -> None:
    text = markdown(make_report("full"))
    assert "\n## Results, protocol canonical\n" in text and "# my\\|grid\n" in text
    assert "\n| method | seeds | Seen J (%) | Seen S |\n| --- | ---: | ---: | ---: |\n" in text
    assert "\n| full (other store) | 3 | 12.3 ± 4.5 | - |\n" in text
    assert "\n| all background (control) |  | 12.3 ± 4.5 | 12.3 ± 4.5 |\n" in text
    assert "\n> Careful: 100 %\\_sure\n" in text and "\n- store: /data/a\\_b\\|c\n" in text


@pytest.mark.parametrize("label", NASTY)
def test_markdown_keeps_its_columns_for_any_label(label: str) -> None:
    lines = markdown(make_report(label)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in rows} == {5}
    assert not re.search(r"(?<!\\)[<`\[]", rows[2])


@pytest.mark.parametrize("label", NASTY)
def test_latex_special_characters_are_escaped(label: str) -> None:
    row = next(line for line in latex(make_report(label)).splitlines() if "other store" in line)
    cells = re.split(r"(?<!\\)&", row)
    assert len(cells) == 4 and cells[1].strip() == "3" and row.endswith(r"\\")
    bare = re.sub(r"\\text[a-z]+\{\}|\{[\[*]\}", "", cells[0])
    assert not re.search(r"(?<!\\)[%$#_{}~^&]", bare) and not re.search(r"\\[^%$#_{}&]", bare)


def test_latex_compiles_where_there_is_a_compiler(tmp_path: Path) -> None:
    compiler = shutil.which("pdflatex")
    text = latex(make_report(*(label for label in NASTY if label.isascii())))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1 and r"\multicolumn{2}{c}{Seen}" in text
    if compiler is None:
        pytest.skip("no pdflatex on this machine")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "report.tex").write_text(document)
    done = subprocess.run([compiler, "-interaction=nonstopmode", "-halt-on-error", "report.tex"], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("label", NASTY)
def test_csv_holds_full_numbers_and_no_formula(label: str) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(make_report(label)))))
    assert len(lines) == 4
    first = lines[0]
    assert (float(first["value"]), float(first["low"]), first["high"]) == (12.345678901234567, -1.5, "")
    assert (first["table"], first["protocol"], first["group"], first["column"], first["unit"], first["seeds"]) == (
        "table3-canonical", "canonical", "Seen", "J", "%", "3",
    )  # fmt: skip
    assert lines[1]["value"] == "" and lines[2]["kind"] == "control"
    assert not first["row"].startswith(("=", "+", "-", "@", "\t", "\r")) and "\n" not in first["row"]


def test_csv_says_on_each_line_that_features_are_random() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(make_report("full", random_features=True)))))
    assert {line["mark"] for line in lines} == {"other store; random features", "random features"}


def test_text_is_one_line_without_invisible_characters() -> None:
    assert escape_markdown("a\n\tb\x00c‮d") == "a b c d" == escape_latex("a\n\tb\x00c‮d")
    assert escape_latex("±") == r"$\pm$"

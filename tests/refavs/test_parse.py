"""Grade and dimension of expressions: against sentences judged by hand, the synthetic benchmark's labels, and any text.

expression_labels.csv holds three samples of 100 real expressions and what a reader of the paper says they are (empty:
the sentence does not say). Samples 1 and 2 are rows drawn at random; none of their sentences was looked at while the
parser was written, and they were judged before its answers were seen. The parser was changed between 1 and 2. Sample 3
is drawn from the distinct sentences in neither, so the common ones do not weigh; the parser had been written on such
sentences, and its answers to 14 of the 100 had been seen. Reader and author of the rules are the same, so this measures
whether the rules do what they say, not whether others would read the paper so. Right at first sight, of those answered:

    sample             dimension   grade
    1 (rows)           99 of 99    99 of 99
    2 (rows)           99 of 100   98 of 100
    3 (texts)          98 of 100   98 of 100
    3, 86 not seen     85 of 86    85 of 86

"decibel" was added after sample 2 showed that it was missing.
"""

import csv
import hashlib
import time
from functools import cache
from pathlib import Path

import pytest

from refavs.data.cues import DIMENSIONS, LENGTH_BINS, coverage, length_bin, main, parse
from refavs.data.layouts.ref_avs_metadata import read_metadata
from refavs.expressions.templates import TEMPLATES, sentences
from refavs.synthetic.scene import CATEGORIES

LABELS = Path(__file__).with_name("expression_labels.csv")


@cache
def texts_of(path: Path) -> list[str]:
    return read_metadata(path)[0]["text"].tolist()


@pytest.fixture
def texts(shared: Path) -> list[str]:
    return texts_of(shared / "data" / "metadata.csv")


def cues_of(text: str) -> tuple[str, str]:
    found = parse(text)
    return found.dimension or "", str(found.grade or "")


@pytest.mark.long
@pytest.mark.parametrize("sample", ["1", "2", "3"])
def test_parse_agrees_with_a_reader(sample: str, texts: list[str]) -> None:
    by_hash = {hashlib.sha256(text.encode()).hexdigest(): text for text in set(texts)}
    with LABELS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["sample"] == sample]
    assert len(rows) == 100
    for place, cue in enumerate(("dimension", "grade")):
        said = [(cues_of(by_hash[row["sha256"]])[place], row[cue]) for row in rows]
        said = [(found, label) for found, label in said if found]
        assert len(said) >= 95, "it abstains too often"
        assert sum(found == label for found, label in said) / len(said) >= 0.95, cue


@pytest.mark.long
def test_parse_covers_the_real_benchmark(texts: list[str]) -> None:
    dimensions, grades = zip(*map(cues_of, texts), strict=True)
    assert len(texts) == 20434
    assert dimensions.count("") <= 130 and grades.count("") <= 300
    assert set(dimensions) == {*DIMENSIONS, ""} and set(grades) == {"1", "2", "3", "4", "5", ""}
    report = coverage(texts)
    assert report.startswith("20,434 expressions, 5,226 distinct\n")
    assert "not said" in report and "'NO.'" in report


def test_parse_reads_every_synthetic_sentence() -> None:
    for template in TEMPLATES:
        for text in sentences(template, CATEGORIES):
            assert cues_of(text) == (template.dimension, str(template.grade)), text


@pytest.mark.parametrize(
    ("text", "dimension", "grade"),
    [
        ("sheep", "semantic", "1"),
        ("The old man.", "semantic", "1"),
        ("The man runing", "semantic", "1"),
        ("The guitar being played by a man.", "semantic", "2"),
        ("The man holding a guitar.", "semantic", "2"),
        ("The man in a red T-shirt and playing the guitar.", "semantic", "2"),
        ("The man on the right of the man.", "spatial", "1"),
        ("The chair sat on by a man", "semantic", "2"),
        ("The car appearing through the entire video.", "spatial+temporal", "1"),
        ("The first woman appearing in the video.", "spatial+temporal", "1"),
        ("The car appearing before the truck.", "spatial+temporal", "2"),
        ("The car appearing longer than a truck.", "spatial+temporal", "2"),
        ("The person singing after the woman.", "spatial+temporal", ""),
        ("The sounding handpan.", "acoustic", "1"),
        ("The sounding object.", "acoustic", "2"),
        ("The object making the loudest sound", "acoustic", "4"),
        ("The object making louder sound than the piano.", "acoustic", "4"),
        ("The man making a sound by singing a song.", "acoustic", "4"),
        ("The object making a sound by being played by the first man from left.", "acoustic", "4"),
        ("The object volume is larger over the time.", "acoustic+temporal", "5"),
        ("The object rhythm is faster over the time.", "acoustic+temporal", "5"),
        ("The first object to make a sound.", "acoustic+temporal", "5"),
        ("The object that making a sound before the guitar.", "acoustic+temporal", "5"),
        ("The object that keeps making sound at all times.", "acoustic+temporal", "5"),
        ("The object making longer sound duration than the man.", "acoustic+temporal", "5"),
        ("The object making faster rhythm than the piano.", "acoustic", "5"),
        ("The object making the intermittent sound.", "acoustic", "5"),
        ("The first sounding guitar held by a boy.", "acoustic+temporal", "3"),
        ("The man near the last sounding instrument.", "acoustic+temporal", "3"),
        ("The man near the sounding piano.", "acoustic", "5"),
        ("The sounding piano near the man.", "acoustic", "5"),
        ("The wearing the glasses and sounding man.", "acoustic", "3"),
        ("The young woman near the sounding piano.", "acoustic", "3"),
        ("The yellow bus that makes lower sound than car.", "acoustic", ""),
        ("The instrument that didn\u2019t make any sound.", "acoustic", ""),
        ("NO.", "", ""),
        ("Error: no such object is in the video", "", ""),
        ("左边的人。", "", ""),
        ("lorem ipsum dolor", "", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_parse_follows_the_papers_templates(text: str, dimension: str, grade: str) -> None:
    assert cues_of(text) == (dimension, grade)


def test_parse_ignores_case_space_and_stops() -> None:
    plain = parse("the sounding object near the man")
    for text in (
        "THE SOUNDING OBJECT NEAR THE MAN!!", "  the\tsounding object_near the\u00a0man. ",
        "\u201cThe sounding\u2003object near the man\u201d",
    ):  # fmt: skip
        found = parse(text)
        assert (found.grade, found.dimension) == (plain.grade, plain.dimension) == (5, "acoustic")


@pytest.mark.parametrize(
    "unit",
    ["a", "the ", "'", "by being ", "sounding on the left by ", "\u0130", "\ufb03", "\U0001f3b8 ", "\ud800", "\x00",
     "\u0301", "\u202e", "NO. ", "!"],
)  # fmt: skip
def test_parse_takes_any_text_in_linear_time(unit: str) -> None:
    for length in (1, 20, 100_000):
        text = (unit * length)[:length]
        started = time.thread_time()
        found = parse(text)
        assert time.thread_time() - started < 2  # of processor, not of the clock; 0.005 measured
        assert found.length == len(text.split())
        assert found.dimension is None or found.dimension in DIMENSIONS


def test_length_bins_are_those_of_the_paper() -> None:
    bins = {num_words: length_bin(num_words) for num_words in (0, 1, 4, 5, 8, 9, 12, 13, 100)}
    assert list(dict.fromkeys(bins.values())) == list(LENGTH_BINS)
    assert bins[4] == "<=4" and bins[5] == bins[8] == "5-8" and bins[9] == bins[12] == "9-12" and bins[13] == ">12"


def test_command_prints_the_coverage_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text("vid,uid,split,fid,exp\na,a_b_1,train,0,The sounding object.\na,a_b_2,train,0,N/O\x1b\n")
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert "2 expressions, 2 distinct" in out and "\x1b" not in out
    assert main([str(tmp_path / "none.csv")]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err

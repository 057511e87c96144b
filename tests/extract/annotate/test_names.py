"""The table of names: what is read, and what each bad row gets."""

from dataclasses import replace
from pathlib import Path

import pytest

from extract.annotate.names import NEW, numbered, read_names
from extract.annotate.records import Request
from refavs.data.layouts import Clip
from refavs.errors import DatasetError

ROOT = Path("/videos")
CLIPS = [Clip(id="day1/a", video=ROOT / "day1/a.mp4", root=ROOT), Clip(id="b", video=ROOT / "b.mp4", root=ROOT)]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "names.csv"
    path.write_text(text)
    return path


def test_rows_of_clips_with_pivots_and_boxes(tmp_path: Path) -> None:
    found = read_names(table(tmp_path, "vid,name,fid,pivot,x0,y0,x1,y1\nday1/a,dog,,,,,,\nb.mp4,a man,4,3,1,2,30,40.5\n"
                                       "b,a man,4,7,,,,\n"), CLIPS, 10)  # fmt: skip
    assert found.rows == {
        "day1/a": [Request(fid=NEW, name="dog")],
        "b": [Request(fid=4, name="a man", pivot=3, box=(1, 2, 30, 40.5)), Request(fid=4, name="a man", pivot=7)],
    }
    assert not found.problems


@pytest.mark.parametrize(("row", "problem"), [
    ("c,dog,,,,,,", "row 2: there is no clip 'c'; known: b, b.mp4, day1/a, day1/a.mp4; the row is left out"),
    ("day1,dog,,,,,,", "there is no clip 'day1'; did you mean 'day1/a'?"),
    ("b,,,,,,,", "it has no name"),
    ("b,dog,,10,,,,", "pivot is '10'; accepted: 0 to 9, or nothing"),
    ("b,dog,,soon,,,,", "pivot is 'soon'; accepted: 0 to 9, or nothing"),
    ("b,dog,0,,,,,", "fid is '0'; accepted: 1 to 9999, or nothing"),
    ("b,dog,,1,5,5,5,9", "the box 5,5,5,9 is none; accepted: x0 < x1 and y0 < y1, in pixels"),
    ("b,dog,,1,5,5,,9", "the box 5,5,,9 is none"),
    ("b,dog,,1,nan,5,8,9", "the box nan,5,8,9 is none"),
    ("b,dog,,,1,2,3,4", "it has a box without a pivot"),
    ("b,dog,7,,,,,", "fid 7 of 'b' is called 'cat' in an earlier row, not 'dog'"),
])  # fmt: skip
def test_a_bad_row_is_told_and_the_rest_goes_on(row: str, problem: str, tmp_path: Path) -> None:
    found = read_names(table(tmp_path, f"vid,name,fid,pivot,x0,y0,x1,y1\nb,cat,7,,,,,\n{row}\n"), CLIPS, 10)
    assert found.rows == {"b": [Request(fid=7, name="cat")]}
    (line,) = found.problems
    assert problem in line and line.startswith("names.csv, row 2: ")


def test_an_unknown_column_is_told(tmp_path: Path) -> None:
    found = read_names(table(tmp_path, "vid,name,pivto\nb,dog,3\n"), CLIPS, 10)
    assert found.remarks == ["names.csv: column 'pivto' is not used; did you mean 'pivot'?"] and not found.problems
    assert found.rows == {"b": [Request(fid=NEW, name="dog")]}


@pytest.mark.parametrize(("text", "message"), [
    ("name\ndog\n", "no column 'vid'"),
    ("vid,name\nc,dog\n", r"none of its 1 rows names an object of a clip \(names.csv, row 1: there is no clip 'c'"),
    ("vid,name\n", "none of its 0 rows"),
])  # fmt: skip
def test_a_table_without_a_usable_row_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        read_names(table(tmp_path, text), CLIPS, 10)
    with pytest.raises(DatasetError, match="no such file"):
        read_names(tmp_path / "absent.csv", CLIPS, 10)


DOG, MAN = Request(fid=NEW, name="dog"), Request(fid=NEW, name="man")


def test_numbers_are_given_in_order_and_stay() -> None:
    first = numbered([DOG, MAN, DOG], ())
    assert [row.fid for row in first] == [1, 2, 3]
    grown = numbered([replace(MAN, pivot=3), DOG, MAN, DOG], first)
    assert [(row.name, row.fid) for row in grown] == [("man", 4), ("dog", 1), ("man", 2), ("dog", 3)]
    assert numbered([DOG, MAN, DOG], first) == first


def test_a_number_of_the_table_counts_and_one_of_a_removed_row_is_not_given_again() -> None:
    assert [row.fid for row in numbered([DOG, replace(MAN, fid=1)], ())] == [2, 1]
    earlier = numbered([DOG, MAN], ())
    assert [row.fid for row in numbered([MAN, Request(fid=NEW, name="cat")], earlier)] == [2, 3]

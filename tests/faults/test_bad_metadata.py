"""Bad and odd metadata and masks: a clear line for each bad file, right values for each odd one, bounded resources."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refavs.data.layouts import read_source
from refavs.data.layouts.ref_avs_metadata import read_metadata
from refavs.data.masks import read_masks
from refavs.errors import DatasetError
from tests.faults import bad_media as bad

HEADER = "vid,uid,split,fid,exp\n"
GOOD = "a_0_1,a_0_1_cat_1,train,0,The cat.\n"


def text_of(row: str, header: str = HEADER) -> Callable[[Path], object]:
    """Writes a good row and then that one."""
    return lambda path: path.write_bytes((header + GOOD + row).encode())


# Kind -> how metadata.csv is written, and what the one line says.
BAD_TABLES: dict[str, tuple[Callable[[Path], object], str]] = {
    "NUL byte in an expression": (text_of("b_0_1,b_0_1_cat_1,train,0,The\0cat\n"), r"line 3 contains a NUL byte"),
    "UTF-16 with a mark": (
        lambda path: path.write_bytes((HEADER + GOOD).encode("utf-16")), r"as CSV in UTF-8 .*save it as such"),
    "UTF-16 without": (
        lambda path: path.write_bytes((HEADER + GOOD).encode("utf-16-le")), r"line 1 contains a NUL byte .UTF-16"),
    "Latin-1": (lambda path: path.write_bytes((HEADER + "caf\xe9").encode("latin-1")), r"as CSV in UTF-8 .*save it"),
    "column twice": (
        lambda path: path.write_text("vid,uid,split,fid,exp,exp\n"), r"column 'exp' more than once among vid, "),
    "column missing": (lambda path: path.write_text("vid,split,fid,exp\n"), r"no column 'uid' among vid, split, fid"),
    "empty file": (lambda path: path.touch(), r"cannot be read \(the file is empty \(0 bytes\)\); expected a CSV file"),
    "header alone": (lambda path: path.write_text(HEADER), r"none of the 0 clips of metadata\.csv has a folder"),
    "HTML page": (lambda path: path.write_text("<html>\n<body>\n"), r"no column 'vid', .* among <html>; accepted"),
    "quote never closed": (
        lambda path: path.write_text(HEADER + 'a,"' + 200_000 * "x"), r"cannot be read as CSV in UTF-8 \(field larger"),
    "newline in an id": (text_of('v,"b_0_1_c\nat_1",train,0,x\n'), r"row 1: a control character in uid 'b_0_1_c\\nat"),
    "newline in a media id": (text_of('v,"b\n_cat_1",train,0,x\n'), r"row 1: 'b\\n' cannot be a media id"),
    "id with ../": (text_of("v,../../etc/x_cat_1,train,0,x\n"), r"row 1: '../../etc/x' cannot be a media id; accepted"),
    "absolute path as id": (text_of("v,/etc/passwd_cat_1,train,0,x\n"), r"row 1: '/etc/passwd' cannot be a media id"),
    "Windows path as id": (text_of("v,C:\\x_cat_1,train,0,x\n"), r"row 1: 'C:\\\\x' cannot be a media id"),
    "fid with ../": (text_of("v,b_0_1_cat_1,train,../0,x\n"), r"row 1: fid '\.\./0'; accepted: the whole number"),
    "fid in other digits": (text_of("v,b_0_1_cat_1,train,\u0663,x\n"), r"row 1: fid '\u0663'; accepted: the whole"),
    "folder": (Path.mkdir, r"cannot be read \(it is a folder, not a file\); expected a CSV file with columns vid,uid"),
    "named pipe": (os.mkfifo, r"cannot be read \(it is a named pipe, not a file\); expected a CSV file"),
    "link to /dev/zero": (lambda path: path.symlink_to("/dev/zero"), r"cannot be read \(it is a device, not a file\)"),
    "link to nothing": (lambda path: path.symlink_to("gone.csv"), r"it is a symbolic link to nothing: gone\.csv"),
    "link to itself": (lambda path: path.symlink_to(path.name), r"Too many levels of symbolic links"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_bad_metadata_is_one_line(tmp_path: Path, kind: str) -> None:
    build, text = BAD_TABLES[kind]
    build(tmp_path / "metadata.csv")
    bad.clip_files(tmp_path / "media" / "a_0_1")
    with pytest.raises(DatasetError) as caught:
        read_source(tmp_path)
    line = str(caught.value)
    assert re.search(text, line) and "\n" not in line and "metadata.csv" in line and len(line) < 500, line


@pytest.mark.parametrize(
    ("content", "uids", "texts"),
    [
        (b"\xef\xbb\xbf" + (HEADER + GOOD).encode(), ["a_0_1_cat_1"], ["The cat."]),
        ((HEADER + GOOD).replace("\n", "\r\n").encode(), ["a_0_1_cat_1"], ["The cat."]),
        ((HEADER + GOOD).replace("\n", "\r").encode(), ["a_0_1_cat_1"], ["The cat."]),
        ((HEADER + GOOD).rstrip().encode(), ["a_0_1_cat_1"], ["The cat."]),
        ((HEADER + "a,\"a_0_1_c\"\"a't_1\",train,0,\"\"\"Quoted\"\", he said\"\n").encode(), ["a_0_1_c\"a't_1"],
         ['"Quoted", he said']),
        ((HEADER + 'a,a_0_1_cat_1,train,0,"Two\nlines"\n\n').encode(), ["a_0_1_cat_1"], ["Two\nlines"]),
        ("vid,uid,split,fid,exp,,\na,a_0_1_猫_1,train,0,Die Katze ist süß 🐈,,\n".encode(), ["a_0_1_猫_1"],
         ["Die Katze ist süß 🐈"]),
    ],
    ids=["byte order mark", "CRLF", "CR", "no last newline", "quotes", "newline in a text", "other scripts"],
)  # fmt: skip
def test_odd_metadata_is_read_as_it_is(tmp_path: Path, content: bytes, uids: list[str], texts: list[str]) -> None:
    (tmp_path / "metadata.csv").write_bytes(content)
    bad.clip_files(tmp_path / "media" / "a_0_1")
    table = read_source(tmp_path).expressions
    assert table["uid"].tolist() == uids and table["text"].tolist() == texts and table["clip_id"].tolist() == ["a_0_1"]


def test_quotes_in_a_media_id_name_its_folder(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(HEADER + "v,\"a'\"\"b_0_1_cat_1\",train,0,The cat.\n")
    bad.clip_files(tmp_path / "media" / "a'\"b_0_1")
    (clip,) = read_source(tmp_path).clips
    assert clip.id == "a'\"b_0_1" and clip.frames[9].is_file()


def test_folders_that_cannot_be_are_missing_media_and_masks(tmp_path: Path) -> None:
    rows = [f"{name}_0_1,{name}_0_1_cat_1,train,0,The cat.\n" for name in ("a", "file", "loop", "x" * 300)]
    (tmp_path / "metadata.csv").write_text(HEADER + "".join(rows))
    bad.clip_files(tmp_path / "media" / "a_0_1")
    (tmp_path / "media" / "file_0_1").touch()
    (tmp_path / "media" / "loop_0_1").symlink_to("loop_0_1")
    (tmp_path / "gt_mask" / "a_0_1").mkdir(parents=True)
    (tmp_path / "gt_mask" / "a_0_1" / "fid_0").touch()
    source = read_source(tmp_path)
    assert [clip.id for clip in source.clips] == ["a_0_1"] and source.expressions["fid"].tolist() == [-1]
    assert source.report.names["missing_media"] == ["file_0_1", "loop_0_1", f"{'x' * 300}_0_1"]
    assert source.report.names["missing_masks"] == ["a_0_1/fid_0"]


def test_videos_that_cannot_be_clips_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mkv")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)
        server.bind("socket.avi")
        os.chdir(here)
    (tmp_path / "a..b.mp4").touch()
    (tmp_path / "a\nb.mp4").touch()
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))).touch()
    (tmp_path / "lost.mp4").symlink_to("gone")  # a clip that fails with its own line
    source = read_source(tmp_path)
    assert [clip.id for clip in source.clips] == ["good", "lost"]
    assert source.report.names["not_files"] == ["folder.mp4", "pipe.mkv", "socket.avi"]
    assert source.report.names["unusable_names"] == ["a\nb.mp4", "a..b.mp4", "caf\udce9.mp4"]
    text = "\n".join(source.report.lines())
    text.encode()  # a terminal can print it
    assert "['a\\nb.mp4', 'a..b.mp4', 'caf\\udce9.mp4']" in text and len(text.splitlines()) == 3


# Measured: 80 MB for 10^5 rows of 100 bytes, 700 MB for 10^6.
BYTES_PER_ROW, START_MB = 900, 60
MEASURE = bad.PEAK_MB + """
import sys
from refavs.data.layouts import read_source
before = peak_mb(since_now=True)
source = read_source(sys.argv[1])
print(len(source.expressions), peak_mb() - before)
"""


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("num_rows", [10**5, pytest.param(10**6, marks=pytest.mark.slow)])
def test_many_rows_take_bounded_memory(tmp_path: Path, num_rows: int) -> None:
    with (tmp_path / "metadata.csv").open("w") as file:
        file.write(HEADER)
        for row in range(num_rows):
            vid = f"v{row // 5:07d}_0_10000"
            text = f"The object {row % 5000} that sings before the man."
            file.write(f"{vid},{vid}_cat_{row % 5},train,{row % 3},{text}\n")
    (tmp_path / "media").mkdir()
    for clip in range(0, num_rows // 5, num_rows // 500):
        (tmp_path / "media" / f"v{clip:07d}_0_10000").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )
    num_kept, growth_mb = map(float, run.stdout.split())
    assert num_kept == 500
    assert growth_mb < START_MB + BYTES_PER_ROW * num_rows / 2**20


# ------------------------------------------------------------------------------------------------------------ masks


def mask_folder(root: Path) -> Path:
    folder = root / "src" / "gt_mask" / "a_0_1" / "fid_0"
    folder.mkdir(parents=True)
    return folder


BAD_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, r"no such mask; expected a PNG for each labelled frame"),
    "of another size": (lambda path: Image.new("L", (8, 4)).save(path), r"mask of 4x8 pixels .* its frame has 4x6"),
    "JPEG named .png": (lambda path: Image.new("L", (6, 4)).save(path, "JPEG"), "its content is JPEG, which blurs"),
    "of 2^31 x 2^31": (lambda path: path.write_bytes(bad.png_header(2**31 - 1, 2**31 - 1)), r"declares 2147483647x"),
    "empty": (lambda path: path.touch(), r"cannot be read as a PNG mask \(the file is empty"),
    "named pipe": (os.mkfifo, r"\(it is a named pipe, not a file\); unpack that file again"),
    "link out of the masks": (
        lambda path: (Image.new("L", (6, 4)).save(path.parents[4] / "elsewhere.png"),
                      path.symlink_to(path.parents[4] / "elsewhere.png")),
        r"a symbolic link leads out of .*gt_mask to .*elsewhere\.png"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MASKS)
def test_bad_mask_is_one_line(tmp_path: Path, kind: str) -> None:
    build, text = BAD_MASKS[kind]
    folder = mask_folder(tmp_path)
    build(folder / "00003.png")
    with pytest.raises(DatasetError) as caught:
        read_masks([folder / "00003.png"], size=(2, 3), expected_size=(4, 6), root=folder.parents[1])
    line = str(caught.value)
    assert re.search(text, line) and str(folder / "00003.png") in line and "\n" not in line, line


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 255, 128])], ids=["opaque", "one colour", "bytes"])
def test_palette_masks_count_by_colour(tmp_path: Path, transparency: int | bytes | None) -> None:
    folder, places = mask_folder(tmp_path), np.zeros((4, 6), np.uint8)
    places[1:3, 2:5] = 1
    places[3, 5] = 2
    picture = Image.fromarray(places)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # black, then the colours that DAVIS uses
    assert picture.mode == "P"
    picture.save(folder / "00000.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_masks([folder / "00000.png"])[0], places > 0)


def test_metadata_that_many_rows_share_is_read_alike(tmp_path: Path) -> None:
    rows = [f"a_0_1,a_0_1_cat_{row % 3},train,{row % 2},{('The cat', 'NO.')[row % 2]}\n" for row in range(9)]
    (tmp_path / "metadata.csv").write_text(HEADER + "".join(rows))
    table, report = read_metadata(tmp_path / "metadata.csv")
    assert len(table) == 9 and report.rows["placeholder_text"] == [1, 3, 5, 7]
    assert report.counts["total_text_words"] == 14 and report.counts["longest_text_words"] == 2

"""The benchmark's layout and its metadata, a folder of videos, and the text of every error about them."""

import re
from pathlib import Path

import numpy as np
import pytest

from refavs.data.layouts import Object, read_source
from refavs.data.layouts.ref_avs_bench import RefAvsBench
from refavs.data.layouts.ref_avs_metadata import read_metadata
from refavs.data.layouts.videos import Videos
from refavs.errors import DatasetError
from refavs.files.tables import named_on_disk

HEADER = "vid,uid,split,fid,exp\n"
REAL_COUNTS = {
    "rows_total": 20459, "rows_kept": 20434, "split_todo": 25, "empty_text": 0,
    "rows_train": 14113, "rows_val": 1349, "rows_test_s": 2288, "rows_test_u": 1656, "rows_test_n": 1028,
    "rows_todo": 25,
    "media": 3993, "media_train": 2919, "media_val": 275, "media_test_s": 273, "media_test_u": 269,
    "media_test_n": 257, "media_todo": 8,
    "vids": 3573, "vids_train": 2767, "vids_val": 257, "vids_test_s": 273, "vids_test_u": 269, "vids_test_n": 257,
    "vids_todo": 8,
    "objects": 7803, "objects_train": 6133, "objects_val": 582, "objects_test_s": 494, "objects_test_u": 337,
    "objects_test_n": 257, "objects_todo": 9,
    "null_rows": 1708, "null_rows_train": 608, "null_rows_val": 72, "null_rows_test_s": 0, "null_rows_test_u": 0,
    "null_rows_test_n": 1028, "null_rows_crossed": 868, "null_rows_muted": 840, "media_id_not_vid": 1708,
    "null_media": 427, "null_media_train": 152, "null_media_val": 18, "null_media_test_n": 257,
    "null_vids_of_test_s": 250, "null_vids_of_train": 152,
    "null_texts": 8, "null_text_rows_train_null": 608, "null_text_rows_train_object": 1,
    "null_text_rows_test_object": 2,
    "distinct_texts": 5226, "distinct_texts_train": 3402, "distinct_texts_val": 610, "distinct_texts_test_s": 1296,
    "distinct_texts_test_u": 776, "distinct_texts_test_n": 8,
    "text_in_train_test_s": 1054, "text_in_train_test_u": 597, "text_in_train_val": 1096,
    "text_in_train_test_n": 1028,
    "repeated_uids": 11, "uid_with_two_fids": 1, "repeated_expressions": 53, "repeated_expressions_test_u": 38,
    "repeated_expressions_test_s": 14, "repeated_expressions_val": 1,
    "unseen_objects": 24, "unseen_objects_absent_from_train": 13, "unseen_objects_in_train": 11,
    "vids_across_splits": 0, "longest_text_words": 22,
    "error_text": 1, "placeholder_text": 103, "non_ascii_text": 2, "padded_text": 40, "double_space_text": 6,
}


def write_csv(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "metadata.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def write_benchmark(root: Path) -> Path:
    """Three clips of metadata, two with media, and of their three objects two with masks."""
    write_csv(
        root,
        "a_0_10,a_0_10_cat_1,train,0,The cat.",
        "a_0_10,a_0_10_dog_1,train,3,The dog.",
        'b_0_10,b_0_10_cat_1,test_s,1,"The cat, sitting."',
        "b_0_10,null_m-b_0_10_null_1,test_n,0,The sounding object",
    )
    for clip in ("a_0_10", "b_0_10"):
        (root / "media" / clip / "frames").mkdir(parents=True)
    for folder in ("a_0_10/fid_0", "b_0_10/fid_1"):
        (root / "gt_mask" / folder).mkdir(parents=True)
    return root


# ---------------------------------------------------------------------------------------------------- metadata


@pytest.mark.long
def test_real_metadata_report_names_every_odd_kind(shared: Path) -> None:
    table, report = read_metadata(shared / "data" / "metadata.csv")
    assert {kind: report.counts[kind] for kind in REAL_COUNTS} == REAL_COUNTS
    assert round(report.counts["total_text_words"] / report.counts["rows_kept"], 1) == 8.1
    assert list(table.columns) == ["uid", "vid", "media_id", "split", "fid", "text"]
    assert len(table) == 20434 and table["text"].nunique() == 5226
    assert set(table["split"]) == {"train", "val", "test_s", "test_u", "test_n"}
    assert report.names["uid_with_two_fids"] == ["MDyjY3uiWp0_297000_307000_saw_4"]
    assert report.names["unseen_objects_absent_from_train"] == [
        "baby", "emergency-car", "gun", "leopard", "lion", "motorcycle", "mower", "pig", "sheep", "tiger", "truck",
        "tuba", "wolf",
    ]
    assert "The sounding object" in report.names["null_texts"]


@pytest.mark.long
def test_real_metadata_rows_are_those_of_the_file(shared: Path) -> None:
    table, report = read_metadata(shared / "data" / "metadata.csv")
    assert table.index.is_unique and not set(report.rows["split_todo"]) & set(table.index)
    assert table.loc[report.rows["error_text"], "text"].str.contains("Error").all()
    assert (table.loc[report.rows["placeholder_text"], "text"] == "NO.").all()
    assert table.loc[report.rows["repeated_uids"], "uid"].isin(table["uid"]).all()
    assert (table["media_id"] == table["uid"].str.rsplit("_", n=2).str[0]).all()
    assert table.loc[0, "text"] == "The object having white and gray fur."


@pytest.mark.long
def test_real_metadata_report_reads_as_text(shared: Path) -> None:
    text = "\n".join(read_metadata(shared / "data" / "metadata.csv")[1].lines())
    assert re.search(r"20,434 +rows_kept", text)
    assert re.search(r"25 +split_todo: rows left out: split TODO.*row 15999, row 16000, row 16001, \.\.\.", text)
    assert re.search(r"11 +repeated_uids", text)
    assert "'MDyjY3uiWp0_297000_307000_saw_4'" in text
    assert "test_n: 1,028 rows, 257 media ids" in text
    assert "missing_media" not in text and "empty_text" not in text


def test_metadata_keeps_texts_and_repeated_rows_as_they_are(tmp_path: Path) -> None:
    rows = ["a_0_1,a_0_1_cat_1,train,0, The  cat NA ", "a_0_1,a_0_1_cat_1,train,2,NA", "a_0_1,a_0_1_cat_2,train,0,  "]
    table, report = read_metadata(write_csv(tmp_path, *rows))
    assert table["text"].tolist() == [" The  cat NA ", "NA"]
    assert table["fid"].tolist() == [0, 2] and table["fid"].dtype == np.int64
    assert report.rows["repeated_uids"] == [1] and report.rows["empty_text"] == [2]
    assert report.rows["padded_text"] == report.rows["double_space_text"] == [0]
    assert report.counts["uid_with_two_fids"] == 1 and report.counts["rows_kept"] == 2


def test_metadata_reads_a_byte_order_mark_and_quotes(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    row = b'a_1_cat_1,a_1,val,0,"The ""cat"", left",x'
    path.write_bytes(b"\xef\xbb\xbfuid,vid,split,fid,exp,note\r\n" + row + b"\r\n\r\n")
    table, _ = read_metadata(path)
    assert table.to_dict("records") == [
        {"uid": "a_1_cat_1", "vid": "a_1", "media_id": "a_1", "split": "val", "fid": 0, "text": 'The "cat", left'}
    ]


def test_metadata_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    table, report = read_metadata(write_csv(tmp_path))
    assert len(table) == 0 and report.counts["rows_total"] == report.counts["longest_text_words"] == 0


@pytest.mark.parametrize(
    "media_id", ["../../etc/x", "a/b", "a\\b", "..", "a..b", ".hidden", "", "a\x07b", "a\nb"]
)
def test_metadata_refuses_ids_that_leave_the_folder(tmp_path: Path, media_id: str) -> None:
    path = write_csv(tmp_path, f'v,"{media_id}_cat_1",train,0,The cat.')
    with pytest.raises(DatasetError, match=r"metadata.csv, row 0: .* cannot be a media id; accepted: a plain name"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,a_1_cat_1,trian,0,x", r"row 1: unknown split 'trian'; accepted: train, val, test_s, test_u, test_n, TODO"),
        ("a,a_1_cat_1,train,x,x", r"row 1: fid 'x'; accepted: the whole number of its mask folder fid_<fid>"),
        ("a,a_1_cat_1,train,-1,x", r"row 1: fid '-1'; accepted"),
        ("a,cat_1,train,0,x", r"row 1: uid 'cat_1' is not of the form <media id>_<object>_<number>"),
        ("a,a_1_cat_1,train,0,x,y", r"line 3: 6 fields, but the header has 5; put an expression with a comma in"),
        ("a,a_1_cat_1,train,0", r"line 3: 4 fields, but the header has 5"),
        ('a,a_1_cat_1,train,0,"x" y', r"cannot be read as CSV in UTF-8"),
    ],
)
def test_metadata_errors_name_row_and_remedy(tmp_path: Path, row: str, message: str) -> None:
    path = write_csv(tmp_path, "a,a_1_cat_2,train,0,good", row)
    with pytest.raises(DatasetError, match=message):
        read_metadata(path)


def test_metadata_errors_about_the_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no.csv: no such file; expected a CSV file with columns vid,uid"):
        read_metadata(tmp_path / "no.csv")
    with pytest.raises(DatasetError, match=r"cannot be read \(it is a folder, not a file\); expected a CSV file"):
        read_metadata(tmp_path)
    with pytest.raises(DatasetError, match=r"no column 'uid', 'exp' among vid, split, fid; accepted: .*vid,uid,split,"):
        read_metadata(write_csv(tmp_path, header="vid,split,fid\n"))
    with pytest.raises(DatasetError, match=r"no column .* among nothing"):
        read_metadata(write_csv(tmp_path, header="\n"))
    with pytest.raises(DatasetError, match=r"the file is empty \(0 bytes\)\); expected a CSV file with columns vid"):
        read_metadata(write_csv(tmp_path, header=""))
    (tmp_path / "metadata.csv").write_bytes(HEADER.encode() + b"a,a_1_cat_1,train,0,\xff\xfe\n")
    with pytest.raises(DatasetError, match=r"cannot be read as CSV in UTF-8 .*save it as such"):
        read_metadata(tmp_path / "metadata.csv")


# --------------------------------------------------------------------------------------------------- benchmark


def test_benchmark_lists_clips_objects_and_expressions(tmp_path: Path) -> None:
    source = RefAvsBench().read(write_benchmark(tmp_path))
    assert source.splits["val"] == "validation" and source.root == tmp_path
    assert [clip.id for clip in source.clips] == ["a_0_10", "b_0_10"]
    assert source.clips[0].frames[3] == tmp_path / "media" / "a_0_10" / "frames" / "3.jpg"
    assert source.clips[0].audio == tmp_path / "media" / "a_0_10" / "audio.wav"
    assert source.clips[0].video is None
    masks = {second: tmp_path / "gt_mask" / "a_0_10" / "fid_0" / f"{second:05d}.png" for second in range(10)}
    assert source.objects[0] == Object(clip_id="a_0_10", fid=0, masks=masks, root=tmp_path / "gt_mask")
    assert [(one.clip_id, one.fid, len(one.masks)) for one in source.objects[1:]] == [("b_0_10", 1, 10)]
    assert list(source.expressions.columns) == ["uid", "vid", "clip_id", "fid", "split", "text", "grade", "dimension",
                                                "null"]
    assert source.expressions["clip_id"].tolist() == ["a_0_10", "a_0_10", "b_0_10"]
    assert source.expressions["text"].tolist() == ["The cat.", "The dog.", "The cat, sitting."]
    assert source.expressions.index.tolist() == [0, 1, 2]


def test_benchmark_names_missing_media_and_masks(tmp_path: Path) -> None:
    source = RefAvsBench().read(write_benchmark(tmp_path))
    assert source.report.names["missing_media"] == ["null_m-b_0_10"]
    assert source.report.names["missing_masks"] == ["a_0_10/fid_3"]
    assert source.report.counts["missing_media"] == source.report.counts["missing_masks"] == 1
    assert source.expressions["fid"].tolist() == [0, -1, 1]
    assert "1  missing_media: clips left out" in "\n".join(source.report.lines())


def test_benchmark_of_other_working_directory_has_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_benchmark(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = read_source(".")
    assert source.root.is_absolute() and source.clips[0].frames[0].is_absolute()


def test_benchmark_takes_grade_and_dimension_from_expressions_csv(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "expressions.csv").write_text("uid,grade,dimension,template\na_0_10_dog_1,2,spatial,t1\n")
    expressions = RefAvsBench().read(tmp_path).expressions
    assert expressions["grade"].tolist() == ["", "2", ""]
    assert expressions["dimension"].tolist() == ["", "spatial", ""]


def test_benchmark_without_expressions_csv_has_cues_parsed_from_the_text(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    write_csv(
        root,
        "a_0_10,a_0_10_cat_1,train,0,The cat.",
        "a_0_10,a_0_10_dog_1,train,3,NO.",
        "b_0_10,b_0_10_cat_1,test_s,1,The first object to make a sound.",
    )
    expressions = RefAvsBench().read(root).expressions
    assert expressions["grade"].tolist() == ["1", "", "5"]
    assert expressions["dimension"].tolist() == ["semantic", "", "acoustic+temporal"]


def test_benchmark_refuses_expressions_csv_without_columns(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    (tmp_path / "expressions.csv").write_text("uid,grade\n")
    with pytest.raises(DatasetError, match=r"expressions.csv: no column 'dimension' among uid, grade"):
        RefAvsBench().read(tmp_path)


def test_benchmark_without_any_media_is_refused(tmp_path: Path) -> None:
    write_csv(tmp_path, "a,a_1_cat_1,train,0,x")
    with pytest.raises(DatasetError, match=r"none of the 1 clips of metadata.csv has a folder under .*Unpack"):
        RefAvsBench().read(tmp_path)


# ------------------------------------------------------------------------------------------------------ videos


def test_videos_lists_files_by_suffix(tmp_path: Path) -> None:
    films = ("b.MP4", "a.webm", "c.avi", "d.mov", "e.mkv", "h.m4v", "i.ts", "j.m2ts", "k.MTS")
    for name in (*films, "notes.txt", "._a.mp4", "f.wav"):
        (tmp_path / name).touch()
    (tmp_path / "g.mp4").mkdir()
    source = Videos().read(tmp_path)
    assert not source.splits
    assert [clip.id for clip in source.clips] == ["a", "b", "c", "d", "e", "h", "i", "j", "k"]
    assert source.clips[1].video == tmp_path / "b.MP4" and not source.clips[1].frames
    assert source.report.names == {"not_files": ["g.mp4"]}
    assert len(source.objects) == len(source.expressions) == 0


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("written", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_names_match_in_either_unicode_form(tmp_path: Path, written: str, stored: str) -> None:
    """A table from one machine and files from another, as of a Mac."""
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / f"{stored}.mp4").touch()
    (tmp_path / "say.csv").write_text(f"video,exp\n{written}.mp4,One\n{written},Two\n")
    source = Videos().read(videos, tmp_path / "say.csv")
    assert [clip.id for clip in source.clips] == [COMPOSED] and source.clips[0].video == videos / f"{stored}.mp4"
    assert list(source.expressions["clip_id"]) == [COMPOSED] * 2 and not source.report.counts["missing_media"]

    root = tmp_path / "bench"
    (root / "media" / f"{stored}_0_10" / "frames").mkdir(parents=True)
    (root / "gt_mask" / f"{written}_0_10" / "fid_0").mkdir(parents=True)
    write_csv(root, f"{written}_0_10,{written}_0_10_cat_1,train,0,The cat.")
    (root / "expressions.csv").write_text(f"uid,grade,dimension\n{stored}_0_10_cat_1,2,spatial\n")
    source = RefAvsBench().read(root)
    assert [clip.id for clip in source.clips] == [f"{COMPOSED}_0_10"]
    assert source.clips[0].frames[0].parent == root / "media" / f"{stored}_0_10" / "frames"
    assert source.objects[0].masks[9] == root / "gt_mask" / f"{written}_0_10" / "fid_0" / "00009.png"
    for name in (written, stored, "gone"):
        found = name if name == "gone" else stored
        assert named_on_disk(root / "media", f"{name}_0_10") == root / "media" / f"{found}_0_10"
    assert list(source.expressions["dimension"]) == ["spatial"]


def test_names_that_differ_in_their_form_alone_are_refused(tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / "bench" / "media" / f"{name}_0_10" / "frames").mkdir(parents=True)
    if len(list(tmp_path.glob("*.mp4"))) == 2:  # a disk may see one name in both
        with pytest.raises(DatasetError, match="have the same id 'caf\u00e9'; rename one of them"):
            Videos().read(tmp_path)
        write_csv(tmp_path / "bench", f"x,{COMPOSED}_0_10_cat_1,train,0,The cat.")
        with pytest.raises(DatasetError, match="has two folders 'caf\u00e9_0_10', in composed and in decomposed"):
            RefAvsBench().read(tmp_path / "bench")


def test_videos_take_expressions_by_stem_or_file_name(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm"):
        (tmp_path / name).touch()
    path = tmp_path / "say.csv"
    path.write_text("video,exp\nb.webm,The cat\na,The dog\nb,The sounding object\nz,Lost\na, \n")
    source = read_source(tmp_path, path)
    assert source.expressions.to_dict("list") == {
        "uid": ["b_expression_0", "a_expression_0", "b_expression_1"],
        "vid": ["b", "a", "b"],
        "clip_id": ["b", "a", "b"],
        "fid": [-1, -1, -1],
        "split": ["predict"] * 3,
        "text": ["The cat", "The dog", "The sounding object"],
        "grade": [""] * 3,
        "dimension": [""] * 3,
        "null": [False] * 3,
    }
    assert source.report.names["missing_media"] == ["z"] and source.report.rows["empty_text"] == [4]
    assert "1  missing_media" in "\n".join(source.report.lines())


def test_videos_errors_name_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    path = tmp_path / "say.csv"
    path.write_text("video,exp\nz.mp4,Lost\n")
    with pytest.raises(DatasetError, match=r"none of its 1 rows is an expression about a video of the folder; .* a\."):
        Videos().read(tmp_path, path)
    path.write_text("file,exp\na,x\n")
    with pytest.raises(DatasetError, match=r"say.csv: no column 'video' among file, exp"):
        Videos().read(tmp_path, path)
    (tmp_path / "a.avi").touch()
    with pytest.raises(DatasetError, match=r"a.mp4 and .*a.avi have the same id 'a'; rename one of them"):
        Videos().read(tmp_path)
    (tmp_path / "a.avi").rename(tmp_path / "a..b.avi")
    assert Videos().read(tmp_path).report.names["unusable_names"] == ["a..b.avi"]
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(DatasetError, match=r"has no video \(left out: 'a..b.avi'\); accepted"):
        Videos().read(tmp_path)


def test_source_errors_name_both_forms(tmp_path: Path) -> None:
    both = r"accepted: a benchmark folder \(metadata.csv, .*\) .*or a folder of videos \(\*.mp4 \*.mkv \*.webm"
    with pytest.raises(DatasetError, match="does not exist; " + both):
        read_source(tmp_path / "no")
    with pytest.raises(DatasetError, match="matches no known layout; " + both):
        read_source(tmp_path)
    (tmp_path / "x.mp4").touch()
    with pytest.raises(DatasetError, match="is a file; " + both):
        read_source(tmp_path / "x.mp4")


def test_source_refuses_expressions_for_a_benchmark(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    assert read_source(tmp_path).layout == "ref-avs-bench"
    with pytest.raises(DatasetError, match=r"is a benchmark with its expressions in metadata.csv; leave out the CSV"):
        read_source(tmp_path, "say.csv")

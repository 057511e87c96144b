"""The layouts of other data sets, on small trees in their form: contract, labels, unions, splits, damaged files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refavs.choices import LAYOUTS
from refavs.data.layouts import Source, find_clip, read_source
from refavs.data.layouts.annotated_videos import held_out, of_each_second, spread
from refavs.data.layouts.contract import check_layout
from refavs.data.layouts.registry import GROUP
from refavs.data.layouts.sounding import SENTENCE
from refavs.data.masks import read_masks
from refavs.errors import DatasetError
from refavs.plugins import entry_named
from tests.support.other_datasets import SIZE, WRITERS, square, write_omniavs, written


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("others"))


@pytest.fixture(scope="module")
def sources(trees: dict[str, Path]) -> dict[str, Source]:
    return {name: read_source(root) for name, root in trees.items()}


def masks_of(source: Source, clip_id: str, fid: int = 0) -> dict[int, np.ndarray]:
    one = next(one for one in source.objects if (one.clip_id, one.fid) == (clip_id, fid))
    return dict(zip(one.masks, read_masks(list(one.masks.values()), (SIZE, SIZE), (SIZE, SIZE), root=one.root),
                    strict=True))  # fmt: skip


def texts_of(source: Source, split: str) -> list[tuple[str, int]]:
    rows = source.expressions[source.expressions["split"] == split]
    return sorted(set(zip(rows["text"], rows["fid"], strict=True)))


@pytest.mark.parametrize("name", WRITERS)
def test_layout_keeps_the_contract_and_recognises_its_folders(
    name: str, trees: dict[str, Path], sources: dict[str, Source]
) -> None:
    layout = entry_named(name, GROUP, LAYOUTS)()
    assert sources[name].layout == name
    found = check_layout(layout, trees[name])
    assert not any(layout.detect(root) for other, root in trees.items() if other != name)
    told = {"extraction": {"source": str(trees[name]), "layout": name}}
    assert all(find_clip(told, clip.id) == clip for clip in found.clips)


def test_s4_trains_on_the_first_second(sources: dict[str, Source]) -> None:
    source = sources["avsbench-s4"]
    labels = {one.clip_id: list(one.masks) for one in source.objects}
    assert labels["train/dog_barking/train000"] == [0]
    assert labels["test/dog_barking/test000"] == [0, 1, 2, 3, 4]
    assert (masks_of(source, "test/dog_barking/test000")[4] == square(4)).all()
    assert {len(clip.frames) for clip in source.clips} == {5}
    assert source.splits == {"train": "train", "val": "validation", "test": "test"}
    assert source.expressions["text"].unique().tolist() == [SENTENCE]
    assert source.report.names["without_sound"] == ["test/dog_barking/test000"]


def test_ms3_marks_everything_that_sounds(sources: dict[str, Source]) -> None:
    found = masks_of(sources["avsbench-ms3"], "train/train000")
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all((found[second] == (square(second) | square(second, standing=True))).all() for second in found)


def test_avss_is_read_as_binary_with_seconds_by_subset(sources: dict[str, Source]) -> None:
    source = sources["avss"]
    assert {clip.id: len(clip.frames) for clip in source.clips if "val" in clip.id} == {
        "v1s/v1s_val": 5, "v1m/v1m_val": 5, "v2/v2_val": 10,
    }  # fmt: skip
    assert len(masks_of(source, "v1s/v1s_train")) == 1 and len(masks_of(source, "v2/v2_train")) == 10
    assert (masks_of(source, "v1m/v1m_train")[3] == square(3)).all()
    assert source.report.names["other_split"] == ["v2/kept_back"]


def test_own_sentences_replace_the_fixed_one(trees: dict[str, Path], tmp_path: Path) -> None:
    csv = tmp_path / "say.csv"
    csv.write_text("video,exp\ntrain000,the dog\ntrain/dog_barking/train001,the other dog\nlost,nothing\n")
    source = read_source(trees["avsbench-s4"], csv)
    assert texts_of(source, "train") == [("the dog", 0), ("the other dog", 0)] and len(source.expressions) == 2
    assert source.report.names["missing_media"] == ["lost"] and len(source.clips) == 5
    with pytest.raises(DatasetError, match="has expressions of its own; leave out the CSV"):
        read_source(trees["mevis"], csv)


def test_clips_without_media_or_masks_are_named(trees: dict[str, Path], tmp_path: Path) -> None:
    root = WRITERS["avsbench-ms3"](tmp_path / "ms3")
    (root / "ms3_data" / "gt_masks" / "val" / "val000").rename(tmp_path / "away")
    (root / "ms3_data" / "visual_frames" / "test000").rename(tmp_path / "gone")
    source = read_source(root)
    assert source.report.names["missing_masks"] == ["val/val000"]
    assert source.report.names["missing_media"] == ["test/test000"]
    assert texts_of(source, "val") == [(SENTENCE, -1)] and not texts_of(source, "test")
    (root / "ms3_data" / "visual_frames").rename(tmp_path / "frames")
    with pytest.raises(DatasetError, match=r"none of the 5 clips .* has a folder of frames, e\.g\. .*; unpack"):
        read_source(root)


def test_omniavs_has_unions_nulls_and_a_frame_for_each_second(sources: dict[str, Source]) -> None:
    source = sources["omniavs"]
    clip = next(clip for clip in source.clips if clip.id == "train000")
    assert [path.name for path in clip.frames] == ["00000.jpg", "00004.jpg", "00008.jpg"]
    assert clip.audio is not None and clip.audio.suffix == ".mp3"
    expected = [("both of them", 1), ("the elephant", 2), ("the one that moves", 0)]
    assert texts_of(source, "train") == texts_of(source, "val") == expected
    assert texts_of(source, "test") == [("both of them", 1), ("the one that moves", 0)]
    assert texts_of(source, "test_null") == [("the elephant", 2)]
    assert source.splits["test_null"] == "null-test" and len(source.report.names["other_modality"]) == 8
    moving, both = masks_of(source, "train000", 0), masks_of(source, "train000", 1)
    assert (moving[1] == square(1)).all() and not moving[2].any()
    assert (both[1] == (square(1) | square(0, standing=True))).all() and (both[2] == square(0, standing=True)).all()
    null = next(one for one in source.objects if one.fid == 2)
    assert null.null and not null.masks
    assert sorted(source.expressions["dimension"].unique()) == ["speech", "text"]
    held = source.expressions.loc[source.expressions["split"] == "val", "clip_id"].unique().tolist()
    assert [held_out(name) for name in held] == [True]


def test_mevis_joins_instances_and_spreads_ten_frames(sources: dict[str, Source]) -> None:
    source = sources["mevis"]
    frames = {clip.id: [path.stem for path in clip.frames] for clip in source.clips}
    assert frames["train/train000"][:3] == ["00000", "00002", "00004"] and len(frames["train/train000"]) == 10
    assert frames["train/train001"] == ["00000", "00001", "00002", "00003"]
    both = masks_of(source, "train/train000", 1)
    assert (both[9] == (square(7) | square(0, standing=True))).all()
    assert texts_of(source, "valid") == [("moves to the right", -1), ("the two", -1)]
    assert source.splits == {"train": "train", "valid_u": "validation"}
    assert all(clip.audio is None for clip in source.clips)


def test_ref_youtube_vos_reads_numbers_of_a_palette(sources: dict[str, Source]) -> None:
    source = sources["ref-youtube-vos"]
    assert texts_of(source, "train") == texts_of(source, "val") == [("it moves", 0), ("it stands", 1)]
    assert texts_of(source, "valid") == [("it moves", -1), ("it stands", -1)]
    assert (masks_of(source, "train/train000", 0)[5] == square(5) & ~square(0, standing=True)).all()
    assert (masks_of(source, "train/train000", 1)[5] == square(0, standing=True)).all()


def test_frames_are_spread_over_videos_of_any_length() -> None:
    assert spread(3) == [0, 1, 2] and spread(25) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    assert of_each_second(12, 3.0) == [0, 4, 8] and of_each_second(10, 0.4) == [0]
    assert of_each_second(301, 10.03) == [0, 30, 60, 90, 120, 150, 180, 210, 240, 270]


def changed(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda all: all["train000"].update(duration=0), "video 'train000' has no frames or no duration"),
        (lambda all: all["train000"].pop("file_name"), r"video_dict.json.train000 has no 'file_name'"),
        (lambda all: all["train000"].update(file_name=["../../x.jpg"] * 12), "cannot be a media id"),
        (lambda all: all["train000"]["mask_dict"].pop("2"), "object '2' of video 'train000' has 0 masks"),
        (lambda all: all.pop("train000"), "is about 'train000', which video_dict.json lacks"),
    ],
)
def test_damaged_annotations_are_named(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    root = write_omniavs(tmp_path)
    changed(root / "video_dict.json", change)
    with pytest.raises(DatasetError, match=message) as caught:
        read_source(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"size": [48, 48], "counts": [5]}, "its runs have 5 pixels"),
        ({"size": [480_000, 48_000], "counts": [5]}, "accepted: height and width of up to"),
        ({"size": [48, 48], "counts": "\x7f"}, "is no list of run lengths"),
        ({"size": [48, 48]}, "its run lengths has no 'counts'"),
        ("mask", "accepted: an object"),
    ],
)
def test_damaged_run_lengths_are_named(tmp_path: Path, record: object, message: str) -> None:
    root = write_omniavs(tmp_path)
    changed(root / "video_dict.json", lambda all: all["train000"]["mask_dict"].update({"1": [record] * 12}))
    with pytest.raises(DatasetError, match=message) as caught:
        masks_of(read_source(root), "train000")
    assert "the mask of video_dict.json, 1 in frame 00000.jpg" in str(caught.value)

"""Masks out to a label tool and back: what people changed is found and kept, and nothing is lost."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.annotate.cli import main
from extract.annotate.exchange.agreement import compare
from extract.annotate.exchange.export_masks import export
from extract.annotate.exchange.exports import imported, masks_in
from extract.annotate.exchange.formats.drawn import DrawnFrame, DrawnMask
from extract.annotate.exchange.formats.registry import FORMATS
from extract.annotate.exchange.import_masks import import_masks
from extract.annotate.records import MaskSecond, ProjectFolder
from refavs.data.rle import decoded
from refavs.errors import ConfigError, DatasetError
from tests.extract.annotate.small_project import SIZE, blob, make_project, masks_of, rle_of

NAMES = ("drum", "drum", "old man")
Edit = Callable[[int, int, np.ndarray], np.ndarray | None]  # fid, second, mask -> the mask after the work


@pytest.fixture
def project(tmp_path: Path) -> ProjectFolder:
    return make_project(tmp_path / "project")


def exported(project: ProjectFolder, tool: str = "cvat", name: str = "out") -> Path:
    out = project.path.parent / name
    assert main(["export", str(project.path), str(out), "--format", tool]) == 0
    return out / FORMATS[tool].file_name


def edited(path: Path, project: ProjectFolder, edit: Edit, tool: str = "cvat", clip: str = "one") -> Path:
    """The file after a person's work on one clip."""
    sizes = {clip_id: SIZE for clip_id in project.clips()}
    frames = []
    for frame in FORMATS[tool].read(path, sizes):
        masks = frame.masks
        if frame.clip == clip:
            known = {drawn.fid: drawn.mask for drawn in masks}
            after = {fid: edit(fid, frame.second, known.get(fid, np.zeros(SIZE, bool))) for fid in (1, 2, 3)}
            masks = tuple(DrawnMask(fid=fid, name=NAMES[fid - 1], mask=mask) for fid, mask in after.items()
                          if mask is not None)  # fmt: skip
        frames.append(DrawnFrame(clip=frame.clip, second=frame.second, height=SIZE[0], width=SIZE[1], masks=masks))
    target = path.with_name("edited" + path.suffix)
    target.write_bytes(b"".join(FORMATS[tool].write(frames, 1)))
    return target


def painted(fid: int, second: int, mask: np.ndarray) -> np.ndarray:
    """An annotator adds one pixel to object 1 in second 3."""
    return mask | (np.arange(mask.size).reshape(SIZE) == 5) if (fid, second) == (1, 3) else mask


def at(project: ProjectFolder, fid: int, second: int, clip: str = "one") -> MaskSecond:
    (found,) = [one for one in project.clip(clip).masks().objects if one.fid == fid]
    return found.seconds[second]


@pytest.mark.parametrize("tool", sorted(FORMATS))
def test_an_export_that_nobody_changed_changes_nothing(
    tool: str, project: ProjectFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {clip: (project.clip(clip).folder / "masks.json").read_bytes() for clip in ("one", "two")}
    path = exported(project, tool)
    assert sorted(file.name for file in (path.parent / "frames").iterdir())[:2] == ["one_0.jpg", "one_1.jpg"]
    assert (path.parent / "frames/two_9.jpg").read_bytes() == project.clip("two").frame(9).read_bytes()
    assert main(["import", str(project.path), str(path), "--format", tool]) == 0
    assert "0 of 50 masks changed (0.00%; the paper's test set: 3.27%)" in capsys.readouterr().out
    assert before == {clip: (project.clip(clip).folder / "masks.json").read_bytes() for clip in ("one", "two")}


@pytest.mark.parametrize("tool", sorted(FORMATS))
def test_an_edit_comes_back_marked_and_is_reported(
    tool: str, project: ProjectFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(exported(project, tool), project, painted, tool)
    assert main(["import", str(project.path), str(path), "--format", tool]) == 0
    said = capsys.readouterr().out
    assert "1 of 50 masks changed (2.00%" in said and "median 2.8%, most 2.8% of the mask; 1 below 20%" in said
    assert "clip one, object 1, second 3: 1 px (2.8%), 35 before, 36 after" in said
    found = at(project, 1, 3)
    assert found.origin == "edited" and found.rle is not None
    assert np.array_equal(decoded(found.rle), painted(1, 3, blob(1, 3)))
    assert at(project, 1, 2).origin == "auto" and at(project, 1, 3, "two").origin == "auto"
    report = json.loads((project.path / "imports/people/report.json").read_text())
    assert report["changes"] == [
        {"clip": "one", "fid": 1, "second": 3, "before_px": 35, "after_px": 36, "changed_px": 1}
    ]


def test_removed_and_added_masks_are_edits(project: ProjectFolder) -> None:
    def edit(fid: int, second: int, mask: np.ndarray) -> np.ndarray | None:
        if (fid, second) == (1, 3):
            return None
        return blob(2, 1) if (fid, second) == (3, 8) else mask

    report = import_masks(project, edited(exported(project), project, edit), "cvat")
    assert [(change.fid, change.second, change.share) for change in report.changes] == [(1, 3, 1.0), (3, 8, 1.0)]
    removed, added = at(project, 1, 3), at(project, 3, 8)
    assert (removed.rle, removed.presence, removed.origin) == (None, 0.0, "edited")
    assert (added.rle, added.presence, added.origin) == (rle_of(blob(2, 1)), 1.0, "edited")


def test_parts_drawn_apart_are_one_mask(project: ProjectFolder) -> None:
    path = exported(project)
    part = (
        '<mask label="drum" rle="0, 1" left="31" top="23" width="1" height="1"><attribute name="fid">1</attribute>'
        "</mask>"
    )
    path.write_text(path.read_text().replace("</image>", part + "</image>", 1))
    import_masks(project, path, "cvat")
    found = at(project, 1, 0).rle
    assert found is not None and decoded(found)[23, 31] and decoded(found).sum() == 36


# Human edits are never overwritten.


def test_a_second_import_of_the_same_file_changes_nothing(project: ProjectFolder) -> None:
    path = edited(exported(project), project, painted)
    import_masks(project, path, "cvat")
    before = (project.clip("one").folder / "masks.json").read_bytes()
    report = import_masks(project, path, "cvat")
    assert len(report.changes) == 1 and not report.problems
    assert (project.clip("one").folder / "masks.json").read_bytes() == before


def test_an_unchanged_file_does_not_undo_an_edit(project: ProjectFolder) -> None:
    path = exported(project)
    import_masks(project, edited(path, project, painted), "cvat")
    import_masks(project, path, "cvat", annotator="ben")
    assert at(project, 1, 3).origin == "edited"


def test_a_second_edit_of_the_same_export_stays_beside_the_first(project: ProjectFolder) -> None:
    path = exported(project)
    import_masks(project, edited(path, project, painted), "cvat", annotator="anna")
    other = edited(path, project, lambda fid, second, mask: ~mask if (fid, second) == (1, 3) else mask)
    report = import_masks(project, other, "cvat", annotator="ben")
    assert report.problems == ["clip one, object 1, second 3: another edit came in after this export and stays; this "
                               "one is in the annotator's copy"]  # fmt: skip
    assert at(project, 1, 3).rle == rle_of(painted(1, 3, blob(1, 3)))
    kept = masks_in(imported(project, "ben").clip("one")).objects[0].seconds[3]
    assert kept.rle == rle_of(~blob(1, 3))


def test_an_export_after_edits_can_be_edited_again(project: ProjectFolder) -> None:
    import_masks(project, edited(exported(project), project, painted), "cvat")
    back = edited(exported(project, name="again"), project,
                  lambda fid, second, mask: blob(1, 3) if (fid, second) == (1, 3) else mask)  # fmt: skip
    report = import_masks(project, back, "cvat")
    assert len(report.changes) == 1 and not report.problems
    assert at(project, 1, 3).rle == rle_of(blob(1, 3)), "the person took the first edit back"
    assert at(project, 1, 3).origin == "edited"


def test_a_new_track_between_export_and_import_counts_as_nobodys_edit(project: ProjectFolder) -> None:
    path = edited(exported(project), project, painted)
    tracked = masks_of(NAMES)
    moved = tuple(replace(one, seconds=tuple(replace(each, rle=rle_of(blob(2, 0))) for each in one.seconds))
                  for one in tracked.objects)  # fmt: skip
    project.clip("one").write(replace(tracked, objects=moved))
    report = import_masks(project, path, "cvat")
    assert len(report.changes) == 1 and at(project, 1, 3).rle == rle_of(painted(1, 3, blob(1, 3)))
    assert at(project, 1, 2).rle == rle_of(blob(2, 0)) and at(project, 1, 2).origin == "auto"


# What bad input gets: one line, and the rest goes on.


@pytest.mark.parametrize(("old", "new", "said"), [
    (r'<image id="3" name="one_3.jpg".*?</image>', "", "clip one: the file lacks second 3; left as it was"),
    (r'name="one_3.jpg" width="32"', 'name="one_3.jpg" width="64"', "the file says 64 x 24 pixels"),
    (r'(name="one_3.jpg".*?<attribute name="fid">)1', r"\g<1>2",
     "clip one, second 3: the mask of object 1 ('drum') now has fid 2; left out. Set fid back to 1"),
    (r'(name="one_3.jpg".*?)group_id="1"><attribute name="fid">1', r'\1group_id="7"><attribute name="fid">7',
     "a mask 'drum' of object 7, but the clip has 1, 2, 3; left out"),
    (r'(name="one_3.jpg".*?)label="drum"', r'\1label="old man"', "object 1 is a 'drum', the file has a 'old man'"),
    (r'(name="one_3.jpg".*?)<mask .*?</mask>', r'\1<polygon label="drum" points="1,1;4,1;4,4"/>',
     "clip one, second 3: a polygon 'drum' where masks were; left out. Draw with CVAT's brush"),
    (r'name="one_3.jpg"', 'name="one_2.jpg"', "clip one, second 2: the file has this frame twice"),
    (r'name="one_3.jpg"', 'name="one_33.jpg"', "clip one, second 33: the clip has 10 seconds; left out"),
])  # fmt: skip
def test_one_line_for_each_part_that_cannot_be_used(
    old: str, new: str, said: str, project: ProjectFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(exported(project), project, painted)
    path = edited(path, project, lambda fid, second, mask: ~mask if (fid, second) == (2, 5) else mask)
    changed, count = re.subn(old, new, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1
    path.write_text(changed)
    assert main(["import", str(project.path), str(path)]) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("refavs-annotate import")]
    assert any(said in line for line in lines)
    assert at(project, 1, 3).rle == rle_of(blob(1, 3)) and at(project, 1, 3).origin == "auto", "nothing is lost"
    assert at(project, 2, 3).rle == rle_of(blob(2, 3)), "the other objects of the frame stay"
    assert at(project, 2, 5).origin == "edited", "the rest goes on"


def test_a_file_of_some_of_the_clips_leaves_the_others(project: ProjectFolder) -> None:
    path = exported(project)
    path.write_text(re.sub(r'<image id="\d+" name="two_.*?</image>', "", path.read_text(), flags=re.DOTALL))
    report = import_masks(project, path, "cvat")
    assert report.problems == ["clip two: the file has none of its frames; left as it was"] and report.num_masks == 25


def test_import_and_export_refuse_wrong_arguments(project: ProjectFolder, tmp_path: Path) -> None:
    path = exported(project, "coco")
    with pytest.raises(ConfigError, match="was never exported for cvat"):
        import_masks(project, path, "cvat")
    with pytest.raises(DatasetError, match="is not what the tool exports"):
        import_masks(project, path, "label-studio")
    with pytest.raises(ConfigError, match="has no export 7; it has 1"):
        import_masks(project, path, "cvat", 7)
    with pytest.raises(ConfigError, match="accepted: a plain name"):
        import_masks(project, path, "cvat", annotator="../x")
    assert main(["export", str(project.path), str(path.parent)]) == 2
    assert main(["export", str(project.path), str(tmp_path / "new"), "--clips", "three"]) == 2
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


def test_clips_in_folders_have_plain_file_names(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", clips=("day/one", "two"))
    path = exported(project)
    assert (path.parent / "frames/day--one_0.jpg").is_file()
    assert import_masks(project, path, "cvat").problems == []
    make_project(tmp_path / "other", clips=("day/one", "day--one"))
    with pytest.raises(DatasetError, match="would both be called 'day--one'"):
        export(ProjectFolder(tmp_path / "other"), tmp_path / "clash", "cvat", ["day--one", "day/one"])


# Agreement.


def test_agreement_is_the_mean_j_of_two_annotators(
    project: ProjectFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(project)

    def half(fid: int, second: int, mask: np.ndarray) -> np.ndarray | None:
        if (fid, second) == (2, 0):
            return None
        return mask & (np.arange(SIZE[1]) > 3) if (fid, second) == (1, 0) else mask

    import_masks(project, path, "cvat", annotator="anna")
    import_masks(project, edited(path, project, half), "cvat", annotator="ben")
    pairs = compare(project, "anna", "ben")
    values = {(pair.clip, pair.fid, pair.second): pair.jaccard for pair in pairs}
    assert len(pairs) == 50 and sum(value == 1 for value in values.values()) == 48
    assert values["one", 2, 0] == 0 and values["one", 1, 0] == pytest.approx((blob(1, 0)[:, 4:]).sum() / 35)
    assert main(["agreement", str(project.path), "anna", "ben"]) == 0
    said = capsys.readouterr().out
    assert f"mean {100 * np.mean(list(values.values())):.2f}, median 100.00, over 50 masks of 2 clips" in said
    assert "48 identical, 1 where only one of them sees the object" in said
    with pytest.raises(DatasetError, match="have no mask in common"):
        compare(project, "anna", "carl")


def test_a_frame_that_is_gone_is_named(project: ProjectFolder, capsys: pytest.CaptureFixture[str]) -> None:
    project.clip("two").frame(4).unlink()
    out = project.path.parent / "out"
    assert main(["export", str(project.path), str(out)]) == 2
    assert "frames/4.jpg is missing; copy it back, or remove" in capsys.readouterr().err and not out.exists()
    assert not (project.path / "exports").exists() or not list((project.path / "exports").iterdir())

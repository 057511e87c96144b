"""The files of a project: they come back as they were written, and a damaged one is told in one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.annotate.records import (
    Candidate,
    Candidates,
    ClipFiles,
    Masks,
    MaskSecond,
    Project,
    ProjectFolder,
    ProposedObject,
    Request,
    Scene,
    Scenes,
    TrackedObject,
)
from refavs.data.rle import plain
from refavs.errors import DatasetError

SCENES = Scenes(width=4, height=3, seconds=3, scenes=(Scene(first=0, last=1), Scene(first=2, last=2)), cuts_s=(1.5,),
                method="colour", threshold=27.0, notes=("odd",))  # fmt: skip
MASK = plain(np.eye(3, 4, dtype=bool))
OBJECT = ProposedObject(fid=1, name="dog", scene=0, pivot=1, box=(0, 0, 2, 2.5), detector_score=0.5, label="dog",
                        candidates=tuple(Candidate(rle=MASK, iou_score=each) for each in (0.1, 0.9, 0.3)))  # fmt: skip
CANDIDATES = Candidates(requests=(Request(fid=1, name="dog"),), objects=(OBJECT,), problems=("look",))
MASKS = Masks(tracker="t", revision="r", inputs="i", objects=(TrackedObject(fid=1, name="dog", seconds=(
    MaskSecond(second=0, rle=MASK, presence=1.0, scene=0),
    MaskSecond(second=1, rle=None, presence=0.2, scene=0),
    MaskSecond(second=2, rle=MASK, presence=0.7, origin="edited", scene=1),
)),))  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> ClipFiles:
    found = ProjectFolder(tmp_path).clip("day1/a")
    for record in (SCENES, CANDIDATES, MASKS):
        found.write(record)
    return found


def test_records_come_back(files: ClipFiles, tmp_path: Path) -> None:
    assert (files.scenes(), files.candidates(), files.masks()) == (SCENES, CANDIDATES, MASKS)
    assert SCENES.scene_of(1) == 0 and SCENES.scene_of(2) == 1
    folder, settings = ProjectFolder(tmp_path), Project(source="/x", layout="videos", seconds=3)
    folder.write(settings)
    assert folder.settings() == settings and folder.clips() == ["day1/a"]


def test_the_best_candidate_counts_unless_a_person_chose_another() -> None:
    assert OBJECT.mask is OBJECT.candidates[1].rle
    other = plain(np.ones((3, 4), bool))
    chosen = replace(OBJECT, chosen=0, candidates=(Candidate(rle=other, iou_score=0.1), *OBJECT.candidates[1:]))
    assert chosen.mask == other


def set_in(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for part in path[:-1]:
            record = record[part]
        record[path[-1]] = value

    return change


@pytest.mark.parametrize(("name", "change", "message"), [
    ("scenes", set_in("width", value="wide"), "scenes.json.width is 'wide'; accepted: a whole number"),
    ("scenes", lambda record: record.pop("method"), "scenes.json has no 'method'"),
    ("scenes", set_in("scenes", 0, "last", value=2), "its scenes do not hold the seconds 0 to 2 in order"),
    ("candidates", set_in("objects", 0, "pivot", value=2), "objects.0 has its pivot 2 outside of scene 0"),
    ("candidates", set_in("objects", 0, "chosen", value=3), "objects.0.chosen is 3; accepted: null, or 0 to 2"),
    ("candidates", set_in("objects", 0, "box", value=[1, 2]), "box has 2 values; accepted: 4"),
    ("candidates", set_in("objects", 0, "candidates", 0, "rle", "size", value=[4, 3]), "a mask of [4, 3]; accepted: ["),
    ("masks", set_in("objects", 0, "seconds", 0, "rle", "counts", value=[5]), "add up to 5 pixels, not 12"),
    ("masks", set_in("objects", 0, "seconds", 0, "origin", value="me"), "origin is 'me'; accepted: 'auto', 'edited'"),
    ("masks", lambda record: record["objects"][0]["seconds"].pop(), "does not have the seconds 0 to 2 in order"),
])  # fmt: skip
def test_a_damaged_record_is_told_with_the_place(
    name: str, change: Callable[[Any], None], message: str, files: ClipFiles
) -> None:
    path = files.folder / f"{name}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DatasetError) as told:
        getattr(files, name)()
    assert message in str(told.value) and "correct the file, or remove it" in str(told.value)


def test_a_missing_file_and_no_project_are_told(files: ClipFiles, tmp_path: Path) -> None:
    (files.folder / "masks.json").unlink()
    with pytest.raises(DatasetError, match=r"masks.json is missing; run the step that writes it"):
        files.masks()
    with pytest.raises(DatasetError, match=r"is no annotation project: it has no annotate.json"):
        ProjectFolder(tmp_path / "nothing").settings()
    ProjectFolder(tmp_path).write(Project(schema=2, source="/x", layout="videos", seconds=3))
    with pytest.raises(DatasetError, match="has schema 2; this version reads 1"):
        ProjectFolder(tmp_path).settings()

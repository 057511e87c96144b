"""propose and track from the command line, with models that do as they are told."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.annotate.cli import main
from extract.annotate.records import ClipFiles, MaskSecond, ProjectFolder
from refavs.data.rle import decoded, plain
from tests.extract.annotate.films import box_at, write_film
from tests.extract.annotate.small_models import BoxTracker, TellingDetector

pytestmark = pytest.mark.long
CUT_S = 4.5
TABLE = "vid,name\nkitchen/a,dog\nkitchen/a,cat\nb,dog\n"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    write_film(root / "kitchen" / "a.mkv", (CUT_S,))
    write_film(root / "b.mkv", channels=0)
    write_film(root / "unnamed.mkv", seconds=1, channels=0)
    return root


class Bench:
    """A project in a folder of its own, and the models that its commands get."""

    def __init__(self, root: Path, films: Path) -> None:
        self.root, self.films = root, films
        told = {(clip, second, "dog"): [(box_at(second), 0.9 if second in (3, 7) else 0.5)]
                for clip in ("kitchen/a", "b") for second in range(10)}  # fmt: skip
        told["kitchen/a", 6, "cat"] = [((100.0, 70.0, 150.0, 120.0), 0.4)]
        self.detector, self.tracker = TellingDetector(told), BoxTracker()
        self.project = ProjectFolder(root / "project")
        self.table(TABLE)

    def table(self, text: str) -> None:
        (self.root / "names.csv").write_text(text)

    def propose(self, *options: str) -> int:
        return main(["propose", str(self.project.path), str(self.films), "--names", str(self.root / "names.csv"),
                     "--cuts", "colour", "--device", "cpu", *options])  # fmt: skip

    def track(self, *options: str) -> int:
        return main(["track", str(self.project.path), "--device", "cpu", *options])

    def clip(self, name: str = "kitchen/a") -> ClipFiles:
        return self.project.clip(name)

    def edit(self, fid: int, second: int, mask: np.ndarray | None) -> None:
        """Does what an import does with a corrected frame."""
        files = self.clip()
        known = files.masks()

        def changed(each: MaskSecond) -> MaskSecond:
            if each.second != second:
                return each
            return replace(each, rle=None if mask is None else plain(mask), origin="edited")

        objects = tuple(replace(one, seconds=tuple(map(changed, one.seconds))) if one.fid == fid else one
                        for one in known.objects)  # fmt: skip
        files.write(replace(known, objects=objects))


@pytest.fixture
def bench(tmp_path: Path, films: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench(tmp_path, films)
    monkeypatch.setattr("extract.annotate.propose.detector_named", lambda *arguments: found.detector)
    for step in ("propose", "track"):
        monkeypatch.setattr(f"extract.annotate.{step}.tracker_named", lambda *arguments: found.tracker)
    return found


def area(box: tuple[float, ...]) -> np.ndarray:
    mask = np.zeros((96, 160), bool)
    x0, y0, x1, y1 = (round(value) for value in box)
    mask[y0:y1, x0:x1] = True
    return mask


def test_a_folder_of_films_becomes_masks_of_every_second(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.propose() == 0
    said = capsys.readouterr().out
    assert "1 clips of" in said and "are left out: unnamed" in said and "2 clips done, 0 failed" in said
    assert "kitchen/a: 'cat' (fid 2): not found in seconds 0 to 4; its masks there stay empty" in said
    found = bench.clip().candidates()
    assert [(one.fid, one.scene, one.pivot, one.box) for one in found.objects] == [
        (1, 0, 3, box_at(3)), (1, 1, 7, box_at(7)), (2, 1, 6, (100, 70, 150, 96)),
    ]  # fmt: skip
    assert [candidate.iou_score for candidate in found.objects[0].candidates] == [0.3, 0.9, 0.5]
    assert bench.project.clips() == ["b", "kitchen/a"]
    settings = bench.project.settings()
    assert settings.models["detector"] == {"name": "grounding-dino-tiny", "revision": "told"}
    assert settings.options["cuts"] == "colour" and settings.seconds == 10

    bench.tracker.absent = (9,)
    assert bench.track() == 0
    assert bench.tracker.calls == [
        (list(range(10)), {1: [3]}, {1: 3}),
        ([0, 1, 2, 3, 4], {1: [3]}, {1: 3}), ([5, 6, 7, 8, 9], {1: [2], 2: [1]}, {1: 2, 2: 1}),
    ]  # fmt: skip
    masks = bench.clip().masks()
    dog, cat = masks.objects
    assert [each.scene for each in dog.seconds] == [0] * 5 + [1] * 5
    assert [each.rle is None for each in dog.seconds] == [False] * 9 + [True]
    assert [each.rle is None for each in cat.seconds] == [True] * 5 + [False] * 4 + [True]
    assert dog.seconds[3].rle == plain(area(box_at(3))) and dog.seconds[3].presence == 1.0
    assert {each.origin for one in masks.objects for each in one.seconds} == {"auto"}
    assert masks.tracker == "boxes" and masks.revision == "drawn"


def test_the_same_commands_again_have_nothing_to_do(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.propose() == bench.track() == 0
    asked, calls, stamps = len(bench.detector.asked), len(bench.tracker.calls), stamps_of(bench)
    assert bench.propose() == bench.track() == 0
    assert "nothing to do: all 2 clips" in capsys.readouterr().out
    assert (len(bench.detector.asked), len(bench.tracker.calls), stamps_of(bench)) == (asked, calls, stamps)


def stamps_of(bench: Bench) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in bench.project.path.rglob("*.json")}


def test_a_grown_table_adds_objects_and_keeps_what_people_chose(bench: Bench) -> None:
    assert bench.propose() == 0
    path = bench.clip().folder / "candidates.json"
    record = json.loads(path.read_text())
    record["objects"][0]["chosen"] = 2
    path.write_text(json.dumps(record))
    bench.detector.asked.clear()
    bench.table(TABLE.replace("kitchen/a,cat", "kitchen/a,bird\nkitchen/a,cat"))
    assert bench.propose() == 0
    assert {(clip, names) for clip, _, names in bench.detector.asked} == {("kitchen/a", ("bird",))}
    found = bench.clip().candidates()
    assert [(row.name, row.fid) for row in found.requests] == [("dog", 1), ("bird", 3), ("cat", 2)]
    assert [(one.fid, one.chosen) for one in found.objects] == [(1, 2), (1, None), (2, None)]
    assert any("'bird' (fid 3): the detector finds it in no second" in line for line in found.problems)


def test_other_thresholds_or_models_are_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.propose() == 0
    assert bench.propose("--threshold", "0.4") == 2
    assert "was made with threshold 0.25, this run has 0.4; give the same, or name a new" in capsys.readouterr().err
    assert bench.propose("--detector", "grounding-dino-base") == 2
    assert "was made with detector grounding-dino-tiny told, this run has" in capsys.readouterr().err


def test_bad_rows_and_a_broken_film_do_not_stop_the_rest(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.films = Path(shutil.copytree(bench.films, tmp_path / "films"))
    (bench.films / "b.mkv").write_bytes(b"no film")
    bench.table(TABLE + "c,dog\n")
    assert bench.propose() == 3
    told = capsys.readouterr()
    assert "names.csv, row 4: there is no clip 'c'" in told.err
    assert "clip b: video" in told.err and "1 clips done, 1 failed" in told.out
    assert bench.project.clips() == ["kitchen/a"]
    shutil.copy(bench.films / "unnamed.mkv", bench.films / "b.mkv")
    assert bench.propose() == 3 and bench.project.clips() == ["b", "kitchen/a"]


def test_a_corrected_frame_stays_and_conditions_the_other_seconds(bench: Bench) -> None:
    assert bench.propose() == bench.track() == 0
    corrected = area((0, 0, 30, 30))
    bench.edit(1, 8, corrected)
    bench.edit(1, 6, None)
    bench.edit(2, 1, corrected)  # in a scene without a candidate
    bench.tracker.calls.clear()
    assert bench.track() == 0
    assert bench.tracker.calls == [
        ([0, 1, 2, 3, 4], {1: [3], 2: [1]}, {1: 3, 2: 1}), ([5, 6, 7, 8, 9], {1: [1, 2, 3], 2: [1]}, {1: 2, 2: 1}),
    ]  # fmt: skip
    dog, cat = bench.clip().masks().objects
    assert dog.seconds[8].rle == plain(corrected) and dog.seconds[8].origin == "edited"
    assert dog.seconds[6].rle is None and dog.seconds[6].origin == "edited"
    assert cat.seconds[1].origin == "edited" and cat.seconds[2].rle == plain(corrected)
    bench.tracker.calls.clear()
    assert bench.track() == 0 and not bench.tracker.calls


def test_a_corrected_pivot_replaces_the_candidate(bench: Bench) -> None:
    assert bench.propose() == bench.track() == 0
    corrected = area((0, 0, 30, 30))
    bench.edit(1, 3, corrected)
    assert bench.track() == 0
    dog = bench.clip().masks().objects[0]
    assert all(np.array_equal(decoded(dog.seconds[second].rle), corrected) for second in range(5))  # type: ignore[arg-type]
    bench.edit(1, 3, None)
    assert bench.track() == 0
    dog = bench.clip().masks().objects[0]
    assert [each.rle is None for each in dog.seconds] == [True] * 5 + [False] * 5


def test_an_object_that_never_shows_has_empty_masks_and_a_line(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.table("vid,name\nb,dog\nb,unicorn\n")
    assert bench.propose() == bench.track() == 0
    assert "b: 'unicorn' (fid 2) never shows: all its masks are empty; correct a frame, or" in capsys.readouterr().out
    unicorn = bench.clip("b").masks().objects[1]
    assert unicorn.fid == 2 and all(each.rle is None and each.presence == 0 for each in unicorn.seconds)


def test_a_damaged_file_of_a_clip_does_not_stop_the_others(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.propose() == 0
    (bench.clip().folder / "frames" / "7.jpg").unlink()
    assert bench.track() == 3
    told = capsys.readouterr()
    assert "clip kitchen/a: frame" in told.err and "7.jpg is missing" in told.err
    assert bench.clip("b").masks().objects and not (bench.clip().folder / "masks.json").exists()


@pytest.mark.parametrize("name", ["scenes.json", "candidates.json", "masks.json"])
def test_a_damaged_record_of_a_clip_does_not_stop_the_others(
    name: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.propose() == bench.track() == 0
    (bench.clip().folder / name).write_text("{")
    (bench.clip("b").folder / "masks.json").unlink()
    bench.table(TABLE + "b,cat\n")
    assert bench.propose() == (0 if name == "masks.json" else 3)
    assert bench.track() == 3
    assert f"clip kitchen/a: {bench.clip().folder / name}: " in capsys.readouterr().err
    assert bench.clip("b").masks().objects


def test_a_bug_in_one_clip_is_shown_and_the_others_go_on(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    inner = bench.tracker.candidates

    def break_b(frame: Any, boxes: Any) -> Any:
        if frame.clip == "b":
            raise ZeroDivisionError("a bug")
        return inner(frame, boxes)

    bench.tracker.candidates = break_b  # type: ignore[method-assign]
    assert bench.propose() == 1
    told = capsys.readouterr()
    assert "ZeroDivisionError: a bug" in told.err and "1 clips broke for this reason" in told.err
    assert bench.clip().candidates().objects


def test_a_dry_run_counts_and_writes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.propose("--dry-run") == 0
    assert "2 of 2 clips to do, with 3 objects and 20 frames (nothing was written)" in capsys.readouterr().out
    assert not bench.project.path.exists()
    assert bench.propose() == 0 and bench.track("--dry-run") == 0
    assert "2 of 2 clips to do" in capsys.readouterr().out
    assert not (bench.clip().folder / "masks.json").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda bench: bench.track(), "is no annotation project"),
    (lambda bench: bench.propose("--seconds", "-1"), "--seconds is -1; accepted: above 0"),
    (lambda bench: bench.propose("--layout", "nothing"), "nothing"),
    (lambda bench: bench.propose() + bench.track("--store", "s"), "--store needs a tracker with an encoder"),
])  # fmt: skip
def test_bad_usage_is_told(
    change: Callable[[Bench], int], message: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert change(bench) == 2
    assert message in capsys.readouterr().err

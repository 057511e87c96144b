"""Pivots and boxes: the best second, the middle of equal ones, several objects of one name, and what was not found."""

from collections.abc import Mapping, Sequence

import pytest

from extract.annotate.models import Detection
from extract.annotate.places import Placed, iou, placed, within
from extract.annotate.records import Box, Request, Scene, Scenes

LEFT, RIGHT, MIDDLE = (0.0, 0.0, 20.0, 20.0), (60.0, 0.0, 90.0, 20.0), (30.0, 30.0, 50.0, 50.0)
Told = Mapping[int, Sequence[tuple[str, Box, float]]]


def place(requests: Sequence[Request], told: Told, *spans: tuple[int, int], **options: list) -> Placed:
    scenes = Scenes(
        width=100, height=60, seconds=10, method="none", threshold=None,
        scenes=tuple(Scene(first=first, last=last) for first, last in (spans or ((0, 9),))),
    )  # fmt: skip
    detections = {second: [Detection(name=name, box=box, score=score, label=name) for name, box, score in found]
                  for second, found in told.items()}  # fmt: skip
    return placed(requests, scenes, detections, **options)


def row(fid: int = 1, name: str = "dog", **given: object) -> Request:
    return Request(fid=fid, name=name, **given)  # type: ignore[arg-type]


def test_the_pivot_has_the_best_score_of_each_scene() -> None:
    told = {second: [("dog", LEFT, score), ("cat", RIGHT, 0.99)]
            for second, score in enumerate([0.3, 0.9, 0.5, 0.4, 0.4, 0.7, 0.8, 0.3, 0.3, 0.3])}  # fmt: skip
    found = place([row()], told, (0, 4), (5, 9))
    assert [(each.scene, each.pivot, each.score, each.box) for each in found.places] == [
        (0, 1, 0.9, LEFT), (1, 6, 0.8, LEFT),
    ]  # fmt: skip
    assert not found.problems


@pytest.mark.parametrize(("seconds", "pivot"), [(range(10), 4), ((2, 6, 8), 6), ((3,), 3)])
def test_of_equal_scores_the_middle_second_is_the_pivot(seconds: Sequence[int], pivot: int) -> None:
    found = place([row()], {second: [("dog", LEFT, 0.5)] for second in seconds})
    assert [each.pivot for each in found.places] == [pivot]


def test_two_objects_of_one_name_take_two_places_of_one_second_from_left_to_right() -> None:
    told = {2: [("dog", RIGHT, 0.95)], 5: [("dog", RIGHT, 0.8), ("dog", LEFT, 0.6), ("dog", (1, 1, 20, 20), 0.55)]}
    found = place([row(1), row(2)], told)
    assert [(each.request.fid, each.pivot, each.box) for each in found.places] == [(1, 5, LEFT), (2, 5, RIGHT)]
    (line,) = found.problems
    assert line.startswith("2 objects are called 'dog' (fid 1, 2): they were taken from left to right")


def test_the_second_of_two_that_shows_nowhere_is_told() -> None:
    found = place([row(1), row(2)], {2: [("dog", RIGHT, 0.95)]})
    assert [each.request.fid for each in found.places] == [1]
    assert any("'dog' (fid 2): the detector finds it in no second" in line for line in found.problems)


def test_an_object_of_no_scene_and_one_of_some_scenes_are_told() -> None:
    found = place([row(1), row(2, "cat")], {1: [("dog", LEFT, 0.5)]}, (0, 3), (4, 4), (5, 9))
    assert found.problems == [
        "'dog' (fid 1): not found in second 4 and seconds 5 to 9; its masks there stay empty",
        "'cat' (fid 2): the detector finds it in no second; give it another name, lower --threshold, or give its "
        "pivot and box in the table",
    ]


def test_a_given_pivot_and_a_given_box_count() -> None:
    told = {3: [("dog", LEFT, 0.9)], 7: [("dog", RIGHT, 0.4)]}
    (found,) = place([row(pivot=7)], told).places
    assert (found.pivot, found.box, found.score) == (7, RIGHT, 0.4)
    (found,) = place([row(pivot=7, box=MIDDLE)], told).places
    assert (found.pivot, found.box, found.score, found.label) == (7, MIDDLE, None, "given")
    scenes = place([row(pivot=7, box=MIDDLE)], told, (0, 4), (5, 9)).places
    assert [(each.scene, each.pivot) for each in scenes] == [(0, 3), (1, 7)], "the detector searches the other scene"


def test_rows_of_one_fid_are_one_object() -> None:
    found = place([row(pivot=1, box=LEFT), row(pivot=8, box=RIGHT)], {}, (0, 4), (5, 9))
    assert [(each.request.fid, each.scene, each.box) for each in found.places] == [(1, 0, LEFT), (1, 1, RIGHT)]
    assert not found.problems


def test_a_box_outside_of_the_frame_is_told_and_one_across_its_border_is_cut() -> None:
    found = place([row(1, pivot=1, box=(100, 0, 120, 20)), row(2, pivot=1, box=(90, 50, 120, 80))], {})
    assert [(each.request.fid, each.box) for each in found.places] == [(2, (90, 50, 100, 60))]
    assert "its box 100,0,120,20 lies outside of the frame of 100 x 60 pixels" in found.problems[0]
    assert "its box 90,50,120,80 reaches beyond the frame" in found.problems[1]


def test_a_place_of_another_object_is_not_given_away_again() -> None:
    told = {4: [("dog", LEFT, 0.9), ("dog", RIGHT, 0.5)]}
    (found,) = place([row(2)], told, taken=[(4, LEFT)]).places
    assert found.box == RIGHT


def test_overlaps_of_boxes() -> None:
    assert iou(LEFT, LEFT) == pytest.approx(1) and iou(LEFT, RIGHT) == 0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert within((-5, -5, 200, 200), 100, 60) == (0, 0, 100, 60) and within((0, 60, 5, 70), 100, 60) is None

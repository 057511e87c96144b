"""The stand-ins know what synthetic films and benchmarks show, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from extract.annotate.models import Frame
from extract.annotate.synthetic_models import SyntheticDetector, SyntheticTracker
from refavs.data.rle import decoded
from refavs.errors import ConfigError, DatasetError
from refavs.synthetic.cut_films import cut_clip, read_truth, write_cut_films
from refavs.synthetic.plan import Settings, draw_clip
from refavs.synthetic.scene import render
from refavs.synthetic.write import write_benchmark

pytestmark = pytest.mark.long

SETTINGS = Settings(num_clips=2, size=48)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("films") / "films"
    write_cut_films(out, 2, size=48)
    return out


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "bench"
    write_benchmark(out, 2, size=48, videos=False)
    return out


def frame_of(clip: str, second: int, size: int = 48) -> Frame:
    return Frame(clip=clip, second=second, pixels=np.zeros((size, size, 3), np.uint8))


def test_films_show_the_same_objects_before_and_after_the_cut(films: Path) -> None:
    truths = read_truth(films)
    for index, (clip_id, truth) in enumerate(sorted(truths.items())):
        clip, scenes, cut = cut_clip(SETTINGS, index)
        assert (clip.id, cut, list(clip.categories)) == (clip_id, truth["cut"], truth["names"])
        assert [item.colour for item in scenes[0].objects] == [item.colour for item in scenes[1].objects]
        for second in range(10):
            _, labels = render(scenes[second >= cut], float(second))
            assert all(np.array_equal(decoded(truth["masks"][at][second]), mask) for at, mask in enumerate(labels))


@pytest.mark.parametrize("source", ["films", "bench"])
def test_boxes_candidates_and_tracks_are_the_true_ones(source: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(source)
    clip = draw_clip(SETTINGS, 0)
    detector, tracker = SyntheticDetector(folder), SyntheticTracker(folder)
    frames = [frame_of(clip.id, second) for second in range(4)]
    found = detector.detect(frames[2], [*clip.categories, "piano"])
    assert {one.name for one in found} <= set(clip.categories) and found
    tracked = clip.categories.index(found[0].name)
    (candidates,) = tracker.candidates(frames[2], [found[0].box])
    best = max(candidates, key=lambda one: one.iou_score).mask
    scene = cut_clip(SETTINGS, 0)[1][0] if source == "films" else clip.scene
    true = [render(scene, float(second))[1][tracked] for second in range(3)]
    assert np.array_equal(best, true[2]) and len(candidates) == 3
    assert not any(np.array_equal(best, one.mask) for one in candidates if one.iou_score < 0.9)
    track = tracker.track(frames[:3], {7: {2: best}}, {7: 2})[7]
    assert np.array_equal(track.masks, np.stack(true))
    assert np.array_equal(track.presence, [float(mask.any()) for mask in true])


def test_what_the_stand_ins_do_not_know_is_said(films: Path, bench: Path, tmp_path: Path) -> None:
    for folder in (films, bench):
        assert SyntheticDetector(folder).detect(frame_of("holiday", 0), ["disc"]) == []
        with pytest.raises(DatasetError, match="knows nothing about clip 'holiday'"):
            SyntheticTracker(folder).candidates(frame_of("holiday", 0), [(0.0, 0.0, 9.0, 9.0)])
        with pytest.raises(DatasetError, match="or its frames have another size"):
            SyntheticTracker(folder).candidates(frame_of("syn00000_0_10000", 0, 64), [(0.0, 0.0, 9.0, 9.0)])
    with pytest.raises(DatasetError, match=r"is no folder of refavs-synth .* truth\.json or synthetic\.json"):
        SyntheticDetector(tmp_path).detect(frame_of("holiday", 0), ["disc"])
    (tmp_path / "truth.json").write_text('{"a": {"cut": 3}}')
    with pytest.raises(DatasetError, match="holds no films with known masks"):
        SyntheticDetector(tmp_path).detect(frame_of("a", 0), ["disc"])


def test_films_are_written_to_a_new_folder_only(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files; name a new or empty folder"):
        write_cut_films(tmp_path, 1)

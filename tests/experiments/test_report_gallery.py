"""The gallery: its choice of expressions, their drawings, and its text if something is missing."""

import base64
import io
import math
import re
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from experiments.grid.config import TrialConfig
from experiments.report.clip_steps import (
    HEIGHT,
    WAVE_BINS,
    WAVE_HEIGHT,
    footage_of,
    outline,
    steps_of,
    wave_path,
)
from experiments.report.gallery import Scored, _card, choose, make_gallery, read_scores
from experiments.report.tables import GallerySource
from experiments.training.loop import build_model
from refavs.config import replace, to_dict
from refavs.data.layouts import find_clip
from refavs.data.splits import Splits
from refavs.metrics import expression_results, statistics_blocks
from refavs.model.checkpoint import save_model
from refavs.store import FeatureStore
from tests.experiments.small_store import SECONDS, make_store
from tests.experiments.test_evaluate import evaluated
from tests.extract.make_videos import write_video

SMALL = {"model.num_layers": 1, "model.num_queries": 2, "model.num_heads": 2, "model.decoder_layers": 0,
         "model.visual_downsample": 2}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("small") / "store")


@pytest.fixture(scope="module")
def source(store: FeatureStore, tmp_path_factory: pytest.TempPathFactory) -> GallerySource:
    """An untrained run on the small store."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    config = replace(TrialConfig(), SMALL)
    model = build_model(config, store)
    evaluated(model, store, Splits.of({}).tested, folder / "statistics.parquet")
    save_model(folder / "checkpoint", model, {"store": store.fingerprint, "trial": to_dict(config)})
    return GallerySource(
        label="full, seed 0", statistics=folder / "statistics.parquet", checkpoint=folder / "checkpoint",
        store=store.location, fingerprint=store.fingerprint,
    )  # fmt: skip


def scored(jaccard: list[float], clips: list[str], empty: list[bool], area: list[float]) -> Scored:
    return Scored(
        table=pd.DataFrame({"clip_id": clips}), jaccard=np.array(jaccard), empty=np.array(empty, bool),
        area=np.array(area),
    )  # fmt: skip


def test_choice_is_best_median_and_worst_of_other_clips_and_the_largest_false_objects() -> None:
    found = choose(scored(
        jaccard=[0.9, 0.8, 0.5, 0.0, 0.4, 0.1, 0.0, 0.0, 0.0], clips=list("aabcdexyz"), empty=[False] * 6 + [True] * 3,
        area=[0.1] * 6 + [0.2, 0.0, 0.3],
    ))  # fmt: skip
    assert {choice.name: choice.places for choice in found} == {
        "best": (0, 2), "median": (2, 4), "worst": (3, 5), "null": (8, 6),
    }  # fmt: skip
    texts = {choice.name: choice.text for choice in found}
    assert "of 6 test expressions" in texts["best"] and "median J 45.0 %" in texts["median"]
    assert "1 of them have a J below 1 %" in texts["worst"] and texts["null"].startswith("2 of 3 ")


def test_choice_without_false_objects_or_without_objects_says_so() -> None:
    (null,) = choose(scored([1.0], ["a"], [True], [0.0]))
    assert null.places == ()
    assert null.text == "0 of 1 expressions that refer to nothing are given an object in some frame."
    assert choose(scored([], [], [], [])) == ()


@pytest.mark.long
def test_scores_are_those_of_the_canonical_protocol(source: GallerySource) -> None:
    found, results = read_scores(source, Splits.of({})), expression_results(statistics_blocks(source.statistics))
    assert found.table["row"].tolist() == results.expressions["row"].tolist()
    np.testing.assert_allclose(found.jaccard, results.values["canonical/J"])
    assert found.empty.tolist() == (results.expressions["split"] == "test_n").tolist()


def test_gallery_shows_the_run_and_says_that_the_media_is_gone(source: GallerySource, store: FeatureStore) -> None:
    gallery = make_gallery(source)
    assert not gallery.reason and gallery.label == "full, seed 0"
    assert [group.name for group in gallery.groups] == ["best", "median", "worst", "null"]
    for group in gallery.groups:
        for card in group.cards:
            row = store.expressions[store.expressions["uid"] == card.uid].iloc[0]
            assert (card.sentence, card.split, card.dimension) == (row["text"], row["split"], row["dimension"])
            assert len(card.steps) == SECONDS and card.width == HEIGHT
            assert card.note.startswith("Masks on a plain backdrop, without sound: its media is no longer at nowhere")
            assert not any(step.picture or step.wave for step in card.steps)
            assert card.score.endswith("predicted" if group.name == "null" else "%")
            assert all(bool(step.truth) == (group.name != "null") for step in card.steps)


def test_gallery_says_why_there_is_none(source: GallerySource, tmp_path: Path) -> None:
    for wrong, reason in (
        (None, "no run of this report keeps"),
        (changed(source, store=None), "does not say where its store is"),
        (changed(source, store=str(tmp_path / "gone")), "gone"),
        (changed(source, fingerprint="0" * 64), "has changed since"),
        (changed(source, checkpoint=tmp_path), "config.json is missing"),
        (changed(source, statistics=tmp_path / "none.parquet"), "none.parquet"),
    ):
        gallery = make_gallery(wrong)
        assert reason in gallery.reason and not gallery.groups


def test_prediction_that_differs_from_the_statistics_is_noted(
    source: GallerySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = read_scores(source, Splits.of({}))
    other = changed(scores, jaccard=scores.jaccard + 1)
    monkeypatch.setattr("experiments.report.gallery.read_scores", lambda *_: other)
    monkeypatch.setattr("experiments.report.gallery.PER_GROUP", 1)
    for group in make_gallery(source).groups:
        assert all("Predicted again for this page it scores" in card.note for card in group.cards)


def benchmark_clip(root: Path, name: str) -> None:
    import soundfile

    folder = root / "media" / name / "frames"
    folder.mkdir(parents=True)
    for second in range(SECONDS):
        Image.new("RGB", (320, 160), (0, 0, 60 + 60 * second)).save(folder / f"{second}.jpg", quality=95)
    sound = np.zeros(SECONDS * 16_000, np.float32)
    sound[16_000:32_000] = 0.5 * np.sin(np.arange(16_000))
    soundfile.write(folder.parent / "audio.wav", sound, 16_000)


def test_footage_of_a_benchmark_has_its_frames_shape_and_sound(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark_clip(tmp_path, "clip")
    monkeypatch.setitem(store.attributes, "extraction", {"source": str(tmp_path), "layout": "ref-avs-bench"})
    footage = footage_of(store, "clip")
    assert footage.width == 2 * HEIGHT and not footage.note and footage.frames is not None
    pred = np.zeros((SECONDS, 8, 8), bool)
    pred[1:, :4, :4] = True
    first, second, third = steps_of(footage, pred, np.roll(pred, -1, 0), [0.0, 1.0, 0.0])
    assert [first.verdict, second.verdict, third.verdict] == ["missed", "J 100", "false object"]
    assert steps_of(footage, pred, pred, [math.nan, 1.0, 1.0])[0].verdict == "no label"
    with Image.open(io.BytesIO(base64.b64decode(third.picture.removeprefix("data:image/jpeg;base64,")))) as picture:
        assert picture.size == (2 * HEIGHT, HEIGHT)
        assert picture.convert("RGB").getpixel((9, 9))[2] == pytest.approx(180, abs=6)  # type: ignore[index]
    loud = second.wave
    low, high = heights(first.wave)
    assert high - low <= 1.5 and heights(loud)[0] <= 1.5 and heights(loud)[1] >= WAVE_HEIGHT - 1.5


def test_card_is_scored_on_the_labelled_steps(store: FeatureStore) -> None:
    facts = {"clip_id": "gone", "text": "the left one", "uid": "u", "split": "test_s", "dimension": "spatial"}
    scored = Scored(table=pd.DataFrame([facts]), jaccard=np.ones(1), empty=np.zeros(1, bool), area=np.ones(1))
    pred = np.ones((SECONDS, 8, 8), bool)
    labelled = np.array([True] * (SECONDS - 1) + [False])
    truth = pred & labelled[:, None, None]
    card = _card(store, scored, 0, pred, truth, labelled)
    assert "scores" not in card.note and [each.verdict for each in card.steps][-2:] == ["J 100", "no label"]
    other = _card(store, scored, 0, pred, truth, labelled | True)
    assert "Predicted again for this page it scores 66.7 %" in other.note


def test_footage_of_a_video_folder_is_decoded(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.mp4", duration_s=3.0)
    monkeypatch.setitem(store.attributes, "extraction", {"source": str(tmp_path), "layout": "videos"})
    footage = footage_of(store, "clip")
    assert footage.frames is not None and not footage.note and all(footage.waves)
    assert footage.frames[2].mean() > footage.frames[0].mean() + 20


def test_unreadable_footage_is_noted(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark_clip(tmp_path, "clip")
    (tmp_path / "media/clip/frames/1.jpg").write_bytes(b"no picture")
    monkeypatch.setitem(store.attributes, "extraction", {"source": str(tmp_path), "layout": "ref-avs-bench"})
    footage = footage_of(store, "clip")
    assert footage.frames is None and "1.jpg cannot be read" in footage.note and footage.waves == ("",) * SECONDS


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", ".", "", "/etc"])
def test_ids_of_a_store_name_no_file_outside_its_source(name: str, tmp_path: Path) -> None:
    (tmp_path / "root" / "media").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "root" / "x.mp4").touch()
    for layout in ("ref-avs-bench", "videos", "other", None):
        assert find_clip({"extraction": {"source": str(tmp_path / "root"), "layout": layout}}, name) is None
    assert find_clip({}, "clip") is None and find_clip({"extraction": {"source": "nowhere"}}, "clip") is None


def test_outline_runs_along_the_edge_of_the_mask() -> None:
    mask = np.zeros((4, 8), bool)
    assert outline(mask, (160, 80)) == ""
    mask[:, :4] = True
    pairs = re.findall(r"([-\d.]+) ([-\d.]+)", outline(mask, (160, 80)))
    points = np.array([[float(value) for value in pair] for pair in pairs])
    assert points.min(0).tolist() == [0, 0] and points.max(0).tolist() == [80, 80], "also where it leaves the picture"
    mask[1:3, 1:3] = False
    assert outline(mask, (160, 80)).count("M") == 2, "a hole is an outline of its own"


def test_wave_has_a_bin_for_each_part_of_the_step() -> None:
    path = wave_path(np.linspace(-1, 1, 16_000, dtype=np.float32), 1.0)
    assert path.count("L") == 2 * WAVE_BINS - 1 and path.endswith("Z")
    assert heights(path)[0] == pytest.approx(1.0) and heights(path)[1] == pytest.approx(WAVE_HEIGHT - 1)


def heights(path: str) -> tuple[float, float]:
    """Highest and lowest point of a path."""
    found = [float(y) for y in re.findall(r" ([-\d.]+)", path)]
    return min(found), max(found)

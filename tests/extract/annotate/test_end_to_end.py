"""From films to a benchmark that a model trains on, with stand-ins that find and follow the objects."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from experiments.cli import main as sweep
from extract.annotate.cli import main as annotate
from extract.annotate.exchange.exports import picture
from extract.annotate.exchange.formats.registry import FORMATS
from extract.annotate.records import MaskSecond, ProjectFolder
from extract.annotate.sentences.clip_sentences import clip_sentences
from extract.cli import main as extract
from refavs.data.rle import decoded
from refavs.synthetic.cli import main as synth
from refavs.synthetic.cut_films import Truth, cut_clip, read_truth
from refavs.synthetic.plan import Settings
from refavs.synthetic.scene import render
from tests.experiments.test_sweep import InProcess
from tests.extract.annotate.test_pack import accept_all, complaints
from tests.extract.command import in_this_process, run_with
from tests.support.expression_oracle import Oracle

pytestmark = pytest.mark.filterwarnings("ignore")  # of MLflow and what it imports

GRID = {
    "base": {
        "model": {"num_layers": 1, "num_queries": 4, "num_heads": 2, "feedforward_channels": 32, "decoder_layers": 0},
        "loss": {"num_points": 0},
        "train": {"epochs": 1, "steps_per_epoch": 4, "batch_size": 4, "frames": 2, "precision": "fp32"},
    },
    "cases": {"full": {}},
}


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def true_mask(truth: Truth, index: int, second: int) -> np.ndarray:
    return decoded(truth["masks"][index][second])


def annotated(folder: Path, num_clips: int) -> ProjectFolder:
    """Films with a cut, proposed, tracked, and taken through all label tools unchanged."""
    films, path = folder / "films", str(folder / "project")
    known = f"synthetic:{films}"
    assert synth([str(films), "--clips", str(num_clips), "--cut-films"]) == 0
    names = ("--names", str(films / "names.csv"), "--detector", known, "--tracker", known)
    assert annotate(["propose", path, str(films / "videos"), *names]) == 0
    assert annotate(["track", path]) == 0
    project = ProjectFolder(Path(path))
    for tool in FORMATS:
        out = folder / tool
        assert annotate(["export", path, str(out), "--format", tool]) == 0
        assert annotate(["import", path, str(out / FORMATS[tool].file_name), "--format", tool]) == 0
    return project


def check_masks(project: ProjectFolder, films: Path) -> None:
    """Scenes and masks are the true ones."""
    truths = read_truth(films)
    assert project.clips() == sorted(truths)
    for clip_id, truth in truths.items():
        files = project.clip(clip_id)
        scenes, masks = files.scenes(), files.masks()
        assert [scene.first for scene in scenes.scenes] == [0, truth["cut"]]
        assert [one.name for one in masks.objects] == truth["names"]
        for index, one in enumerate(masks.objects):
            for each in one.seconds:
                shown = picture(each.rle, scenes.height, scenes.width)
                assert jaccard(shown, true_mask(truth, index, each.second)) > 0.95, (clip_id, one.fid, each.second)


def check_sentences(project: ProjectFolder, num_clips: int) -> int:
    """Every accepted sentence about an object fits that object alone; returns how many there are."""
    count = 0
    for index in range(num_clips):
        clip, scenes, cut = cut_clip(Settings(num_clips=num_clips), index)
        oracle = Oracle(clip, [render(scenes[second >= cut], float(second)) for second in range(10)])
        for one in clip_sentences(project.clip(clip.id)):
            if one.fid is not None and one.status == "accepted":
                assert oracle.referents(one.text) == {one.fid - 1}, (clip.id, one.text)
                count += 1
    return count


def check_benchmark(root: Path, films: Path) -> None:
    """Nothing to complain about, and the true masks."""
    assert complaints(root) == {}
    truths = read_truth(films)
    values = []
    for folder in sorted((root / "gt_mask").iterdir()):
        for path in sorted(folder.rglob("*.png")):
            mask = np.asarray(Image.open(path)) > 0
            if folder.name.startswith("null_"):
                assert not mask.any()
            else:
                fid = int(path.parent.name.removeprefix("fid_"))
                values.append(jaccard(mask, true_mask(truths[folder.name], fid - 1, int(path.stem))))
    assert min(values) > 0.95


def packed(folder: Path, project: ProjectFolder, num_clips: int, *options: str) -> Path:
    """The benchmark with sentences from the films' facts; a person says yes to what is queued."""
    films, bench = folder / "films", folder / "bench"
    assert annotate(["express", str(project.path), "--facts", str(films / "facts.csv"), "--nulls", "0.15"]) == 0
    assert check_sentences(project, num_clips) > 3 * num_clips
    accept_all(project)
    assert annotate(["pack", str(project.path), str(bench), *options]) == 0
    check_benchmark(bench, films)
    return bench


def grid_file(folder: Path) -> str:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID))
    return str(path)


@pytest.mark.long
def test_films_become_a_benchmark_that_a_model_trains_on(
    tmp_path: Path, small_networks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_clips = 3
    project = annotated(tmp_path, num_clips)
    check_masks(project, tmp_path / "films")
    bench = packed(tmp_path, project, num_clips, "--splits", "40/30/30")
    run_with(monkeypatch, in_this_process)
    store = str(tmp_path / "store")
    assert extract([str(bench), store, "--preset", "tiny"]) == 0
    runner = types.SimpleNamespace(run_trials=InProcess().run_trials)
    monkeypatch.setitem(sys.modules, "experiments.cluster.tune_runner", runner)
    out = tmp_path / "runs"
    assert sweep([grid_file(tmp_path), "--store", store, "--out", str(out)]) == 0
    (status,) = (json.loads(path.read_text()) for path in out.glob("trials/*/status.json"))
    assert status["state"] == "finished"


@pytest.mark.long
def test_a_new_track_keeps_what_a_person_drew(tmp_path: Path) -> None:
    project = annotated(tmp_path, 1)
    (clip_id,) = project.clips()
    out = tmp_path / "again"
    assert annotate(["export", str(project.path), str(out), "--format", "coco"]) == 0
    path = out / "annotations.json"
    text = path.read_text()
    first = text.index('{"id":1,')
    changed = text[:first] + text[text.index("\n", first) + 1 :]  # the person removes the first mask
    path.write_text(changed)
    assert annotate(["import", str(project.path), str(path), "--format", "coco"]) == 0

    def edits() -> list[MaskSecond]:
        objects = project.clip(clip_id).masks().objects
        return [each for one in objects for each in one.seconds if each.origin == "edited"]

    before = edits()
    assert len(before) == 1 and before[0].rle is None
    assert annotate(["track", str(project.path)]) == 0
    assert edits() == before


@pytest.mark.slow
@pytest.mark.ray
def test_forty_films_become_a_benchmark(tmp_path: Path) -> None:
    num_clips = 40
    project = annotated(tmp_path, num_clips)
    check_masks(project, tmp_path / "films")
    bench = packed(tmp_path, project, num_clips, "--unseen", "ring,diamond,cross")
    rows = pd.read_csv(bench / "metadata.csv")
    assert set(rows["split"]) == {"train", "val", "test_s", "test_u", "test_n"}
    store = str(tmp_path / "store")
    assert extract([str(bench), store, "--preset", "tiny"]) == 0
    assert sweep([grid_file(tmp_path), "--store", store, "--out", str(tmp_path / "runs")]) == 0

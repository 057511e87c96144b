"""The packed benchmark: read as Ref-AVS Bench without a complaint, split by video, with the origin of everything."""

import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from extract.annotate.benchmark.checks import checks
from extract.annotate.benchmark.splitting import Splitting, assign, video_of
from extract.annotate.cli import main
from extract.annotate.exchange.import_masks import import_masks
from extract.annotate.records import ProjectFolder
from extract.annotate.sentences.clip_sentences import Sentence, clip_sentences, write_sentences
from extract.annotate.sentences.facts import state
from refavs.data.layouts import read_source
from refavs.errors import ConfigError
from tests.extract.annotate.small_project import SIZE, blob, make_project
from tests.extract.annotate.test_exchange import edited, exported, painted
from tests.extract.annotate.test_express import SAID

# Kinds of the layout's report that say that something is wrong; the others count.
COMPLAINTS = (
    "split_todo", "empty_text", "repeated_uids", "uid_with_two_fids", "repeated_expressions", "error_text",
    "placeholder_text", "non_ascii_text", "padded_text", "double_space_text", "missing_media", "missing_masks",
    "null_masks_not_shipped", "vids_across_splits", "unseen_objects_in_train",
)  # fmt: skip
CLIPS = tuple(f"film{number}_0_10000" for number in range(6))


def accept_all(project: ProjectFolder) -> None:
    """A person says yes to everything."""
    review = project.path / "review.csv"
    review.write_text(review.read_text().replace(",\n", ",yes\n"))
    assert main(["express", str(project.path), "--review", str(review)]) == 0


def expressed(folder: Path, clips: tuple[str, ...] = CLIPS, sound: bool = True) -> ProjectFolder:
    project = make_project(folder / "project", clips=clips, sound=sound)
    for clip_id in clips:
        state(project.clip(clip_id), SAID)
    assert main(["express", str(project.path), "--nulls", "0.3"]) == 0
    accept_all(project)
    return project


def complaints(root: Path) -> dict[str, int]:
    """What the layout's report says is wrong with a benchmark."""
    report = read_source(root).report
    return {kind: report.counts[kind] for kind in COMPLAINTS if report.counts.get(kind)}


def table(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "metadata.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProjectFolder, Path]:
    folder = tmp_path_factory.mktemp("packed")
    project = expressed(folder)
    assert main(["pack", str(project.path), str(folder / "bench"), "--splits", "50/20/30"]) == 0
    return project, folder / "bench"


def test_the_layout_reads_the_benchmark_without_a_complaint(packed: tuple[ProjectFolder, Path]) -> None:
    source = read_source(packed[1])
    assert source.layout == "ref-avs-bench" and complaints(packed[1]) == {}
    assert len(source.expressions) == len(table(packed[1]))
    assert set(source.expressions["split"]) >= {"train", "val", "test_s"}
    assert (source.expressions["grade"] != "").all() and (source.expressions["dimension"] != "").all()
    assert source.expressions["null"].any()


def test_masks_frames_and_sound_are_the_projects(packed: tuple[ProjectFolder, Path]) -> None:
    project, root = packed
    clip = CLIPS[0]
    for fid in (1, 2):
        for second in range(10):
            mask = np.asarray(Image.open(root / f"gt_mask/{clip}/fid_{fid}/{second:05d}.png"))
            assert np.array_equal(mask > 0, blob(fid, second)) and mask.shape == SIZE
    frame = root / f"media/{clip}/frames/4.jpg"
    assert frame.read_bytes() == project.clip(clip).frame(4).read_bytes()
    assert (root / f"media/{clip}/audio.wav").read_bytes() == project.clip(clip).sound.read_bytes()


def test_null_copies_are_muted_or_have_another_sound(packed: tuple[ProjectFolder, Path]) -> None:
    _, root = packed
    rows = table(root)
    nulls = rows[rows["uid"].str.startswith("null_")]
    assert set(nulls["fid"]) == {0} and not nulls["vid"].str.startswith("null_").any()
    for uid in nulls["uid"]:
        media = uid.rsplit("_", 2)[0]
        masks = [np.asarray(Image.open(path)) for path in sorted((root / f"gt_mask/{media}/fid_0").iterdir())]
        assert len(masks) == 10 and not any(mask.any() for mask in masks)
        with wave.open(str(root / f"media/{media}/audio.wav")) as file:
            sound = np.frombuffer(file.readframes(10**6), "<i2")
        assert len(sound) == 160_000
        assert (sound == 0).all() == media.startswith("null_m-")
    assert set(rows["split"]) <= {"train", "val", "test_s", "test_n"}
    assert all(split == "test_n" or not uid.startswith("null_") or split in ("train", "val")
               for uid, split in zip(rows["uid"], rows["split"], strict=True))  # fmt: skip


def test_provenance_says_where_everything_comes_from(tmp_path: Path) -> None:
    project = expressed(tmp_path, ("one", "two"))
    import_masks(project, edited(exported(project), project, painted), "cvat")
    assert main(["pack", str(project.path), str(tmp_path / "bench")]) == 0
    told = json.loads((tmp_path / "bench/annotations.json").read_text())
    assert told["models"]["tracker"] == {"name": "stand-in", "revision": "r1"}
    assert set(told["versions"]) == {"refavs", "torch", "transformers", "av"}
    clip = told["clips"]["one"]
    assert clip["scenes"] == [[0, 4], [5, 9]] and clip["tracker"]["revision"] == "r1"
    first = clip["objects"][0]
    assert first["origin"] == ["auto"] * 3 + ["edited"] + ["auto"] * 6 and first["pivots"][0]["pivot"] == 2
    rows = table(tmp_path / "bench")
    assert {one["uid"] for each in told["clips"].values() for one in each["sentences"]} == set(rows["uid"])
    assert {one["by"] for one in clip["sentences"]} == {"program", "person"}
    mask = np.asarray(Image.open(tmp_path / "bench/gt_mask/one/fid_1/00003.png"))
    assert np.array_equal(mask > 0, painted(1, 3, blob(1, 3)))


def test_odd_masks_are_listed(tmp_path: Path) -> None:
    project = expressed(tmp_path, ("one",))
    path = exported(project)
    import_masks(project, edited(path, project, lambda fid, second, mask: (
        np.ones(SIZE, bool) if (fid, second) == (1, 3) else mask
    )), "cvat")  # fmt: skip
    assert main(["pack", str(project.path), str(tmp_path / "bench")]) == 0
    told = json.loads((tmp_path / "bench/annotations.json").read_text())["clips"]["one"]["checks"]
    assert "objects 1 and 2, second 3: 100% overlap" in told
    assert "object 1, second 4: its area changes 21.9-fold" in told
    assert not any(line.startswith("object 1, second 3") for line in told), "a person made it"
    files = project.clip("one")
    masks, first = files.masks(), files.masks().objects[0]
    unsure = replace(first, seconds=(replace(first.seconds[0], presence=0.25), *first.seconds[1:]))
    lines = checks(replace(masks, objects=(unsure, *masks.objects[1:])), files.scenes())
    assert "object 1, second 0: its mask has 35 px, but it shows with probability 0.25" in lines


def test_unseen_categories_are_held_out(tmp_path: Path) -> None:
    clips = CLIPS[:3]
    project = expressed(tmp_path, clips)
    state(project.clip(clips[1]), {3: {"class": "robot"}})
    assert main(["express", str(project.path), "--per-clip", "30"]) == 0
    assert main(["pack", str(project.path), str(tmp_path / "bench"), "--unseen", "robot"]) == 0
    rows = table(tmp_path / "bench")
    unseen = rows[rows["split"] == "test_u"]
    assert set(unseen["vid"]) == {clips[1]} and unseen["uid"].str.contains("_robot_").all()
    assert not rows[rows["split"] != "test_u"]["uid"].str.contains("robot").any()
    assert complaints(tmp_path / "bench") == {}
    assert main(["pack", str(project.path), str(tmp_path / "again"), "--unseen", "robt"]) == 2
    assert main(["pack", str(project.path), str(tmp_path / "again")]) == 2  # other splits than before


def test_clips_of_a_video_share_a_split_and_keep_it(tmp_path: Path) -> None:
    project = ProjectFolder(tmp_path)
    splitting = Splitting.of("60/20/20", None)
    some = {f"v{number}_{part}_{part + 10}": {"drum"} for number in range(10) for part in (0, 10)}
    first = assign(project, some, splitting)
    assert all(first[f"v{number}_0_10"] == first[f"v{number}_10_20"] for number in range(10))
    assert sorted(first.values()).count("train") == 12 and sorted(first.values()).count("val") == 4
    more = assign(project, some | {f"w{number}_0_10": {"drum"} for number in range(10)}, splitting)
    assert more | first == more
    assert [video_of(name) for name in ("a_b_0_10000", "plain", "x_1")] == ["a_b", "plain", "x_1"]
    for shares in ("70/30", "a/b/c", "0/0/0", "nan/1/1", "-1/1/1"):
        with pytest.raises(ConfigError, match="accepted: shares of train, val and test_s"):
            Splitting.of(shares, None)


def test_clips_without_a_sentence_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = expressed(tmp_path, ("one", "two"))
    write_sentences(project.clip("two"), [])
    assert main(["pack", str(project.path), str(tmp_path / "bench")]) == 3
    assert "clip two: no accepted sentence; left out" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "bench/media").iterdir() if "null" not in path.name) == ["one"]
    gone = Sentence(uid="one_drum_99", fid=9, text="The ninth.", made="The ninth.", dimension="semantic", grade=1,
                    template="", status="accepted")  # fmt: skip
    write_sentences(project.clip("one"), [*clip_sentences(project.clip("one")), gone])
    assert main(["pack", str(project.path), str(tmp_path / "again")]) == 3
    assert "clip one: 1 sentences are about objects that no longer show" in capsys.readouterr().err


def test_a_silent_clip_gets_a_silent_track(tmp_path: Path) -> None:
    project = expressed(tmp_path, ("one",), sound=False)
    assert main(["pack", str(project.path), str(tmp_path / "bench")]) == 0
    with wave.open(str(tmp_path / "bench/media/one/audio.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 160_000)


def test_pack_refuses_what_it_cannot_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = make_project(tmp_path / "project")
    for arguments, said in (
        (["bench"], "has no accepted sentence; run refavs-annotate express"),
        (["project"], "holds files; name a new or empty folder"),
        (["bench", "--splits", "1"], "accepted: shares"),
    ):  # fmt: skip
        assert main(["pack", str(project.path), str(tmp_path / arguments[0]), *arguments[1:]]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()

"""The written benchmark: bytes, layout, splits, null references, videos, and what bad input gets."""

import filecmp
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from refavs.data.layouts import Source, read_source
from refavs.data.masks import read_masks
from refavs.errors import ConfigError, DatasetError
from refavs.synthetic import write as synthetic
from refavs.synthetic.cli import main
from refavs.synthetic.plan import ExpressionRow, Settings, draw_clip, plan
from refavs.synthetic.scene import SEEN_CATEGORIES, UNSEEN_CATEGORIES
from refavs.synthetic.voices import SAMPLE_RATE_HZ
from refavs.synthetic.write import track, write_benchmark

pytestmark = pytest.mark.long  # for what its fixtures make

SMALL = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "out"
    write_benchmark(out, SMALL, seed=5, size=64, videos=2)
    return out


@pytest.fixture(scope="module")
def source(root: Path) -> Source:
    return read_source(root)


@pytest.fixture(scope="module")
def rows() -> list[ExpressionRow]:
    return plan(Settings(num_clips=240))[1]


def is_null(row: ExpressionRow) -> bool:
    return row.uid.startswith("null_")


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.process
def test_write_benchmark_is_byte_for_byte_the_same_in_any_process(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    code = (
        "from refavs.synthetic.write import write_benchmark\n"
        f"write_benchmark({str(again)!r}, {SMALL}, seed=5, size=64, videos=2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "4711"})
    names = files_of(root)
    assert names == files_of(again)
    kept = [name for name in names if not name.startswith("videos")]
    assert len(kept) > 200
    assert filecmp.cmpfiles(root, again, kept, shallow=False)[0] == kept


def test_write_benchmark_differs_with_the_seed() -> None:
    one, other = (plan(Settings(num_clips=SMALL, seed=seed)) for seed in (5, 6))
    assert [row.text for row in one[1]] != [row.text for row in other[1]]


def test_clips_do_not_depend_on_how_many_there_are() -> None:
    few, many = (plan(Settings(num_clips=count))[1] for count in (10, 20))
    assert [row for row in few if not is_null(row)] == [
        row for row in many if not is_null(row) and int(row.vid[3:8]) < 10
    ]


def test_benchmark_is_read_without_an_odd_row(root: Path, source: Source) -> None:
    table = pd.read_csv(root / "metadata.csv")
    assert list(table.columns) == ["vid", "uid", "split", "fid", "exp"]
    assert len(source.expressions) == len(table) == source.report.counts["rows_kept"]
    for kind in ("split_todo", "repeated_uids", "missing_media", "missing_masks", "non_ascii_text", "padded_text",
                 "repeated_expressions", "unseen_objects_in_train", "error_text"):
        assert source.report.counts.get(kind, 0) == 0, kind
    assert {clip.id for clip in source.clips} == {path.name for path in (root / "media").iterdir()}
    assert set(source.expressions["split"]) == {"train", "val", "test_s", "test_u", "test_n"}
    assert set(source.expressions["dimension"]) <= {
        "semantic", "spatial", "acoustic", "spatial+temporal", "acoustic+temporal"
    }
    assert set(source.expressions["grade"]) <= {"1", "2", "4", "5"}
    assert source.layout == "ref-avs-bench" and dict(source.splits)["test_n"] == "null-test"


def test_benchmark_files_have_the_benchmarks_form(source: Source) -> None:
    for clip in source.clips:
        assert clip.audio is not None
        assert sorted(clip.frames[0].parent.iterdir()) == list(clip.frames) and len(clip.frames) == 10
        with Image.open(clip.frames[0]) as picture:
            assert picture.size == (64, 64) and picture.mode == "RGB"
        assert clip.audio.stat().st_size == 44 + 2 * 10 * SAMPLE_RATE_HZ


def test_masks_lie_on_their_object(source: Source) -> None:
    for one in source.objects:
        clip_id, fid, masks = one.clip_id, one.fid, read_masks(list(one.masks.values()))
        if one.null:
            assert fid == 0 and not masks.any()
            continue
        item = draw_clip(Settings(num_clips=SMALL, seed=5, size=64), int(clip_id[3:8])).scene.objects[fid]
        for second in range(10):
            assert masks[second].any() == item.visible(float(second))
            if masks[second].any():
                found = np.argwhere(masks[second]).mean(0)[::-1]
                assert np.abs(found - item.centre(float(second))).max() < 3


def test_splits_hold_what_they_are_named_for(rows: list[ExpressionRow]) -> None:
    settings = Settings(num_clips=240)
    clips = [draw_clip(settings, index) for index in range(240)]
    assert Counter(clip.split for clip in clips) == {"train": 168, "val": 24, "test_s": 24, "test_u": 24}
    for row in rows:
        media_id, category, _ = row.uid.rsplit("_", 2)
        if is_null(row):
            assert category == "null" and row.fid == 0 and media_id[len("null_m-") :] == row.vid
            assert row.split in ("train", "val", "test_n")
            continue
        clip = clips[int(row.vid[3:8])]
        assert media_id == row.vid == clip.id and row.split == clip.split
        assert clip.categories[row.fid] == category
        assert (category in UNSEEN_CATEGORIES) == (row.split == "test_u")
        if row.split != "test_u":
            assert set(clip.categories) <= set(SEEN_CATEGORIES)
    assert len({row.uid for row in rows}) == len(rows)


def test_expression_mix_gives_each_cue_its_share(rows: list[ExpressionRow]) -> None:
    train = [row for row in rows if row.split == "train"]
    share = Counter("null" if is_null(row) else row.template.dimension for row in train)
    temporal = share["acoustic+temporal"] + share["spatial+temporal"]
    for found, low, high in (
        (share["semantic"], 0.25, 0.35), (share["spatial"], 0.1, 0.2), (share["acoustic"], 0.12, 0.25),
        (temporal, 0.28, 0.42), (share["null"], 0.07, 0.15),
    ):
        assert low < found / len(train) < high
    assert 5 < len([row for row in rows if not is_null(row)]) / 240 < 7


@pytest.mark.parametrize("split", ["train", "val"])
def test_nulls_are_at_most_a_quarter_of_each_template(rows: list[ExpressionRow], split: str) -> None:
    here = [row for row in rows if row.split == split]
    total = Counter(row.template.pattern for row in here)
    nulls = Counter(row.template.pattern for row in here if is_null(row))
    assert len(nulls) >= 5
    for pattern, count in nulls.items():
        assert count <= 0.25 * total[pattern], pattern


def test_null_sentences_refer_to_something_in_train(rows: list[ExpressionRow]) -> None:
    """Neither the sentence nor its template tells that a row of test_n is null."""
    positive = {row.text for row in rows if row.split == "train" and not is_null(row)}
    nulls = [row for row in rows if row.split == "test_n"]
    assert len(nulls) > 80 and all(is_null(row) for row in nulls)
    assert {row.text for row in rows if is_null(row)} <= positive
    assert {row.uid[5] for row in nulls} == {"m", "c"}
    assert all("acoustic" in row.template.dimension for row in nulls)


def band_share(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(samples.astype(float))) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE_HZ)
    return float(power[(frequency > low_hz) & (frequency < high_hz)].sum() / power.sum())


def test_null_sound_is_silence_or_that_of_absent_categories() -> None:
    bands = {"disc": (200, 240), "square": (420, 460), "triangle": (840, 920), "star": (2500, 4200)}
    settings, checked = Settings(num_clips=30), 0
    for index in range(30):
        clip = draw_clip(settings, index)
        if len(clip.categories) > 3 or clip.split == "test_u":
            continue
        assert not track(settings, clip, "m").any()
        crossed, own = track(settings, clip, "c"), track(settings, clip)
        present = [bands[name] for name in clip.categories]
        assert max(band_share(own, *band) for band in present) > 0.2
        assert all(band_share(crossed, *band) < 0.15 for band in present)
        assert np.abs(crossed.astype(float)).mean() > 300
        checked += 1
    assert checked > 10


def test_videos_have_ten_seconds_of_picture_and_sound(root: Path) -> None:
    videos = sorted((root / "videos").iterdir())
    assert [path.name for path in videos] == ["syn00000_0_10000.mp4", "syn00001_0_10000.mp4"]
    with av.open(str(videos[1])) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert picture.codec_context.name == "h264" and sound.codec_context.name == "aac"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(picture)]
    assert len(frames) == 100
    with av.open(str(videos[1])) as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]
    assert len(heard) / SAMPLE_RATE_HZ == pytest.approx(10, abs=0.1)
    for second in (0, 6):
        with Image.open(root / "media" / videos[1].stem / "frames" / f"{second}.jpg") as frame:
            assert np.abs(np.asarray(frame).astype(float) - frames[10 * second]).mean() < 12
    settings = Settings(num_clips=SMALL, seed=5, size=64)
    own = track(settings, draw_clip(settings, 1)) / 32768
    assert np.corrcoef(heard[: len(own)], own)[0, 1] > 0.99  # not a sample late


def test_write_benchmark_again_does_nothing(root: Path) -> None:
    before = (root / "metadata.csv").stat().st_mtime_ns
    assert write_benchmark(root, SMALL, seed=5, size=64, videos=2) is None
    assert (root / "metadata.csv").stat().st_mtime_ns == before


@pytest.mark.parametrize("data", [b"", b"{\"num_clips\": ", b"\xff"])
def test_write_benchmark_refuses_a_damaged_record(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "synthetic.json").write_bytes(data)
    with pytest.raises(DatasetError, match=r"synthetic\.json is damaged .* name another folder or delete"):
        write_benchmark(tmp_path, 1)


def test_write_benchmark_refuses_a_folder_with_something_else(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds a synthetic benchmark made with .*'seed': 5.* asks for .*'seed': 6"):
        write_benchmark(root, SMALL, seed=6, size=64, videos=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"holds other files; name a new or empty folder"):
        write_benchmark(tmp_path, 1)
    with pytest.raises(DatasetError, match=r"notes.txt is a file; name a folder"):
        write_benchmark(tmp_path / "notes.txt" / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(synthetic, "_tables", fail)
    with pytest.raises(type(fault)):
        write_benchmark(tmp_path / "out", 1, size=48, videos=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_clips": 0}, r"--clips is 0; give 1 or more"),
        ({"seed": -1}, r"--seed is -1; give 0 or a positive"),
        ({"size": 97}, r"--size is 97; give an even number of pixels, 48 or more"),
        ({"size": 20}, r"--size is 20; give an even number"),
        ({"num_videos": -2}, r"--videos is -2; give a number of clips, all or none"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(Settings(num_clips=10), **change)


def test_command_writes_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "out"), "--clips", "2", "--size", "48", "--no-videos"]
    assert main(arguments) == 0
    assert "2 clips and" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "synthetic.json").read_text())["num_videos"] == 0
    assert not (tmp_path / "out" / "videos").exists()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(("videos", "count"), [("all", 3), ("none", 0), ("2", 2), ("9", 3)])
def test_command_takes_a_number_of_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, videos: str, count: int
) -> None:
    written: list[str] = []
    monkeypatch.setattr(synthetic, "write_video", lambda path, *_: written.append(path.name))
    assert main([str(tmp_path / "out"), "--clips", "3", "--size", "48", "--videos", videos]) == 0
    assert len(written) == count


def test_command_refuses_bad_values_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out"), "--videos", "some"]) == 2
    assert capsys.readouterr().err == (
        "refavs-synth: --videos is 'some'; give all, none or a number of clips, e.g. --videos 16.\n"
    )
    assert main([str(tmp_path / "out"), "--clips", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

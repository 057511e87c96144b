"""The command with several levels, clips of the same bytes, precisions, dry runs and stores elsewhere."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from extract.cli import main
from extract.encoders.pixel_decoder import FrozenPixelDecoder
from extract.encoders.presets import build_encoders, preset_named
from extract.encoders.visual import VisualEncoder
from extract.encoders.weights import WeightSource
from extract.pipeline.estimate import Seconds
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, refusal, run_with, tiny


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=2, seed=1, size=96, videos=2)
    return root


def tree(store: Path) -> dict[str, bytes]:
    """Every file of a store; commit records without the time and their checksum, which covers it."""
    files = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name not in (".lock", "extract.jsonl"):
            data = path.read_bytes()
            if path.parent.name == "commits" and path.name.split("-")[0] in ("clips", "objects", "text"):
                facts = json.loads(data)["record"]
                data = json.dumps({**facts, "seconds": 0}, sort_keys=True).encode()
            files[path.relative_to(store).as_posix()] = data
    return files


@pytest.mark.long
def test_level_added_later_gives_the_store_of_both_at_once(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    both, later = tmp_path / "both", tmp_path / "later"
    assert main([str(part) for part in tiny(bench, both, "--levels", "backbone,pixel_decoder")]) == 0
    assert main([str(part) for part in tiny(bench, later, "--levels", "pixel_decoder")]) == 0
    one = FeatureStore(later)
    assert list(one.encoders) == ["audio", "text", "visual/pixel_decoder"]
    asked = []
    for name in ("vggish.VGGishEncoder", "roberta.RobertaEncoder"):
        monkeypatch.setattr(f"extract.encoders.{name}.encode", lambda *_: pytest.fail("computed again"))
    encode = VisualEncoder.encode
    monkeypatch.setattr(VisualEncoder, "encode", lambda self, clips, levels: asked.append(tuple(levels))
                        or encode(self, clips, levels))  # fmt: skip
    monkeypatch.setattr(FrozenPixelDecoder, "forward", lambda *_: pytest.fail("computed again"))
    capsys.readouterr()
    assert main([str(part) for part in tiny(bench, later, "--levels", "backbone")]) == 0
    out = capsys.readouterr().out
    assert f"{later} has level pixel_decoder; this run keeps it complete as well: backbone, pixel_decoder" in out
    assert set(asked) == {("backbone",)}
    assert tree(later) == tree(both) and FeatureStore(later).fingerprint == FeatureStore(both).fingerprint
    assert main([str(part) for part in tiny(bench, later, "--levels", "pixel_decoder")]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.long
def test_level_of_clips_that_the_source_lacks_is_named(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    videos = Path(shutil.copytree(bench / "videos", tmp_path / "videos"))
    arguments = [str(part) for part in tiny(videos, tmp_path / "store", "--levels")]
    assert main([*arguments, "pixel_decoder"]) == 0
    sorted(videos.iterdir())[0].unlink()
    capsys.readouterr()
    assert main([*arguments, "backbone"]) == 0
    assert f"1 shards of {tmp_path / 'store'} still lack clips/visual/backbone/res2" in capsys.readouterr().out


@pytest.mark.long
def test_same_video_under_two_names_is_encoded_once(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    videos = Path(shutil.copytree(bench / "videos", tmp_path / "videos"))
    first, _ = sorted(videos.iterdir())
    shutil.copy(first, videos / "again.mp4")
    encoded = []
    encode = VisualEncoder.encode
    monkeypatch.setattr(VisualEncoder, "encode", lambda self, clips, levels: encoded.extend(clips)
                        or encode(self, clips, levels))  # fmt: skip
    arguments = [str(part) for part in tiny(videos, tmp_path / "store")]
    assert main([*arguments, "--dry-run"]) == 0
    assert "1 clips share another's features" in " ".join(capsys.readouterr().out.split())
    encoded.clear()
    assert main(arguments) == 0
    assert len(encoded) == 2
    assert re.search(r"sharing +│ 1 +│ 1 ", capsys.readouterr().out)
    store = FeatureStore(tmp_path / "store")
    rows = {clip_id: row for row, clip_id in store.clips["id"].items()}
    for spec in store.schema.tables["clips"].arrays:
        assert torch.equal(store.read(spec.path, rows["again"]), store.read(spec.path, rows[first.stem]))
    assert main(arguments) == 0
    assert "nothing to do: all 3 clips" in capsys.readouterr().out


@pytest.mark.long
def test_null_clip_shares_its_base_clips_frames_and_has_its_own_sound(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = sorted(folder.name for folder in (root / "media").iterdir())[:2]
    shutil.rmtree(root / "media" / other / "frames")
    shutil.copytree(root / "media" / one / "frames", root / "media" / other / "frames")
    assert main([str(part) for part in tiny(root, tmp_path / "store")]) == 0
    store = FeatureStore(tmp_path / "store")
    rows = {clip_id: row for row, clip_id in store.clips["id"].items()}
    assert StoreWriter.attach(tmp_path / "store").shared("clips") == {other: {"clips/visual": one}}
    visual, audio = "clips/visual/pixel_decoder/s32", "clips/audio/vggish"
    assert torch.equal(store.read(visual, rows[one]), store.read(visual, rows[other]))
    assert not torch.equal(store.read(audio, rows[one]), store.read(audio, rows[other]))


@pytest.mark.long
def test_clip_whose_twin_failed_is_named(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = sorted(folder.name for folder in (root / "media").iterdir())[:2]
    shutil.rmtree(root / "media" / other / "frames")
    shutil.copytree(root / "media" / one / "frames", root / "media" / other / "frames")
    sound = root / "media" / one / "audio.wav"
    whole = sound.read_bytes()
    sound.write_text("noise")
    arguments = [str(part) for part in tiny(root, tmp_path / "store")]
    assert main(arguments) == 3
    assert f"clips {other}: has the same input as {one}, which failed" in capsys.readouterr().err
    sound.write_bytes(whole)
    assert main(arguments) == 0
    assert other in set(FeatureStore(tmp_path / "store").clips["id"])


@pytest.mark.long
def test_clip_whose_failed_twin_left_the_source_is_computed_once_its_record_is_gone(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = sorted((root / "media").iterdir())[:2]
    shutil.rmtree(other / "frames")
    shutil.copytree(one / "frames", other / "frames")
    (one / "audio.wav").write_text("noise")
    arguments = [str(part) for part in tiny(root, tmp_path / "store")]
    assert main(arguments) == 3
    shutil.rmtree(one)
    capsys.readouterr()
    assert main(arguments) == 3
    line = next(line for line in capsys.readouterr().err.splitlines() if "has the same input as" in line)
    assert f"clips {other.name}: has the same input as {one.name}, which SOURCE lacks; as to " in line
    Path(next(word for word in line.split() if word.endswith(".json:")).removesuffix(":")).unlink()
    assert main(arguments) == 0
    assert list(FeatureStore(tmp_path / "store").clips["id"]) == [other.name]


@pytest.mark.long
def test_clip_never_gets_features_of_files_that_took_its_twins_place(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = sorted((root / "media").iterdir())[:2]
    shutil.rmtree(other / "frames")
    shutil.copytree(one / "frames", other / "frames")
    (one / "audio.wav").write_text("noise")
    arguments = [str(part) for part in tiny(root, tmp_path / "store")]
    assert main(arguments) == 3
    shutil.rmtree(one)
    shutil.copytree(bench / "media" / other.name, one)
    capsys.readouterr()
    line = refusal(capsys, *arguments)
    assert f"was to share the features of '{one.name}', whose files are others by now; as to" in line
    record = next(word for word in line.split() if word.endswith(".json:")).removesuffix(":")
    Path(record).unlink()
    assert main(arguments) == 0
    store = FeatureStore(tmp_path / "store")
    rows = {clip_id: row for row, clip_id in store.clips["id"].items()}
    path = "clips/visual/pixel_decoder/s32"
    assert not torch.equal(store.read(path, rows[one.name]), store.read(path, rows[other.name]))


def test_other_precision_and_preset_are_refused_with_both_fingerprints(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, lambda *_: iter(()))
    arguments = tiny(bench, tmp_path / "store", "--precision")
    assert main([str(part) for part in (*arguments, "bf16")]) == 0
    capsys.readouterr()
    line = refusal(capsys, *arguments, "fp32")
    assert "precision=bf16" in line and "precision=fp32" in line and line.count("@") == 2
    line = refusal(capsys, bench, tmp_path / "store", "--weights", "random", "--precision", "bf16")
    assert "input_size=16" in line and "input_size=25" in line and line.count("@") == 2


@pytest.mark.long
@pytest.mark.parametrize("fast", [True, False])
def test_auto_is_the_precision_of_the_store_and_fp32_for_a_new_one(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    run_with(monkeypatch, lambda *_: iter(()))
    monkeypatch.setattr("refavs.machine.accelerator.bf16_is_fast", lambda device: fast)
    monkeypatch.setattr("refavs.machine.accelerator.slow_bf16", lambda device: None if fast else 7.6)

    def precision(name: str, *arguments: str) -> str:
        assert main([str(part) for part in tiny(bench, tmp_path / name, *arguments)]) == 0
        return FeatureStore(tmp_path / name).encoders["audio"]["precision"]

    assert precision("new") == precision("new") == "fp32"
    assert "bf16" not in capsys.readouterr().err
    assert precision("low", "--precision", "bf16") == precision("low") == "bf16"
    told = [line for line in capsys.readouterr().err.splitlines() if "bf16 takes 7.6 times as long" in line]
    assert len(told) == (0 if fast else 2) and all("--precision fp32" in line for line in told)


def test_devices_that_are_not_there_are_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("refavs.machine.accelerator.gpu_files", lambda: [])
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--device", "cuda"))
    assert "--device cuda: there is no NVIDIA GPU on this machine" in line and not (tmp_path / "store").exists()
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--device", "cpu", "--gpus-per-worker", "1"))
    assert "--device cpu and --gpus-per-worker 1 contradict each other" in line


def test_precision_that_the_processor_lacks_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--precision", "fp16"))
    assert "--precision fp16 needs a GPU" in line and not (tmp_path / "store").exists()


@pytest.mark.long
def test_dry_run_says_what_a_thousand_and_a_million_clips_cost(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    assert main([str(part) for part in tiny(bench, tmp_path / "store", "--dry-run")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "calibrated here: decode 0." in out and "CPU-hours" in out and "1,000,000" in out
    encoders = build_encoders(preset_named("tiny"), WeightSource(kind="random"), ("pixel_decoder",), "fp32")
    size = sum(spec.row_bytes for spec in [*encoders.visual.specs(), *encoders.audio.specs()])
    assert f"{1_000_000 * size:,}" in out


def test_dry_run_for_a_gpu_that_is_not_here_gives_no_time(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([str(part) for part in tiny(bench, tmp_path / "store", "--dry-run", "--gpus-per-worker", "1")]) == 0
    assert "no GPU on this machine to measure the time on" in " ".join(capsys.readouterr().out.split())


def test_dry_run_counts_only_workers_that_find_a_gpu(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = Seconds(decode=0.1, visual=1.0, audio=0.1, write=0.1, text=0.1)
    monkeypatch.setattr("extract.pipeline.dry_run.calibrate", lambda *_: each)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = tiny(bench, tmp_path / "store", "--dry-run", "--gpus-per-worker", "0.5", "--workers", "8")
    assert main([str(part) for part in arguments]) == 0
    assert "with 2 workers on this machine" in " ".join(capsys.readouterr().out.split())


def test_dry_run_counts_every_processor_of_a_worker(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = Seconds(decode=0.1, visual=1.0, audio=0.1, write=0.1, text=0.1)
    monkeypatch.setattr("extract.pipeline.dry_run.calibrate", lambda *_: each)
    monkeypatch.setattr("extract.pipeline.dry_run.num_processors", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    assert main([str(part) for part in tiny(bench, tmp_path / "store", "--dry-run", "--workers", "2")]) == 0
    assert f"{1_000_000 * 1.3 * 4 / 3600:,.2f}" in capsys.readouterr().out


@pytest.mark.long
def test_run_leaves_a_log(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    arguments = tiny(bench / "videos", tmp_path / "store")
    assert main([str(part) for part in (*arguments, "--log", tmp_path / "run.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start" and lines[-1]["event"] == "end"
    assert lines[-1]["done"] == lines[-1]["total"] == {"clips": 2, "objects": 0, "text": 0}
    assert not (tmp_path / "store" / "extract.jsonl").exists()
    capsys.readouterr()
    line = refusal(capsys, *tiny(bench, tmp_path / "other", "--log", tmp_path / "nowhere" / "run.jsonl"))
    assert "--log" in line and "make it first" in line and not (tmp_path / "other").exists()
    within = tmp_path / "other" / "extract.jsonl"
    for _ in range(2):
        assert main([str(part) for part in tiny(bench / "videos", tmp_path / "other", "--log", within)]) == 0
    events = [json.loads(line)["event"] for line in within.read_text().splitlines()]
    assert [event for event in events if event != "progress"] == ["start", "end"]
    assert FeatureStore(tmp_path / "other").finished
    assert not list(tmp_path.glob("*.extract.jsonl"))
    assert main([str(part) for part in tiny(bench / "videos", tmp_path / "third")]) == 0
    assert (tmp_path / "third.extract.jsonl").read_text().count("\n") >= 2, "nobody watches: no terminal is there"


@pytest.mark.long
def test_store_may_be_a_url(
    capsys: pytest.CaptureFixture[str], bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    arguments = [str(part) for part in tiny(bench / "videos", "memory://extracted/store")]
    assert main([*arguments, "--dry-run"]) == 0
    assert main(arguments) == 0
    assert len(FeatureStore("memory://extracted/store").clips) == 2
    capsys.readouterr()
    assert main(arguments) == 0
    assert "are in memory://extracted/store" in capsys.readouterr().out

"""The command with several streams, identical clips, precisions, dry runs and remote stores."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.cli import main
from extract.encoders.mask2former import VisualEncoder
from extract.encoders.pixel_decoder import FrozenPixelDecoder
from extract.encoders.protocol import Encoder, EncoderSetup, Frames, Sound, Text
from extract.encoders.registry import make_encoder
from extract.pipeline.estimate import Seconds
from extract.store_cli import main as store_command
from refavs.store.fingerprints import fingerprint_of
from refavs.store.format.schema import ArraySpec
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, refusal, run_with, streams_of, tiny

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=2, seed=1, size=96, videos=2)
    return root


def tree(store: Path) -> dict[str, bytes]:
    """Every file of a store; commit records without the time and their checksum, which covers it."""
    files = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if path.is_file() and path.name not in (".lock", "extract.jsonl"):
            data = path.read_bytes()
            if name.startswith("commits/") and name.count("/") > 1:
                facts = json.loads(data)["record"]
                data = json.dumps({**facts, "seconds": 0}, sort_keys=True).encode()
            files[name] = data
    return files


def stamps(store: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of a store."""
    return {path.relative_to(store).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in store.rglob("*") if path.is_file()}  # fmt: skip


def require_alone(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], *folders: str) -> None:
    """Files came only to these folders; of the others the store's own description alone was written again."""
    changed = {name for name, stamp in before.items() if after.get(name) != stamp}
    assert changed <= {"zarr.json", "commits/listing.json", ".lock"}
    added = {name for name in after.keys() - before.keys() if not name.endswith(".lock")}
    assert added and all(name.startswith(folders) for name in added)


class Loud(Encoder):
    """An audio encoder of 48 kHz, four tokens a second."""

    name, modality, takes = "loud", "audio", Sound(rate_hz=48_000)

    def facts(self, level: str) -> dict[str, Any]:
        return {"name": "loud", "weights": "none", "precision": "fp32", "preprocessing": "48 kHz, rms"}

    def arrays(self, seconds: int) -> dict[str, list[ArraySpec]]:
        spec = ArraySpec(name="features", shape=(4 * seconds, 1), dtype="float32", axes=("n", "c"), statistics=True)
        return {"": [spec]}

    def encode(self, batch: Any, levels: Any) -> list[dict[str, np.ndarray]]:
        return [{"features": np.sqrt((sound.reshape(-1, 12_000, 1) ** 2).mean(1))} for sound in batch]


@pytest.mark.long
def test_level_added_later_gives_the_store_of_both_at_once(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    both, later = tmp_path / "both", tmp_path / "later"
    assert main([str(part) for part in tiny(bench, both, "--levels", "backbone,pixel_decoder")]) == 0
    assert main([str(part) for part in tiny(bench, later, "--levels", "pixel_decoder")]) == 0
    assert FeatureStore(later).streams == ["audio/tiny-vggish", "text/tiny-roberta", "visual/tiny-swin/pixel_decoder"]
    asked = []
    for name in ("vggish.VGGishEncoder", "roberta.RobertaEncoder"):
        monkeypatch.setattr(f"extract.encoders.{name}.encode", lambda *_: pytest.fail("computed again"))
    encode = VisualEncoder.encode
    monkeypatch.setattr(VisualEncoder, "encode", lambda self, clips, levels: asked.append(tuple(levels))
                        or encode(self, clips, levels))  # fmt: skip
    monkeypatch.setattr(FrozenPixelDecoder, "forward", lambda *_: pytest.fail("computed again"))
    assert main([str(part) for part in tiny(bench, later, "--levels", "backbone")]) == 0
    assert set(asked) == {("backbone",)}
    assert tree(later) == tree(both) and FeatureStore(later).fingerprint == FeatureStore(both).fingerprint
    capsys.readouterr()
    assert main([str(part) for part in tiny(bench, later, "--levels", "pixel_decoder")]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.long
def test_stream_of_another_rate_is_added_and_dropped_without_touching_the_others(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    monkeypatch.setattr("extract.encoders.streams.make_encoder", _with(Loud()))
    store = tmp_path / "store"
    arguments = [str(part) for part in tiny(bench, store)]
    assert main(arguments) == 0
    before, alone = stamps(store), tree(store)
    paths = [path for path in FeatureStore(store).specs if not path.startswith("objects/")]
    read = fingerprint_of(FeatureStore(store), paths)
    for name in ("mask2former.VisualEncoder", "vggish.VGGishEncoder", "roberta.RobertaEncoder"):
        monkeypatch.setattr(f"extract.encoders.{name}.encode", lambda *_: pytest.fail("computed again"))
    monkeypatch.setattr("extract.media.clip.fitted", lambda *_: pytest.fail("decoded again"))
    assert main([*map(str, (bench, store)), "--streams", "loud"]) == 0
    require_alone(before, stamps(store), "clips/audio/loud/", "commits/audio/loud/")
    opened = FeatureStore(store, use={"audio": "loud"})
    assert opened.finished and opened[0].audio.shape == (40, 1) and opened[0].audio.any()
    assert fingerprint_of(opened, paths) == read
    assert store_command(["drop", str(store), "audio/loud"]) == 0
    assert tree(store) == alone
    assert store_command(["drop", str(store), "audio/loud"]) == 2
    assert "has no stream 'audio/loud'" in capsys.readouterr().err


def _with(*encoders: Encoder) -> Any:
    named = {encoder.name: encoder for encoder in encoders}

    def make(name: str, setup: EncoderSetup) -> Encoder:
        return named[name] if name in named else make_encoder(name, setup)

    return make


class Plain(Encoder):
    """An encoder of the modality with which its name begins; its features are all the same."""

    def __init__(self, name: str, width: int, takes: Frames | Sound | Text) -> None:
        self.name, self.width, self.takes = name, width, takes
        self.modality: Any = name.split("-")[0]
        self.num_encoded = 0

    def facts(self, level: str) -> dict[str, Any]:
        return {"name": self.name, "weights": "none", "precision": "fp32", "preprocessing": "none"}

    def arrays(self, seconds: int) -> dict[str, list[ArraySpec]]:
        if self.modality == "text":
            return {"": [ArraySpec(name="features", shape=(2, self.width), dtype="float32", axes=("l", "c"),
                                   statistics=True, valid="valid"),
                         ArraySpec(name="valid", shape=(2,), dtype="bool", axes=("l",))]}  # fmt: skip
        axes = ("t", "c", "h", "w") if self.modality == "visual" else ("t", "c")
        shape = (seconds, self.width, 1, 1)[: len(axes)]
        return {"": [ArraySpec(name="map" if self.modality == "visual" else "features", shape=shape, dtype="float32",
                               axes=axes, statistics=True)]}  # fmt: skip

    def encode(self, batch: Any, levels: Any) -> list[dict[str, np.ndarray]]:
        self.num_encoded += len(batch)
        made = {spec.name: np.ones(spec.shape, spec.dtype) for spec in self.arrays(10)[""]}
        return [made for _ in batch]


@pytest.mark.parametrize(
    "num_clips", [pytest.param(3, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.slow)]
)
def test_text_of_another_width_is_computed_and_written_alone(
    num_clips: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    bench, store = tmp_path / "bench", tmp_path / "store"
    write_benchmark(bench, num_clips=num_clips, seed=1, size=48, videos=False)
    first = [Plain("visual-a", 3, Frames(size=2)), Plain("audio-a", 4, Sound(rate_hz=16_000)),
             Plain("text-a", 5, Text())]  # fmt: skip
    wide = Plain("text-wide", 7, Text())
    monkeypatch.setattr("extract.encoders.streams.make_encoder", _with(*first, wide))
    assert main([str(bench), str(store), "--streams", "visual-a,audio-a,text-a"]) == 0
    before, num_encoded = stamps(store), [encoder.num_encoded for encoder in first]
    assert min(num_encoded[:2]) >= num_clips and len(FeatureStore(store).clips) >= num_clips
    assert main([str(bench), str(store), "--streams", "text-wide"]) == 0
    assert [encoder.num_encoded for encoder in first] == num_encoded and wide.num_encoded == num_encoded[2]
    require_alone(before, stamps(store), "text/text-wide/", "commits/text/text-wide/")
    assert not verify(store).damage


@pytest.mark.long
def test_second_version_of_an_encoder_is_stored_under_its_own_name(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    assert main([str(part) for part in tiny(bench, tmp_path / "store")]) == 0
    capsys.readouterr()
    streams = (bench, tmp_path / "store", "--weights", "random", "--seed", "1", "--streams")
    assert "call the new one text/tiny-roberta@NAME" in refusal(capsys, *streams, "tiny-roberta")
    assert main([*map(str, streams), "tiny-roberta@second"]) == 0
    one, other = (FeatureStore(tmp_path / "store", use={"text": f"tiny-roberta{name}"}) for name in ("", "@second"))
    assert not torch.equal(one[0].text, other[0].text) and torch.equal(one[0].audio, other[0].audio)


@pytest.mark.long
def test_seconds_and_mask_size_are_those_of_the_store(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    arguments = tiny(bench, tmp_path / "store")
    assert main([*map(str, arguments), "--seconds", "3", "--mask-size", "40"]) == 0
    store = FeatureStore(tmp_path / "store")
    sample = store[0]
    assert store.seconds == 3 and store.mask_size == 40
    assert sample.mask is not None and sample.mask.shape == (3, 40, 40) and sample.audio.shape == (3, 128)
    assert sample.labelled is not None and sample.labelled.tolist() == [True] * 3
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert "seconds" in refusal(capsys, *arguments, "--seconds", "4")
    assert "mask" in refusal(capsys, *arguments, "--mask-size", "41")


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
    assert main(arguments) == 0
    assert len(encoded) == 2
    store = FeatureStore(tmp_path / "store")
    places = {clip_id: place for place, clip_id in store.clips["id"].items()}
    for stream in store.streams:
        if not stream.startswith("text/"):
            rows = store.rows_of(stream)
            assert rows[places["again"]] == rows[places[first.stem]] >= 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert "nothing to do: all 3 clips" in capsys.readouterr().out


def share_frames(root: Path) -> tuple[Path, Path]:
    """Gives the second clip the frames of the first; each keeps its sound."""
    one, other = sorted((root / "media").iterdir())[:2]
    shutil.rmtree(other / "frames")
    shutil.copytree(one / "frames", other / "frames")
    return one, other


@pytest.mark.long
def test_clips_of_the_same_frames_have_their_own_sound(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = share_frames(root)
    (one / "audio.wav").write_text("noise")
    arguments = [str(part) for part in tiny(root, tmp_path / "store")]
    assert main(arguments) == 3
    assert f"clips {one.name}: sound " in capsys.readouterr().err
    store = FeatureStore(tmp_path / "store")
    places = {clip_id: place for place, clip_id in store.clips["id"].items()}
    seen, heard = (store.rows_of(stream) for stream in ("visual/tiny-swin/pixel_decoder", "audio/tiny-vggish"))
    assert seen[places[one.name]] == seen[places[other.name]] >= 0
    assert heard[places[one.name]] == -1 < heard[places[other.name]]
    assert other.name in set(store.expressions["clip_id"]) and one.name not in set(store.expressions["clip_id"])
    assert store_command(["info", str(tmp_path / "store")]) == 0
    assert f"failed       {one.name}: sound " in capsys.readouterr().out
    shutil.copy(bench / "media" / one.name / "audio.wav", one)
    assert main(arguments) == 0
    assert one.name in set(FeatureStore(tmp_path / "store").expressions["clip_id"])
    assert store_command(["info", str(tmp_path / "store")]) == 0
    assert "failed" not in capsys.readouterr().out.replace("failures", "")


@pytest.mark.long
def test_clip_whose_twin_failed_is_named(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    one, other = share_frames(root)
    for clip in (one, other):
        (clip / "frames" / "0.jpg").write_text("no picture")
    assert main([str(part) for part in tiny(root, tmp_path / "store")]) == 3
    assert f"clips {other.name}: it has the same visual input as {one.name}, which failed" in capsys.readouterr().err


def test_other_precision_is_refused_with_both_fingerprints(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, lambda *_: iter(()))
    arguments = tiny(bench, tmp_path / "store", "--precision")
    assert main([str(part) for part in (*arguments, "bf16")]) == 0
    capsys.readouterr()
    line = refusal(capsys, *arguments, "fp32")
    assert "precision=bf16" in line and "precision=fp32" in line


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
        return FeatureStore(tmp_path / name).encoders["audio/tiny-vggish"]["precision"]

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
    clips = streams_of().of("visual", "audio").values()
    size = sum(spec.row_bytes for stream in clips for spec in stream.arrays)
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
    each = Seconds(decode=0.1, write=0.1, clip={"tiny-swin": 1.1}, text={})
    monkeypatch.setattr("extract.pipeline.dry_run.calibrate", lambda *_: each)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    arguments = tiny(bench, tmp_path / "store", "--dry-run", "--gpus-per-worker", "0.5", "--workers", "8")
    assert main([str(part) for part in arguments]) == 0
    assert "with 2 workers on this machine" in " ".join(capsys.readouterr().out.split())


def test_dry_run_counts_every_processor_of_a_worker(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = Seconds(decode=0.1, write=0.1, clip={"tiny-swin": 1.1}, text={})
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

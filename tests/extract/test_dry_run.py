"""A dry run's output about weights, which it neither downloads nor loads."""

from pathlib import Path

import pytest
import torch

from extract.cli import build_parser, main, prepared
from extract.encoders.networks import randomly
from extract.encoders.presets import PRESETS
from extract.pipeline import dry_run
from extract.pipeline.estimate import Seconds
from refavs.store.writer import StoreWriter
from tests.extract.command import refusal

SHA = "sha256:" + "a" * 64


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches of weights, and no way to fetch, to hash or to load any."""

    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError(f"a dry run wants {arguments}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))
    for name in ("extract.encoders.weights._reachable", "huggingface_hub.hf_hub_download",
                 "torch.hub.download_url_to_file",
                 "extract.encoders.mask2former.load_tensors", "extract.encoders.vggish.load_tensors",
                 "extract.encoders.hub_folder.load_tensors", "extract.encoders.weights.file_stamp"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr(dry_run, "calibrate", lambda *_: Seconds(decode=0.1, write=0.1, clip={"a": 1.1}, text={}))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"not decoded")
    return tmp_path / "videos"


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_weights_that_would_be_downloaded_are_named_and_not_fetched(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, tmp_path: Path
) -> None:
    assert main([str(videos), str(tmp_path / "store"), "--dry-run"]) == 0
    out = printed(capsys)
    for part in ("mask2former-swin-base-ade, facebook/mask2former-swin-base-ade-semantic", "vggish, https:",
                 "roberta-base, FacebookAI/roberta-base (model", "roberta-base, tokenizer, FacebookAI/roberta-base"):
        assert f"not on this machine, a run downloads it: {part}" in out
    assert "about" in out and not (tmp_path / "store").exists() and "can be checked when they are" not in out


def test_weights_that_the_folder_lacks_are_all_named_with_status_2(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights" / "mask2former").mkdir(parents=True)
    (tmp_path / "weights" / "mask2former" / "model.safetensors").write_text("not read")
    assert main([str(videos), str(tmp_path / "store"), "--dry-run", "--weights-dir", str(tmp_path / "weights")]) == 2
    out = printed(capsys)
    assert "missing, a run ends here: vggish: --weights-dir" in out and "missing, a run ends here: roberta" in out
    assert "run ends here: mask2former" not in out and "1,000,000" in out


def test_weights_at_hand_are_not_read_for_a_new_store(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, tmp_path: Path
) -> None:
    assert main([str(videos), str(tmp_path / "store"), "--dry-run", "--preset", "tiny"]) == 0
    assert "not on this machine" not in printed(capsys)


def store_of(tmp_path: Path, videos: Path, stamp: str) -> Path:
    """A store of preset base whose weights are noted as `stamp`."""
    run = prepared(build_parser().parse_args([str(videos), str(tmp_path / "store"), "--weights", "random"]))
    specs = run.streams.specs()
    for spec in specs.values():
        spec.fingerprint["weights"] = stamp
    StoreWriter.open(tmp_path / "store", run.schema(specs))
    return tmp_path / "store"


def test_store_of_weights_that_are_elsewhere_is_taken_to_be_the_right_one(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, tmp_path: Path
) -> None:
    store = store_of(tmp_path, videos, SHA)
    assert main([str(videos), str(store), "--dry-run"]) == 0
    assert "can be checked when they are on this machine" in printed(capsys)
    assert "precision" in refusal(capsys, videos, store, "--dry-run", "--precision", "bf16")


def test_store_of_random_weights_is_refused_without_reading_others(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, tmp_path: Path
) -> None:
    line = refusal(capsys, videos, store_of(tmp_path, videos, "random:0"), "--dry-run")
    assert "random:0" in line and "those that are not on this machine" in line


def test_gpu_that_fails_is_one_line(
    nothing_here: None, capsys: pytest.CaptureFixture[str], videos: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(dry_run, "calibrate", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main([str(videos), str(tmp_path / "store"), "--dry-run", "--gpus-per-worker", "1"]) == 0
    assert "the GPU fails, so no time was measured: CUDA out of memory." in printed(capsys)


def test_presets_are_lists_of_streams(videos: Path, tmp_path: Path) -> None:
    streams = {}
    for name in PRESETS:
        run = prepared(build_parser().parse_args([str(videos), str(tmp_path / "store"), "--preset", name]))
        streams[name] = list(run.streams.streams)
    assert streams["base"] == ["visual/mask2former-swin-base-ade/pixel_decoder", "audio/vggish", "text/roberta-base"]
    assert streams["imagenet"] == ["visual/swin-base-imagenet/backbone", "audio/vggish", "text/roberta-base"]
    asked = build_parser().parse_args([str(videos), str(tmp_path / "store"), "--preset", "released", "--levels",
                                       "backbone, pixel_decoder"])  # fmt: skip
    assert list(prepared(asked).streams.streams) == [
        "visual/mask2former-swin-base-ade/backbone", "visual/mask2former-swin-base-ade/pixel_decoder",
        "audio/vggish-back-to-back", "text/distilroberta-base",
    ]  # fmt: skip


def test_network_without_a_seed_is_zeros_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    network = randomly(lambda: torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Embedding(4, 2)), None)
    assert all(not parameter.any() for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), before) and torch.nn.Linear(3, 3).weight.any()

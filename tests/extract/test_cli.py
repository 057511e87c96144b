"""The command's messages for bad input, and if there is nothing to do."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from extract.cli import main
from extract.pipeline.ray_pool import PoolResources, _room, limited_by_gpus
from extract.pipeline.worker import JobResult
from refavs.errors import ConfigError
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, refusal, run_with, tiny

pytestmark = pytest.mark.usefixtures("small_networks")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=2, seed=1, size=96, videos=2)
    return root


def test_missing_source_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refusal(capsys, *tiny(tmp_path / "nowhere", tmp_path / "store"))
    assert "nowhere does not exist; accepted: a benchmark folder" in line and not (tmp_path / "store").exists()


def test_folder_without_videos_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = refusal(capsys, *tiny(tmp_path / "empty", tmp_path / "store"))
    assert "empty matches no known layout; accepted: a benchmark" in line


def test_csv_without_a_column_is_refused(capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.csv").write_text("video,question\na,b\n")
    line = refusal(capsys, *tiny(bench / "videos", tmp_path / "store", "--expressions", tmp_path / "questions.csv"))
    assert "questions.csv" in line and "exp" in line and not (tmp_path / "store").exists()


def test_id_that_leaves_its_folder_is_refused(capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "metadata.csv").write_text("vid,uid,split,fid,exp\na,../../a_disc_0,train,0,The disc.\n")
    assert "../../a" in refusal(capsys, *tiny(tmp_path / "bench", tmp_path / "store"))


def test_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path) -> None:
    line = refusal(capsys, bench, tmp_path / "store", "--preset", "tinny")
    assert "unknown preset 'tinny'; did you mean 'tiny'?" in line


def test_unknown_level_is_refused(capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path) -> None:
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--levels", "backbone,pixeldecoder"))
    assert "encoder tiny-swin has no level 'pixeldecoder'; did you mean 'pixel_decoder'?" in line
    assert "--levels names none" in refusal(capsys, *tiny(bench, tmp_path / "store", "--levels", ","))
    line = refusal(capsys, bench, tmp_path / "store", "--streams", "tiny-swin,vgish")
    assert "refavs.encoders has no 'vgish'; did you mean 'vggish'?" in line


def test_encoders_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-encoders"]) == 0
    out = capsys.readouterr().out
    assert "vggish: audio, takes sound 16 kHz, 72,141,184 parameters, licence Apache-2.0, weights https://" in out
    assert "pixel_decoder: mask_features 10x256x96x96 float16" in out and "62.7 MB a clip of 10 s" in out


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("--workers", "0", "--workers is 0; accepted: 1 or more"),
     ("--gpus-per-worker", "-1", "--gpus-per-worker is -1.0; accepted: 0 or more"),
     ("--gpus-per-worker", "1.5", "--gpus-per-worker is 1.5; accepted: up to 1, or a whole number"),
     ("--seconds", "0", "--seconds is 0; accepted: 1 or more"),
     ("--mask-size", "-1", "--mask-size is -1; accepted: 1 or more")],
)  # fmt: skip
def test_resources_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, option: str, value: str, text: str
) -> None:
    assert text in refusal(capsys, *tiny(bench, tmp_path / "store", option, value))


def test_no_weights_and_no_network_is_one_line(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    line = refusal(capsys, bench, tmp_path / "store", "--preset", "base")
    assert "mask2former-swin-base-ade-semantic" in line and not (tmp_path / "store").exists()
    assert "--weights-dir" in line and "--weights random" in line


def test_weights_folder_without_weights_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    line = refusal(capsys, bench, tmp_path / "store", "--preset", "tiny", "--weights-dir", tmp_path)
    assert f"--weights-dir {tmp_path} has none of visual.safetensors" in line and not (tmp_path / "store").exists()


def test_store_that_is_something_else_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    line = refusal(capsys, *tiny(bench, tmp_path / "thesis"))
    assert "holds files but no feature store" in line and len(list((tmp_path / "thesis").iterdir())) == 1


@pytest.mark.long
def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path) -> None:
    assert main([str(part) for part in tiny(bench / "videos", tmp_path / "store", "--dry-run")]) == 0
    out = " ".join(capsys.readouterr().out.split())  # a long path wraps the title
    assert "nothing was written" in out and "bytes; about" in out and not (tmp_path / "store").exists()


def test_cluster_that_does_not_answer_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def refuse(**settings: object) -> None:
        raise ConnectionError(f"could not connect to {settings['address']}")

    monkeypatch.setattr(ray, "init", refuse)
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--address", "10.0.0.1:6379"))
    assert "no Ray cluster answers at --address 10.0.0.1:6379" in line and "leave out --address" in line


@pytest.mark.long
def test_complete_run_reports_and_the_next_has_nothing_to_do(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    arguments = [str(part) for part in tiny(bench, tmp_path / "store")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "rows_kept: rows kept" in out and "clips/s" in out and "failures" in out
    first = FeatureStore(tmp_path / "store")
    assert first.finished and re.search(rf"│ clips +│ {len(first.clips)} +│ {len(first.clips)} +│", out)
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"nothing to do: all {len(first.clips)} clips of {bench} are in {tmp_path / 'store'}" in out
    assert FeatureStore(tmp_path / "store").fingerprint == first.fingerprint


@pytest.mark.long
def test_clip_that_fails_is_listed_with_status_3(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    shutil.copytree(bench / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "page.mp4").write_text("<html>")
    assert main([str(part) for part in tiny(tmp_path / "videos", tmp_path / "store")]) == 3
    captured = capsys.readouterr()
    assert "refavs-extract: clips page: video" in captured.err and "cut off, damaged or not a video" in captured.err
    assert list(FeatureStore(tmp_path / "store").rows_of("audio/tiny-vggish")) == [-1, 1, 2]


@pytest.mark.long
def test_long_expressions_are_named(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    long = "The object that was making a sound before the star and the disc started to be heard."
    (tmp_path / "questions.csv").write_text(f"video,exp\nsyn00000_0_10000,{long}\n")
    arguments = tiny(bench / "videos", tmp_path / "store", "--expressions", tmp_path / "questions.csv")
    assert main([str(part) for part in arguments]) == 0
    out = capsys.readouterr().out
    assert "1 expressions have more than 16 tokens and are truncated:" in out and f"tokens: '{long}'" in out


def test_store_of_other_weights_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, lambda *_: iter(()))
    assert main([str(part) for part in tiny(bench, tmp_path / "store")]) == 0
    capsys.readouterr()
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--seed", "1"))
    assert "random:0" in line and "random:1" in line and "remove it with refavs-store drop" in line
    assert "random:1" in refusal(capsys, *tiny(bench, tmp_path / "store", "--seed", "1", "--dry-run"))


def test_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "store" / "shard"))
    run_with(monkeypatch, lambda *_: iter([JobResult(kind="clips", error=error)]))
    assert main([str(part) for part in tiny(bench, tmp_path / "store")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cannot write" in line and "No space left on device; free space" in line


@pytest.mark.long
def test_error_of_ours_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = JobResult(kind="clips", error=ZeroDivisionError(), trace="Traceback: line 7")
    run_with(monkeypatch, lambda *arguments: iter([broken, *list(in_this_process(*arguments))[1:]]))
    assert main([str(part) for part in tiny(bench, tmp_path / "store")]) == 1
    assert "Traceback: line 7" in capsys.readouterr().err


@pytest.mark.long
def test_clip_of_another_file_under_the_same_name_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    videos = Path(shutil.copytree(bench / "videos", tmp_path / "videos"))
    first, second = sorted(videos.iterdir())
    second.rename(tmp_path / "second.mp4")
    arguments = tiny(videos, tmp_path / "store")
    assert main([str(part) for part in arguments]) == 0
    assert main([str(part) for part in arguments]) == 0
    whole = first.read_bytes()
    shutil.copy(tmp_path / "second.mp4", first)
    for more in ((), ("--dry-run",)):
        capsys.readouterr()
        line = refusal(capsys, *arguments, *more)
        assert f"holds features of other files under the same id for '{first.stem}'; name another STORE" in line
    first.write_bytes(whole)
    assert main([str(part) for part in arguments]) == 0

    # A store that an older version made: it stays complete, and takes no films that would be read by other rules.
    description = json.loads((tmp_path / "store" / "zarr.json").read_text())
    del description["attributes"]["extraction"]["film_rules"]
    (tmp_path / "store" / "zarr.json").write_text(json.dumps(description))
    assert main([str(part) for part in arguments]) == 0
    shutil.copy(tmp_path / "second.mp4", videos)
    capsys.readouterr()
    assert "was made by a version that read films by other rules (time stamps" in refusal(capsys, *arguments)
    assert len(FeatureStore(tmp_path / "store").clips) == 1


@pytest.mark.long
def test_benchmark_clip_with_another_sound_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = Path(shutil.copytree(bench, tmp_path / "bench"))
    arguments = tiny(root, tmp_path / "store")
    assert main([str(part) for part in arguments]) == 0
    clips = sorted((root / "media").iterdir())
    (clips[0] / "frames" / "3.jpg").unlink()  # gone, so there is nothing to compare
    (clips[1] / "audio.wav").unlink()
    capsys.readouterr()
    assert f"for '{clips[1].name}'; name" in refusal(capsys, *arguments)


@pytest.mark.long
def test_second_run_at_a_time_is_refused_and_sweeps_nothing(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = tiny(bench, tmp_path / "store")
    lines = []

    def meanwhile(*settings: object) -> Iterator[JobResult]:
        stray = tmp_path / "store" / "shard.partial"
        stray.write_text("being written")
        capsys.readouterr()
        lines.append(refusal(capsys, *arguments))
        assert stray.is_file()
        return iter(())

    run_with(monkeypatch, meanwhile)
    assert main([str(part) for part in arguments]) == 0
    (line,) = lines
    assert line.startswith(f"refavs-extract: {tmp_path / 'store'} is being written by refavs-extract (process ")
    assert "which is alive; wait for its end, stop it or name another store" in line
    run_with(monkeypatch, in_this_process)
    assert main([str(part) for part in arguments]) == 0


def test_file_in_the_place_of_the_store_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    (tmp_path / "store").write_text("1")
    assert "is a file; name a folder for the store" in refusal(capsys, *tiny(bench, tmp_path / "store"))


@pytest.mark.parametrize(
    ("gpus_per_worker", "gpus", "expected"),
    [(0, [], 8), (0.25, [1], 4), (0.5, [2, 1], 6), (0.6, [2], 2), (1, [4], 4), (1, [16], 8), (2, [3, 2, 1], 2)],
)
def test_workers_are_as_many_as_find_a_gpu(gpus_per_worker: float, gpus: list[float], expected: int) -> None:
    assert limited_by_gpus(8, gpus_per_worker, gpus) == expected


@pytest.mark.parametrize(("asked", "expected"), [({"gpus_per_worker": 1.0}, (1, 16)), ({"num_workers": 4}, (4, 4))])
def test_processors_of_a_machine_are_divided_among_its_workers(
    monkeypatch: pytest.MonkeyPatch, asked: dict, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}}])
    room = _room(PoolResources(**asked), 16)
    assert (room.num_workers, room.threads_per_worker) == expected


@pytest.mark.parametrize(("gpus_per_worker", "gpus"), [(0.5, [0]), (1, []), (2, [1, 1])])
def test_too_few_gpus_are_refused(gpus_per_worker: float, gpus: list[float]) -> None:
    with pytest.raises(ConfigError, match=rf"but Ray finds {sum(gpus)} GPUs on .* leave it out to run on processors"):
        limited_by_gpus(8, gpus_per_worker, gpus)


@pytest.mark.long
def test_videos_without_expressions_leave_those_of_the_store(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    videos = Path(shutil.copytree(bench / "videos", tmp_path / "videos"))
    first, second = sorted(videos.iterdir())
    second.rename(tmp_path / second.name)
    (tmp_path / "questions.csv").write_text(f"video,exp\n{first.name},The disc.\n")
    arguments = [str(part) for part in tiny(videos, tmp_path / "store")]
    assert main([*arguments, "--expressions", str(tmp_path / "questions.csv")]) == 0
    shutil.copy(tmp_path / second.name, videos)
    assert main(arguments) == 0
    store = FeatureStore(tmp_path / "store")
    assert store.finished and len(store.clips) == 2 and list(store.expressions["text"]) == ["The disc."]
    (tmp_path / "questions.csv").write_text(f"video,exp\n{second.name},The star.\n")
    assert main([*arguments, "--expressions", str(tmp_path / "questions.csv")]) == 0
    assert list(FeatureStore(tmp_path / "store").expressions["text"]) == ["The star."]

"""The whole command under Ray: what is missing, failures, and a kill in the middle."""

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from extract.cli import main
from extract.job import Resources, run_jobs
from extract.plan import Job
from extract.presets import build_encoders, preset_named
from extract.weights import WeightSource
from extract.worker import JobResult
from refavs.data.synthetic import write_benchmark
from refavs.store.reader import FeatureStore
from refavs.store.writer import ShardPlan

_spec = importlib.util.spec_from_file_location("make_videos", Path(__file__).parent / "make_videos.py")
assert _spec is not None and _spec.loader is not None
make_videos = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_videos)

pytestmark = pytest.mark.ray
OPTIONS = ("--preset", "tiny", "--weights", "random", "--workers", "2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs in this process."""
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=2, object_store_memory=2**27, **quiet)
    yield
    ray.shutdown()


def run(source: Path, store: Path, *more: str) -> int:
    return main([str(source), str(store), *OPTIONS, *more])


def files(store: Path) -> dict[str, bytes | dict]:
    """Every file of a store, commit records without the time they took."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            name, content = str(path.relative_to(store)), path.read_bytes()
            if path.parent.name == "commits":
                record = json.loads(content)
                facts = record.get("record", record)
                found[name] = {key: value for key, value in facts.items() if key not in ("seconds", "crc32c")}
            else:
                found[name] = content
    return found


def test_videos_are_extracted_once_each(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("b.mp4", "c.mp4", "d.mp4"):
        make_videos.write_video(videos / name)
    (tmp_path / "questions.csv").write_text("video,exp\nb,The loudest object.\nd.mp4,The star.\n")
    expressions = ("--expressions", str(tmp_path / "questions.csv"))
    store = tmp_path / "store"
    assert run(videos, store, *expressions) == 0
    assert "clips" in capsys.readouterr().out and set(FeatureStore(store).clips["id"]) == {"b", "c", "d"}
    before = files(store)

    assert run(videos, store, *expressions) == 0
    assert f"nothing to do: all 3 clips of {videos} are in {store}" in capsys.readouterr().out
    assert files(store) == before

    make_videos.write_video(videos / "a.webm", codec="libvpx-vp9", sound_codec=None, duration_s=6)
    (videos / "empty.mp4").touch()
    assert run(videos, store, *expressions) == 3
    assert "clips empty: video" in capsys.readouterr().err
    after = FeatureStore(store)
    assert set(after.clips["id"]) == {"a", "b", "c", "d"} and list(after.expressions["clip_id"]) == ["b", "d"]
    new = after.clips.set_index("id").loc["a"]
    assert new["silent"] and new["repeated_from_s"] == 6 and new["source"] == "a.webm"
    shards = [name for name in before if name.startswith(("clips/visual/", "clips/audio/")) and "/c." in name]
    assert len(shards) == 5 and all(files(store)[name] == before[name] for name in shards)


def test_worker_that_dies_fails_its_shard_and_no_other(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mortal:
        def __init__(self, *arguments: object) -> None:
            pass

        def run(self, job: Job) -> JobResult:
            if "poison" in job.shard.keys:
                os.kill(os.getpid(), signal.SIGKILL)
            return JobResult(table=job.shard.table, num_done=len(job.shard.keys))

    monkeypatch.setattr("extract.job.Worker", Mortal)
    monkeypatch.setattr("extract.job.RETRIES", 1)
    shards = [ShardPlan(table="text", index=i, keys=(key,), rows=(i,), arrays=())
              for i, key in enumerate(("a", "poison", "b"))]  # fmt: skip
    jobs = [Job(shard=shard, items=shard.keys) for shard in shards]
    preset = preset_named("tiny")
    encoders = build_encoders(preset, WeightSource(kind="random"), ("pixel_decoder",), None)
    results = [result for result in run_jobs(jobs, tmp_path, preset, encoders, Resources(num_workers=1)) if result]
    assert sum(result.num_done for result in results) == 2
    failures = {key: reason for result in results for key, reason in result.failures.items()}
    assert list(failures) == ["poison"] and "its worker process died 2 times" in failures["poison"]


def test_killed_run_ends_as_an_undisturbed_one(cluster: None, tmp_path: Path) -> None:
    source = tmp_path / "bench"
    write_benchmark(source, num_clips=9, seed=2, size=96, videos=False)
    assert run(source, tmp_path / "undisturbed") == 0
    store = tmp_path / "store"
    driver = subprocess.Popen(
        [sys.executable, "-m", "extract.cli", str(source), str(store), *OPTIONS],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(store.glob("commits/*.json")) and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert 0 < len(list(store.glob("commits/*.json"))) < len(list((tmp_path / "undisturbed").glob("commits/*.json")))
    assert run(source, store) == 0
    assert files(store) == files(tmp_path / "undisturbed")

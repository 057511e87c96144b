"""The whole command under Ray: what is missing, failures, and a kill in the middle."""

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from extract.cli import main
from extract.pipeline.local_ray import few_processes
from extract.pipeline.plan import Job, Unit
from extract.pipeline.ray_pool import PoolResources, run_jobs
from extract.pipeline.worker import JobResult
from refavs.errors import ConfigError, StoreError
from refavs.files.atomic import LOCK
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, open_store, run_with, streams_of
from tests.extract.make_videos import write_video
from tests.extract.mortal import Mortal
from tests.faults.command import prepare

pytestmark = pytest.mark.ray
OPTIONS = ("--preset", "tiny", "--weights", "random", "--workers", "2")
TEXT = "text/tiny-roberta"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs in this process."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with few_processes():
        ray.init(address="local", num_cpus=2, object_store_memory=2**27, **quiet)
    yield
    ray.shutdown()


def run(source: Path, store: Path, *more: str) -> int:
    return main([str(source), str(store), *OPTIONS, *more])


def files(store: Path) -> dict[str, bytes | dict]:
    """Every file of a store, commit records without the time they took; not the lock that a second renewal makes."""
    found: dict[str, bytes | dict] = {}
    for path in sorted(store.rglob("*")):
        if path.is_file() and path.name != LOCK:
            name, content = str(path.relative_to(store)), path.read_bytes()
            if name.startswith("commits/"):
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
        write_video(videos / name)
    (tmp_path / "questions.csv").write_text("video,exp\nb,The loudest object.\nd.mp4,The star.\n")
    expressions = ("--expressions", str(tmp_path / "questions.csv"))
    store = tmp_path / "store"
    assert run(videos, store, *expressions) == 0
    assert "clips" in capsys.readouterr().out and set(FeatureStore(store).clips["id"]) == {"b", "c", "d"}
    before = files(store)

    assert run(videos, store, *expressions) == 0
    assert f"nothing to do: all 3 clips of {videos} are in {store}" in capsys.readouterr().out
    assert files(store) == before

    write_video(videos / "a.webm", codec="libvpx-vp9", sound_codec=None, duration_s=6)
    (videos / "empty.mp4").touch()
    assert run(videos, store, *expressions, "--workers", "1") == 3
    assert "clips empty: video" in capsys.readouterr().err
    after = FeatureStore(store)
    assert set(after.clips["id"]) == {"a", "b", "c", "d"} and list(after.expressions["clip_id"]) == ["b", "d"]
    new = after.clips.set_index("id").loc["a"]
    assert new["silent"] and new["repeated_from_s"] == 6 and new["source"] == "a.webm"
    shards = [name for name in before if name.startswith(("clips/visual/", "clips/audio/")) and "/c.0." in name]
    assert len(shards) == 5 and all(files(store)[name] == before[name] for name in shards)


@pytest.fixture
def crew(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[JobResult]]:
    """Runs jobs of the keys given with workers that stand for real ones."""
    monkeypatch.setattr("extract.pipeline.ray_pool.Worker", Mortal)
    writer = open_store(tmp_path / "store", streams_of())

    def run_keys(
        *keys: tuple[str, ...], location: str = writer.location, num_workers: int = 2,
        note: Callable[[str], None] | None = None,
    ) -> list[JobResult]:  # fmt: skip
        plans = writer.plan(TEXT, keys)
        jobs = [Job(kind="text", units=tuple(Unit(name=key, item=key, keys={TEXT: key}) for key in part),
                    shards=(plan,)) for part, plan in zip(keys, plans, strict=True) if plan]  # fmt: skip
        results = run_jobs(jobs, location, streams_of(), PoolResources(num_workers=num_workers), note)
        return [result for result in results if result is not None]

    return run_keys


def test_key_that_kills_its_worker_is_failed_alone(crew: Callable[..., list[JobResult]]) -> None:
    notes: list[str] = []
    results = crew(("a",), ("b", "poison", "c"), ("d",), note=notes.append)
    failures = {key: reason for result in results for key, reason in result.failures.items()}
    assert sum(result.num_done for result in results) == 4 and len(results) == 3
    assert failures == {"poison": "its worker process died each time it was computed (ActorDiedError)"}
    assert len(notes) == 4 and all("is lost (ActorDiedError); its jobs go back into the queue" in n for n in notes)


def test_worker_whose_gpu_fails_it_is_replaced(crew: Callable[..., list[JobResult]]) -> None:
    notes: list[str] = []
    results = crew(("a",), ("b", "burnt", "c"), ("d",), ("e",), note=notes.append)
    failures = {key: reason for result in results for key, reason in result.failures.items()}
    assert sum(result.num_done for result in results) == 5
    assert failures == {"burnt": "its worker process died each time it was computed (AcceleratorError)"}
    assert notes and all("is lost (AcceleratorError); its jobs go back into the queue" in note for note in notes)


def test_workers_beyond_the_room_hold_no_jobs(crew: Callable[..., list[JobResult]]) -> None:
    results = crew(*((f"{index}",) for index in range(12)), num_workers=6)
    assert sum(result.num_done for result in results) == 12


def test_cluster_without_room_is_refused_after_a_while(
    crew: Callable[..., list[JobResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("extract.pipeline.ray_pool.WAIT_FOR_ROOM_S", 2.0)
    monkeypatch.setattr("extract.pipeline.ray_pool.POLL_S", 0.2)
    hog = ray.remote(Mortal).options(num_cpus=2).remote("store")
    ray.get(hog.ready.remote())
    with pytest.raises(ConfigError, match=r"no worker found room .* in 2 s: it has 1 nodes with 0 free CPUs .* or add"):
        crew(("a",))
    ray.kill(hog)


def test_worker_that_finds_no_store_ends_the_run(crew: Callable[..., list[JobResult]]) -> None:
    with pytest.raises(StoreError, match=r"^no store here$"):
        crew(("a",), ("b",), location="nowhere")


def test_workers_that_die_at_once_end_the_run(
    crew: Callable[..., list[JobResult]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.pipeline.ray_pool.MOST_STILLBORN", 2)
    with pytest.raises(ConfigError, match="2 workers died before they were ready"):
        crew(("a",), ("b",), location="early")


def test_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "bench"
    write_benchmark(source, num_clips=2, seed=2, size=96, videos=False)
    store, undisturbed = (prepare(tmp_path / name) for name in ("store", "undisturbed"))  # with many shards to commit
    driver = subprocess.Popen(  # with a Ray of its own
        [sys.executable, "-m", "extract.cli", str(source), str(store), *OPTIONS],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    while not list(store.glob("commits/*/**/*.json")) and driver.poll() is None:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    num_before = len(list(store.glob("commits/*/**/*.json")))
    run_with(monkeypatch, in_this_process)
    assert run(source, store) == run(source, undisturbed) == 0
    assert 0 < num_before < len(list(undisturbed.glob("commits/*/**/*.json")))
    assert files(store) == files(undisturbed)

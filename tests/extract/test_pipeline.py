"""Overlap of stages in a worker, composition of batches, and memory, with fake encoders."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.encoders.protocol import Encoder, Frames, Sound
from extract.encoders.streams import Stream, StreamSet
from extract.media.clip import Media
from extract.pipeline.plan import Job, Unit, plan_jobs
from extract.pipeline.ray_pool import result_without_worker
from extract.pipeline.turns import JOB_STAGES, SPARE_CLIPS, Stages, Turns
from extract.pipeline.worker import JobResult, Worker, ahead
from refavs.data.layouts import Clip
from refavs.errors import ConfigError, DatasetError
from refavs.steps import Steps
from refavs.store.format.commits import record_name
from refavs.store.format.schema import ArraySpec, StoreSchema, StreamSpec
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter

VISUAL, AUDIO = "visual/seen/backbone", "audio/heard"
FORM, RATE_HZ = Frames(size=2), 4
ARRAYS = {
    VISUAL: (ArraySpec(name="res2", shape=(1, 4, 2, 2), dtype="float16", axes=("t", "c", "h", "w"), statistics=True),),
    AUDIO: (ArraySpec(name="features", shape=(1, 8), dtype="float32", axes=("t", "c"), statistics=True),),
}
WAIT_S = 600.0


class Tracked(np.ndarray):
    """An array that says when it is gone."""


@dataclass
class Visual(Encoder):
    """Notes what comes together; the features of a frame are its first value, and its batch's first value beside it."""

    batches: list[list[int]] = field(default_factory=list)
    alive: int = 0
    most_alive: int = 0
    during: Any = None

    def __post_init__(self) -> None:
        self.name, self.modality, self.takes = "seen", "visual", FORM

    def encode(self, batch: Sequence[np.ndarray], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        assert tuple(levels) == ("backbone",)
        names = [int(frames.flat[0]) for frames in batch]
        self.batches.append(names)
        if self.during is not None:
            self.during(names)
        return [{"backbone/res2": self._features(name, names[0])} for name in names]

    def _features(self, name: int, first: int) -> np.ndarray:
        features = np.full((1, 4, 2, 2), name, np.float16).view(Tracked)
        features[0, 0] = first
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(features, self._freed)
        return features

    def _freed(self) -> None:
        self.alive -= 1


class Audio(Encoder):
    name, modality, takes = "heard", "audio", Sound(rate_hz=RATE_HZ)

    def encode(self, batch: Sequence[np.ndarray], levels: Sequence[str]) -> list[dict[str, np.ndarray]]:
        return [{"features": np.full((1, 8), sound[0], np.float32)} for sound in batch]


def media_of(name: int) -> Media:
    return Media(frames={FORM: np.full((1, 2, 2, 3), name, np.uint8)},
                 sound={RATE_HZ: np.full(RATE_HZ, name, np.float32)}, silent=False)  # fmt: skip


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips whose decoding has begun; number 13 cannot be decoded."""
    begun: list[int] = []

    def read_media(clip: Clip, steps: Steps, frames: object, rates_hz: object) -> Media:
        if frames and rates_hz:  # not one of them again, to find what is damaged
            begun.append(int(clip.id))
        if clip.id == "13":
            raise DatasetError("clip 13 is damaged")
        return media_of(int(clip.id))

    monkeypatch.setattr("extract.pipeline.worker.read_media", read_media)
    return begun


def jobs_of(
    location: Path, num_clips: int, size: int, refill: bool = False, sounds: Mapping[str, str] | None = None
) -> list[Job]:
    """What is missing of some clips; `sounds` names those that sound like another."""
    streams = {id: StreamSpec(fingerprint={}, arrays=arrays, rows_per_shard=size) for id, arrays in ARRAYS.items()}
    writer = StoreWriter.open(location, StoreSchema(
        streams=streams, source="test", seconds=1, fps=1.0, mask_size=2, objects_per_shard=1,
    ))  # fmt: skip
    names = [f"{number:02d}" for number in range(10, 10 + num_clips)]
    clips = [Unit(name=name, item=Clip(id=name), keys={VISUAL: name, AUDIO: (sounds or {}).get(name, name)})
             for name in names]  # fmt: skip
    return plan_jobs(writer, {"clips": clips, "text": [], "objects": []}, refill=refill)


def worker(location: Path, visual: Visual, batch_clips: int = 1) -> Worker:
    encoders = {encoder.name: encoder for encoder in (visual, Audio())}
    streams = {id: Stream(id=id, encoder=id.split("/")[1], level="".join(id.split("/")[2:]), given=arrays)
               for id, arrays in ARRAYS.items()}  # fmt: skip
    return Worker(str(location), StreamSet(encoders, streams, Steps(1)), 1, batch_clips)


@pytest.mark.parametrize(
    ("batch_clips", "expected"),
    [(1, [[10], [11], [12], [14], [15], [16]]), (2, [[10, 11], [12], [14, 15], [16]]),
     (3, [[10, 11, 12], [14, 15], [16]])],
)  # fmt: skip
def test_batches_are_neighbours_of_one_shard_whatever_fails(
    tmp_path: Path, decoded: list[int], batch_clips: int, expected: list[list[int]]
) -> None:
    visual = Visual()
    results = [worker(tmp_path, visual, batch_clips).run(job) for job in jobs_of(tmp_path, 7, size=6)]
    assert not any(result.trace for result in results)
    assert visual.batches == expected and sorted(decoded) == list(range(10, 17))
    assert [result.failures for result in results] == [{"13": "clip 13 is damaged"}, {}]
    assert [result.num_done for result in results] == [5, 1]
    store, writer = FeatureStore(tmp_path), StoreWriter.attach(tmp_path)
    seen, heard = (writer.committed(id) for id in ARRAYS)
    for batch in expected:
        for name in batch:
            features = store.read(f"clips/{VISUAL}/res2", seen[str(name)]).numpy()
            assert (features[0, 0] == batch[0]).all() and (features[0, 1:] == name).all()
            assert (store.read(f"clips/{AUDIO}/features", heard[str(name)]).numpy() == name).all()


def test_removed_shards_are_planned_with_the_rows_that_they_had(tmp_path: Path, decoded: list[int]) -> None:
    clips: dict[str, Any] = {"num_clips": 8, "size": 2, "sounds": {"14": "10"}}
    first = jobs_of(tmp_path, **clips)
    done = worker(tmp_path, Visual())
    assert [list(done.run(job).failures) for job in first] == [[], ["13"], [], []]
    shards = {(shard.table, shard.index): shard for job in first for shard in job.shards}
    removed = [(AUDIO, 2), (AUDIO, 3), (VISUAL, 0)]  # of the clip that has a sound of its own, not of its neighbour
    for table, index in removed:
        (tmp_path / record_name(table, index)).unlink()
    again = jobs_of(tmp_path, **clips, refill=True)
    planned = {(shard.table, shard.index): shard for job in again for shard in job.shards}
    failed = {key: planned.pop(key) for key in [(VISUAL, 4), (AUDIO, 4)]}
    assert planned == {key: shards[key] for key in removed} and {each.keys for each in failed.values()} == {("13",)}


def test_job_that_is_given_up_reports_what_it_committed_as_done(tmp_path: Path, decoded: list[int]) -> None:
    (job,) = jobs_of(tmp_path, 3, size=4)
    reasons = dict.fromkeys(job.names, "its worker process died 3 times")
    assert result_without_worker(job, reasons, str(tmp_path)) == JobResult(kind="clips", failures=reasons)
    worker(tmp_path, Visual()).run(job)
    assert result_without_worker(job, reasons, str(tmp_path)) == JobResult(kind="clips", num_done=3)
    (tmp_path / record_name(AUDIO, 0)).unlink()
    assert result_without_worker(job, reasons, str(tmp_path)).failures == reasons


def test_condemned_keys_are_failed_without_being_touched(tmp_path: Path, decoded: list[int]) -> None:
    visual = Visual()
    (job,) = jobs_of(tmp_path, 3, size=4)
    result = worker(tmp_path, visual, 2).run(job, {"11": "it kills"})
    assert result.failures == {"11": "it kills"} and result.num_done == 2
    assert visual.batches == [[10], [12]] and sorted(decoded) == [10, 12]


def test_probe_computes_one_key_and_writes_nothing(tmp_path: Path, decoded: list[int]) -> None:
    visual = Visual()
    (job,) = jobs_of(tmp_path, 5, size=8)
    prober = worker(tmp_path, visual)
    for key in ("11", "13"):
        assert prober.probe(job, key) is None
    assert visual.batches == [[11]] and decoded == [11, 13] and not list(tmp_path.rglob("c.*"))
    assert prober.run(job).num_done == 4


def test_next_clip_is_decoded_while_one_is_encoded(tmp_path: Path, decoded: list[int]) -> None:
    seen = []

    def wait_for_next(names: list[int]) -> None:
        deadline = threading.Event()
        for _ in range(int(WAIT_S / 0.01)):
            if names[0] + 1 in decoded:
                break
            deadline.wait(0.01)
        seen.append(names[0] + 1 in decoded)

    (job,) = jobs_of(tmp_path, 3, size=4)
    result = worker(tmp_path, Visual(during=lambda names: names[0] < 12 and wait_for_next(names))).run(job)
    assert seen == [True, True] and result.error is None
    assert set(result.stages_s) == set(JOB_STAGES) and result.stages_s["encode"] > 0
    inputs, seconds = result.encoded["seen"]
    assert inputs == 3 and 0 < seconds <= result.stages_s["encode"]


def test_decoding_stays_a_few_clips_ahead(tmp_path: Path, decoded: list[int]) -> None:
    furthest = []
    (job,) = jobs_of(tmp_path, 40, size=64)
    worker(tmp_path, Visual(during=lambda names: furthest.append(len(decoded) - len(furthest)))).run(job)
    assert len(furthest) == 39 and max(furthest) <= 5


@pytest.mark.parametrize("batch_clips", [1, 4])
def test_two_jobs_encode_in_turn_and_hold_few_features(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch, batch_clips: int
) -> None:
    inside, together = [], []

    def during(names: list[int]) -> None:
        inside.append(names)
        together.append(len(inside))
        threading.Event().wait(0.002)
        inside.remove(names)

    visual = Visual(during=during)
    busy = worker(tmp_path, visual, batch_clips)
    jobs = jobs_of(tmp_path, 48, size=12)
    with ThreadPoolExecutor(2) as two:
        results = list(two.map(busy.run, jobs))
    assert sum(result.num_done for result in results) == 47 and max(together) == 1
    assert visual.alive == 0 and visual.most_alive <= batch_clips + SPARE_CLIPS


def test_job_that_breaks_leaves_the_encoders_to_others(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(names: list[int]) -> None:
        if 11 in names:
            raise RuntimeError("no kernel image")

    busy = worker(tmp_path, Visual(during=breaks), 2)
    first, second = jobs_of(tmp_path, 5, size=3)
    broken = busy.run(first)
    assert isinstance(broken.error, RuntimeError) and "no kernel image" in broken.trace
    assert busy.run(second).num_done == 1


def test_turns_wait_for_what_is_not_written() -> None:
    turns, stages, entered = Turns(), Stages(), threading.Event()
    with turns.encoding(SPARE_CLIPS + 1, stages):
        pass

    def encode() -> None:
        with turns.encoding(1, stages):
            entered.set()

    other = threading.Thread(target=encode)
    other.start()
    assert not entered.wait(0.1)
    turns.written()
    assert entered.wait(WAIT_S)
    other.join()


def test_ahead_begins_no_more_than_its_window() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    with ThreadPoolExecutor(3) as pool:
        results: Iterator[int] = ahead(pool, work, range(20), 4)
        taken = [next(results) for _ in range(3)]
        pool.submit(int).result()
    assert taken == [0, 1, 4] and max(begun) <= 6
    with ThreadPoolExecutor(1) as pool:
        assert list(ahead(pool, work, range(5), 2)) == [0, 1, 4, 9, 16]


@pytest.mark.slow
def test_memory_is_flat_over_a_long_run(tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    # A quarter of a MB of pictures per clip, which would be 500 MB over the run.
    big = np.zeros((1, 300, 300, 3), np.uint8)
    media = replace(media_of(1), frames={FORM: big})
    monkeypatch.setattr("extract.pipeline.worker.read_media", lambda *_: replace(media, frames={FORM: big + 1}))
    busy = worker(tmp_path, Visual(), 4)
    jobs = jobs_of(tmp_path, 2000, size=8)
    for job in jobs[:30]:
        busy.run(job)
    before = resident_bytes()
    with ThreadPoolExecutor(2) as two:
        assert sum(result.num_done for result in two.map(busy.run, jobs[30:])) == 2000 - 30 * 8
    assert resident_bytes() - before < 40 * 2**20


def test_gpu_without_memory_gets_half_the_batch_and_then_one_line(decoded: list[int], tmp_path: Path) -> None:
    def of_memory_for(number: int) -> tuple[JobResult, Visual]:
        def during(names: list[int]) -> None:
            if len(names) > number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

        (job,) = jobs_of(tmp_path / str(number), 3, size=4)
        visual = Visual(during=during)
        return worker(tmp_path / str(number), visual, 4).run(job), visual

    enough, visual = of_memory_for(2)
    assert enough.error is None and enough.num_done == 3 and visual.batches == [[10, 11, 12], [10, 11], [12]]
    lacking, visual = of_memory_for(0)
    assert isinstance(lacking.error, ConfigError) and visual.batches == [[10, 11, 12], [10, 11]]
    assert "has no memory for 2 clips" in str(lacking.error) and "--batch-clips 1" in str(lacking.error)
    assert "\n" not in str(lacking.error)

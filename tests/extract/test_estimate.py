"""What a dry run says, against what a run then does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from extract.encoders.presets import build_encoders, preset_named
from extract.encoders.weights import WeightSource
from extract.pipeline import estimate
from extract.pipeline.estimate import Missing, Seconds, calibrate, clip_bytes, missing_in
from extract.pipeline.plan import array_specs, plan_jobs, wanted_items
from extract.pipeline.ray_pool import Resources
from extract.pipeline.worker import Worker
from refavs.data.layouts import Source, read_source
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark

TINY = preset_named("tiny")
BOTH, ONE = (build_encoders(TINY, WeightSource(kind="random"), levels, "fp32")
             for levels in (("backbone", "pixel_decoder"), ("pixel_decoder",)))  # fmt: skip
EACH = Seconds(decode=1.0, visual=10.0, audio=100.0, write=1000.0, text=10_000.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=3, seed=5, size=96, videos=False)
    return read_source(root)


def writer_of(path: Path, encoders=BOTH) -> StoreWriter:
    return StoreWriter.open(
        path, encoders=encoders.fingerprints(), source="test", num_frames=10, input_size=96,
        specs=array_specs(TINY, encoders), rows_per_shard={"clips": 2, "objects": 2, "text": 256},
    )


def test_missing_is_counted_in_the_stores_own_shards(source: Source, tmp_path: Path) -> None:
    writer, wanted = writer_of(tmp_path / "store"), wanted_items(source)
    missing = missing_in(writer, wanted, {})
    assert missing.keys == {table: len(items) for table, items in wanted.items()}
    num_clips = len(source.clips)
    assert num_clips == 4  # three and the null clip of one of them
    assert missing.shards == {"clips": 2, "objects": -(-len(wanted["objects"]) // 2), "text": 1}
    assert missing.num_visual == missing.num_audio == num_clips and missing.levels == ("backbone", "pixel_decoder")
    tables = {spec.path.split("/")[0]: 0 for spec in writer.schema.specs.values()}
    for spec in writer.schema.specs.values():
        tables[spec.table] += spec.row_bytes
    assert missing.num_bytes == sum(len(wanted[table]) * size for table, size in tables.items())
    assert clip_bytes(writer) == tables["clips"]
    work_s = num_clips * 1111 + len(wanted["text"]) * 10_000
    assert missing.seconds(EACH, 2) - missing.seconds(EACH, 4) == pytest.approx(work_s / 4)


def test_clips_that_share_cost_no_encoding(source: Source, tmp_path: Path) -> None:
    first, second, third, _ = sorted(clip.id for clip in source.clips)
    shares = {second: {"clips/visual": first}, third: {"clips/visual": first, "clips/audio": first}}
    missing = missing_in(writer_of(tmp_path / "store"), wanted_items(source), shares)
    assert (missing.num_visual, missing.num_audio, missing.num_sharing) == (2, 3, 2)


@pytest.mark.long
def test_level_that_a_store_lacks_is_all_that_is_missing(source: Source, tmp_path: Path) -> None:
    writer, wanted = writer_of(tmp_path / "store", ONE), wanted_items(source)
    worker = Worker(str(tmp_path / "store"), TINY, ONE)
    assert not any(worker.run(job).failures for job in plan_jobs(writer, wanted))
    nothing = missing_in(writer_of(tmp_path / "store", ONE), wanted, {})
    assert nothing.num_bytes == 0 and nothing.seconds(EACH, 1) == 0 and not any(nothing.shards.values())
    missing = missing_in(writer_of(tmp_path / "store"), wanted, {})
    assert missing.levels == ("backbone",) and missing.shards == {"clips": 2, "text": 0, "objects": 0}
    assert (missing.num_visual, missing.num_audio) == (4, 0)
    backbone = [spec.row_bytes for spec in BOTH.visual.specs() if "/backbone/" in spec.path]
    assert missing.num_bytes == 4 * sum(backbone)


@pytest.mark.long
def test_calibration_times_every_stage(source: Source) -> None:
    each = calibrate(TINY, BOTH, source.clips, ("backbone",), Resources())
    assert min(each.decode, each.visual, each.audio, each.write, each.text) > 0
    assert each.of_clip > each.beside(1) >= each.visual + each.audio
    assert each.render().startswith("calibrated here: decode 0.") and "an expression" in each.render()
    nothing = calibrate(TINY, BOTH, [], (), Resources())
    assert nothing.visual == nothing.decode == 0 < nothing.audio


class Slow:
    """Encoders that take a second of a pretended clock for a frame."""

    def __init__(self, clock: list[float], frame_s: float) -> None:
        self.clock, self.frame_s, self.calls = clock, frame_s, []

    def encode(self, clips, levels) -> list[dict]:
        self.calls.append([len(frames) for frames in clips])
        self.clock[0] += self.frame_s * sum(self.calls[-1])
        return [{} for _ in clips]


@pytest.mark.parametrize(
    ("frame_s", "resources", "calls"),
    [
        (5.0, Resources(), [[1]]), (0.2, Resources(), [[1], [1]]),
        (0.01, Resources(), [[1], [1], [10], [10]]), (5.0, Resources(gpus_per_worker=1, batch_clips=2), [[10, 10]] * 2),
    ],
)  # fmt: skip
def test_visual_encoder_is_timed_on_a_frame_unless_a_clip_is_quick(
    monkeypatch: pytest.MonkeyPatch, frame_s: float, resources: Resources, calls: list
) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    slow = Slow(clock, frame_s)
    encoders = dataclasses.replace(BOTH, visual=slow)
    frames = np.zeros((10, 4, 4, 3), np.uint8)
    assert estimate._visual_s(encoders, frames, ("backbone",), resources) == pytest.approx(10 * frame_s)
    assert slow.calls == calls


def test_on_a_gpu_decoding_and_writing_go_on_beside_the_encoders() -> None:
    missing = Missing(keys={"clips": 10, "text": 3, "objects": 0}, shards={}, num_bytes=0, num_visual=10, num_audio=10,
                      num_sharing=0, levels=())  # fmt: skip
    each = Seconds(decode=8.0, visual=4.0, audio=1.0, write=2.0, text=1.0)
    start_s = missing.seconds(each, 1) - (10 * 15 + 3)
    assert missing.seconds(each, 1, num_decoders=4) == pytest.approx(start_s + 53)
    assert missing.seconds(each, 2, num_decoders=1) == pytest.approx(start_s + 40)
    assert each.beside(4) == 5.0 and each.beside(1) == 8.0


def test_nothing_missing_takes_no_time() -> None:
    missing = Missing(keys={"clips": 0, "text": 0, "objects": 0}, shards={}, num_bytes=0, num_visual=0, num_audio=0,
                      num_sharing=0, levels=())  # fmt: skip
    assert missing.seconds(EACH, 1) == 0.0

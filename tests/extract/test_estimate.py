"""The estimate of a dry run against the actual run."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from extract.encoders.protocol import Encoder, EncoderSetup, Frames
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.pipeline import estimate
from extract.pipeline.estimate import Missing, Seconds, calibrate, clip_bytes, missing_of
from extract.pipeline.ray_pool import PoolResources
from extract.pipeline.worker import Worker
from refavs.data.layouts import Source, read_source
from refavs.steps import Steps
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark
from tests.extract.command import jobs_of, open_store

pytestmark = pytest.mark.usefixtures("small_networks")

SETUP = EncoderSetup(weights=WeightSource(kind="random"))
BOTH, ONE = (choose_streams((visual, "tiny-vggish", "tiny-roberta"), Steps(10), lambda name: SETUP)
             for visual in ("tiny-swin", "tiny-swin/pixel_decoder"))  # fmt: skip
EACH = Seconds(decode=1.0, write=1000.0, clip={"tiny-swin": 10.0, "tiny-vggish": 100.0}, text={"tiny-roberta": 1e4})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=3, seed=5, size=96, videos=False)
    return read_source(root)


def missing_in(writer: StoreWriter, source: Source, streams: StreamSet) -> Missing:
    return missing_of(jobs_of(writer, source, streams), writer.schema, streams)


def test_missing_is_counted_in_the_stores_own_shards(source: Source, tmp_path: Path) -> None:
    writer = open_store(tmp_path / "store", BOTH)
    missing = missing_in(writer, source, BOTH)
    texts = source.expressions["text"].nunique()
    assert missing.units == {"clips": 4, "objects": len(source.objects), "text": texts}
    # Three clips, and the null clip of one of them, which has its frames.
    assert missing.rows["visual/tiny-swin/backbone"] == missing.inputs["tiny-swin"] == 3
    assert missing.rows["audio/tiny-vggish"] == missing.inputs["tiny-vggish"] == 4
    assert set(missing.shards.values()) == {1}
    sizes = {name: sum(spec.row_bytes for spec in table.arrays) for name, table in writer.schema.tables.items()}
    assert missing.num_bytes == sum(missing.rows[name] * size for name, size in sizes.items())
    assert clip_bytes(writer.schema) == sum(sizes[name] for name in BOTH.of("visual", "audio"))
    work_s = 4 * 1001 + 3 * 10 + 4 * 100 + texts * 10_000
    assert missing.seconds(EACH, 2) - missing.seconds(EACH, 4) == pytest.approx(work_s / 4)


@pytest.mark.long
def test_stream_that_a_store_lacks_is_all_that_is_missing(source: Source, tmp_path: Path) -> None:
    writer = open_store(tmp_path / "store", ONE)
    worker = Worker(str(tmp_path / "store"), ONE)
    assert not any(worker.run(job).failures for job in jobs_of(writer, source, ONE))
    nothing = missing_in(writer, source, ONE)
    assert nothing.num_bytes == 0 and nothing.seconds(EACH, 1) == 0 and not nothing.shards
    missing = missing_in(open_store(tmp_path / "store", BOTH), source, BOTH)
    assert missing.rows == {"visual/tiny-swin/backbone": 3} and missing.inputs == {"tiny-swin": 3}
    assert missing.num_bytes == 3 * sum(spec.row_bytes for spec in BOTH.streams["visual/tiny-swin/backbone"].arrays)


@pytest.mark.long
def test_calibration_times_every_stage(source: Source) -> None:
    each = calibrate(BOTH, source.clips, PoolResources())
    assert min(each.decode, each.write, *each.clip.values(), *each.text.values()) > 0
    assert each.of_clip > each.beside(1) >= sum(each.clip.values())
    assert each.render().startswith("calibrated here: decode 0.") and "an expression" in each.render()
    nothing = calibrate(BOTH.only(["audio/tiny-vggish"]), [], PoolResources())
    assert nothing.decode == 0 < nothing.clip["tiny-vggish"] and not nothing.text


class Slow(Encoder):
    """An encoder that takes some seconds of a pretended clock for a frame."""

    name, modality, takes = "slow", "visual", Frames(size=4)

    def __init__(self, clock: list[float], frame_s: float) -> None:
        self.clock, self.frame_s, self.calls = clock, frame_s, []

    def encode(self, batch: Any, levels: Any) -> list[dict]:
        self.calls.append([len(frames) for frames in batch])
        self.clock[0] += self.frame_s * sum(self.calls[-1])
        return [{} for _ in batch]


@pytest.mark.parametrize(
    ("frame_s", "resources", "calls"),
    [
        (5.0, PoolResources(), [[1]]), (0.2, PoolResources(), [[1], [1]]),
        (0.01, PoolResources(), [[1], [1], [10], [10]]),
        (5.0, PoolResources(gpus_per_worker=1, batch_clips=2), [[10, 10]] * 2),
    ],
)  # fmt: skip
def test_visual_encoder_is_timed_on_a_frame_unless_a_clip_is_quick(
    monkeypatch: pytest.MonkeyPatch, frame_s: float, resources: PoolResources, calls: list
) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    slow = Slow(clock, frame_s)
    frames = np.zeros((10, 4, 4, 3), np.uint8)
    assert estimate._visual_s(slow, frames, ("backbone",), resources) == pytest.approx(10 * frame_s)
    assert slow.calls == calls


def test_on_a_gpu_decoding_and_writing_overlap_with_encoding() -> None:
    missing = Missing(units=Counter(clips=10, text=3), rows=Counter(), shards=Counter(), num_bytes=0,
                      inputs=Counter(seen=10, heard=10, read=3))  # fmt: skip
    each = Seconds(decode=8.0, write=2.0, clip={"seen": 4.0, "heard": 1.0}, text={"read": 1.0})
    start_s = missing.seconds(each, 1) - (10 * 15 + 3)
    assert missing.seconds(each, 1, num_decoders=4) == pytest.approx(start_s + 53)
    assert missing.seconds(each, 2, num_decoders=1) == pytest.approx(start_s + 40)
    assert each.beside(4) == 5.0 and each.beside(1) == 8.0

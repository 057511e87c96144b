"""Preset base at its real sizes, with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.encoders.mask2former import VisualEncoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import choose_streams
from extract.encoders.weights import WeightSource
from extract.media.clip import read_media
from extract.pipeline.content import contents_of
from extract.pipeline.tables import write_tables
from extract.pipeline.worker import Worker
from refavs.data.layouts import read_source
from refavs.steps import Steps
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import jobs_of, open_store

SETUP = EncoderSetup(weights=WeightSource(kind="random"))
STREAMS = choose_streams(("mask2former-swin-base-ade", "vggish", "roberta-base"), Steps(10), lambda name: SETUP)
VISUAL = "visual/mask2former-swin-base-ade"


def test_base_arrays_have_the_sizes_of_the_paper() -> None:
    shapes = {f"{id}/{spec.name}": spec.shape for id, stream in STREAMS.streams.items() for spec in stream.arrays}
    assert shapes == {
        f"{VISUAL}/backbone/res2": (10, 128, 96, 96), f"{VISUAL}/backbone/res3": (10, 256, 48, 48),
        f"{VISUAL}/backbone/res4": (10, 512, 24, 24), f"{VISUAL}/backbone/res5": (10, 1024, 12, 12),
        f"{VISUAL}/pixel_decoder/mask_features": (10, 256, 96, 96),
        f"{VISUAL}/pixel_decoder/s8": (10, 256, 48, 48), f"{VISUAL}/pixel_decoder/s16": (10, 256, 24, 24),
        f"{VISUAL}/pixel_decoder/s32": (10, 256, 12, 12), "audio/vggish/features": (10, 128),
        "text/roberta-base/features": (25, 768), "text/roberta-base/valid": (25,),
    }
    sizes = {id: sum(spec.row_bytes for spec in stream.arrays) for id, stream in STREAMS.streams.items()}
    assert sizes[f"{VISUAL}/backbone"] == 44_236_800 and sizes[f"{VISUAL}/pixel_decoder"] == 62_668_800
    assert {id: spec.rows_per_shard for id, spec in STREAMS.specs().items()} == {
        f"{VISUAL}/backbone": 4, f"{VISUAL}/pixel_decoder": 4, "audio/vggish": 4, "text/roberta-base": 256,
    }  # fmt: skip


@pytest.mark.slow
def test_base_clip_is_stored_as_its_encoders_make_it(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "bench", num_clips=1, seed=0, size=128, videos=1)
    (tmp_path / "questions.csv").write_text("video,exp\nsyn00000_0_10000,The loudest object.\n")
    source = read_source(tmp_path / "bench" / "videos", tmp_path / "questions.csv")
    writer = open_store(tmp_path / "store", STREAMS, mask_size=384)
    worker = Worker(str(tmp_path / "store"), STREAMS, torch.get_num_threads())
    results = [worker.run(job) for job in jobs_of(writer, source, STREAMS)]
    assert [result.num_done for result in results] == [1, 1]
    write_tables(writer, source, contents_of(source.clips, Steps(10))[0])
    writer.finalise()

    features = FeatureStore(tmp_path / "store")
    assert sum(result.num_bytes for result in results) >= 44_236_800 + 62_668_800
    media = read_media(source.clips[0], Steps(10), *STREAMS.inputs())
    visual, audio, text = STREAMS.encoders.values()
    assert isinstance(visual, VisualEncoder)
    networks = visual.build()
    with torch.no_grad():
        pyramid = networks.swin(STREAMS.inputs()[0][0].normalised(torch.from_numpy(media.taken(visual.takes))))
        maps = networks.pixel_decoder(pyramid)
    for level, expected in (("backbone", pyramid), ("pixel_decoder", maps)):
        for name, map_ in expected.items():
            stored = features.read(f"clips/{VISUAL}/{level}/{name}", 0)
            assert stored.dtype == torch.float16
            assert (stored.float() - map_).abs().max() <= 1e-3 * map_.abs().max()
            assert 0.05 < map_.std() < 20
    heard = audio.encode([audio.prepare(media.taken(audio.takes))], [""])[0]["features"]
    assert np.array_equal(features.read("clips/audio/vggish/features", 0).numpy(), heard)
    read = text.encode([text.prepare("The loudest object.")], [""])[0]["features"]
    assert np.array_equal(features.read("text/roberta-base/features", 0).numpy(), read)
    assert features.random_weights

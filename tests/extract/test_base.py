"""Preset base at its real sizes, with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.encoders.presets import build_encoders, preset_named
from extract.encoders.roberta import FEATURES
from extract.encoders.weights import WeightSource
from extract.media.clip import normalised, read_media
from extract.pipeline.plan import array_specs, expressions_table, plan_jobs, wanted_items
from extract.pipeline.worker import Worker
from refavs.data.layouts import read_source
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark

BASE = preset_named("base")
TABLES = ("clips", "objects", "text")


def test_base_arrays_have_the_sizes_of_the_paper() -> None:
    encoders = build_encoders(BASE, WeightSource(kind="random"), ("backbone", "pixel_decoder"), "fp32")
    specs = {spec.path: spec for table in array_specs(BASE, encoders).values() for spec in table}
    assert {path: spec.shape for path, spec in specs.items()} == {
        "clips/visual/backbone/res2": (10, 128, 96, 96), "clips/visual/backbone/res3": (10, 256, 48, 48),
        "clips/visual/backbone/res4": (10, 512, 24, 24), "clips/visual/backbone/res5": (10, 1024, 12, 12),
        "clips/visual/pixel_decoder/mask_features": (10, 256, 96, 96),
        "clips/visual/pixel_decoder/s8": (10, 256, 48, 48), "clips/visual/pixel_decoder/s16": (10, 256, 24, 24),
        "clips/visual/pixel_decoder/s32": (10, 256, 12, 12), "clips/audio/vggish": (10, 128),
        "objects/mask": (10, 384, 48), "text/roberta/features": (25, 768), "text/roberta/valid": (25,),
    }
    backbone = sum(spec.row_bytes for path, spec in specs.items() if "backbone" in path)
    pixel_decoder = sum(spec.row_bytes for path, spec in specs.items() if "pixel_decoder" in path)
    assert backbone == 44_236_800 and pixel_decoder == 62_668_800


@pytest.mark.slow
def test_base_clip_is_stored_as_its_encoders_make_it(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "bench", num_clips=1, seed=0, size=128, videos=1)
    (tmp_path / "questions.csv").write_text("video,exp\nsyn00000_0_10000,The loudest object.\n")
    source = read_source(tmp_path / "bench" / "videos", tmp_path / "questions.csv")
    levels = ("backbone", "pixel_decoder")
    encoders = build_encoders(BASE, WeightSource(kind="random"), levels, "fp32")
    writer = StoreWriter.open(
        tmp_path / "store", encoders=encoders.fingerprints(), source="test", num_frames=10, input_size=384,
        specs=array_specs(BASE, encoders), rows_per_shard=BASE.rows_per_shard,
    )
    worker = Worker(tmp_path / "store", BASE, encoders, torch.get_num_threads())
    results = [worker.run(job) for job in plan_jobs(writer, wanted_items(source))]
    assert [result.num_done for result in results] == [1, 1]
    writer.write_expressions(expressions_table(source, {table: writer.committed(table) for table in TABLES}))
    writer.finalise()

    features = FeatureStore(tmp_path / "store")
    assert sum(result.num_bytes for result in results) >= 44_236_800 + 62_668_800
    media = read_media(source.clips[0], 10, 384)
    networks = encoders.visual._networks
    with torch.no_grad():
        pyramid = networks.swin(normalised(torch.from_numpy(media.frames)))
        maps = networks.pixel_decoder(pyramid)
    for level, expected in (("backbone", pyramid), ("pixel_decoder", maps)):
        for name, map_ in expected.items():
            stored = features.read(f"clips/visual/{level}/{name}", 0)
            assert stored.dtype == torch.float16
            assert (stored.float() - map_).abs().max() <= 1e-3 * map_.abs().max()
            assert 0.05 < map_.std() < 20
    audio = encoders.audio.encode([encoders.audio.prepare(media.sound)])[0]["clips/audio/vggish"]
    assert np.array_equal(features.read("clips/audio/vggish", 0).numpy(), audio)
    text = encoders.text.encode([encoders.text.prepare("The loudest object.")])[0][FEATURES]
    assert np.array_equal(features.read(FEATURES, 0).numpy(), text)
    assert features.random_weights

"""One store of the demo's clips with small relatives of many families, other readers of it, and the grid on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from refavs.store import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.test_encoder_grid import CONFIGS
from tests.extract.test_hub_encoders import SMALL
from tests.support.own_process import run
from tests.support.small_networks import WRITERS

PICTURES = ("mask2former-swin-tiny-coco-panoptic", "dinov2-small", "clip-vit-base-patch32", "pvt-v2-b2", "sam-vit-base",
            "sam2.1-hiera-tiny", "timm:test_resnet.r160_in1k")  # fmt: skip
OTHERS = ("tiny-swin/pixel_decoder", "tiny-swin/pooled8", "vggish", "roberta-base", "flan-t5-base",
          "languagebind-text", "languagebind-audio/seconds", "whisper-tiny/seconds")  # fmt: skip
SMALL_TRIALS = {"model.visual": "tiny-swin/pixel_decoder", "model.num_layers": 1, "model.num_queries": 4,
                "model.num_heads": 2, "model.channels": 16, "model.decoder_layers": 1,
                "model.decoder_feedforward_channels": 32, "model.feedforward_channels": 32, "train.epochs": 1,
                "train.warmup_steps": 0}  # fmt: skip
ROWS = {"full": "roberta-base + vggish", "text Flan-T5": "flan-t5-base/tokens + vggish",
        "text LanguageBind": "languagebind-text/tokens + vggish",
        "audio LanguageBind": "roberta-base + languagebind-audio/seconds",
        "both": "flan-t5-base/tokens + languagebind-audio/seconds"}  # fmt: skip



pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of the demo with all the streams: text and sound of random weights, pictures of weights on disk."""
    root = tmp_path_factory.mktemp("demo")
    bench, store, weights = (root / name for name in ("bench", "store", "weights"))
    write_benchmark(bench, num_clips=24, seed=0, size=96, videos=0)
    for name in PICTURES:
        WRITERS[name](weights)
    for name, config in {**CONFIGS, "whisper-tiny": SMALL["whisper-tiny"]}.items():
        (weights / name).mkdir(parents=True)
        (weights / name / "config.json").write_text(json.dumps(config))
    run("extract", bench, store, "--streams", ",".join(OTHERS), "--weights", "random", "--weights-dir", weights,
        "--mask-size", 96)  # fmt: skip
    run("extract", bench, store, "--streams", ",".join(PICTURES), "--weights-dir", weights)
    return store


def test_store_of_many_encoders_is_read_by_others(store: Path) -> None:
    told = run("store", "info", store)
    print(told)
    streams = FeatureStore(store).streams
    assert len(streams) >= 20 and all(f"stream       {name}: " in told for name in streams)
    assert all(f" {path} " in told for path in FeatureStore(store).specs), "a path is broken over lines"
    assert " 0 damaged" in run("store", "verify", store)
    require_same_by_others(FeatureStore(store))


def require_same_by_others(store: FeatureStore) -> None:
    """The first row of every array as zarr-python and tensorstore read it."""
    group: Any = zarr.open_group(store.location, mode="r")
    for path, spec in store.specs.items():
        row = next(row for table, row in store._places if table == spec.table)
        expected = store.read(path, row).numpy()
        place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.location}/{path}"}}
        others = np.asarray(group[path][row]), tensorstore.open(place, read=True).result()[row].read().result()
        for found in others:
            np.testing.assert_array_equal(found, expected)


def test_grid_encoders_gives_the_table_of_the_supplement(store: Path, tmp_path: Path) -> None:
    changes = (f"--set={name}={value}" for name, value in SMALL_TRIALS.items())
    told = run("sweep", "encoders", "--store", store, "--out", tmp_path / "encoders", *changes)
    assert "15 trials finished now, 15 of 15 in all" in told and "RANDOM FEATURES" in told
    run("report", tmp_path / "encoders", "--published", "--out", tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
    (table,) = (part for part in report.split("\n## ") if part.startswith("Encoders (layout of supplement Table 3)"))
    print(table)
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    assert rows[:5] == [f"{read} + tiny-swin/pixel_decoder: {name}" for name, read in ROWS.items()]
    assert [row.partition(" (published")[0] for row in rows[5:]] == [
        "RoBERTa + VGGish", "text Flan-T5", "text LanguageBind", "audio LanguageBind",
    ]  # fmt: skip
    assert "RANDOM FEATURES" in table and "protocols are not comparable" in table
    (used,) = (line for line in report.splitlines() if line.startswith("- encoders: "))
    assert all(f"{stream} " in used for stream in ("visual/tiny-swin/pixel_decoder", "text/languagebind-text/tokens"))

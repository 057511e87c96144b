"""One store of the demo's clips with small relatives of many families, which other libraries read."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from refavs.store import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.test_encoder_grid import CONFIGS
from tests.extract.test_hub_encoders import SMALL
from tests.support.small_networks import WRITERS

PICTURES = ("mask2former-swin-tiny-coco-panoptic", "dinov2-small", "clip-vit-base-patch32", "pvt-v2-b2", "sam-vit-base",
            "sam2.1-hiera-tiny", "timm:test_resnet.r160_in1k")  # fmt: skip
OTHERS = ("tiny-swin/pixel_decoder", "tiny-swin/pooled8", "tiny-vggish", "roberta-base", "flan-t5-base",
          "languagebind-text", "languagebind-audio/seconds", "whisper-tiny/seconds")  # fmt: skip
COMMANDS = {"extract": "extract.cli", "store": "extract.store_cli"}


def run(command: str, *arguments: object) -> str:
    """What a command prints; it must succeed."""
    code = f"import sys; from {COMMANDS[command]} import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_store_of_many_encoders_is_read_by_others(tmp_path: Path) -> None:
    bench, store, weights = (tmp_path / name for name in ("bench", "store", "weights"))
    write_benchmark(bench, num_clips=12, seed=0, size=96, videos=0)
    for name in PICTURES:
        WRITERS[name](weights)
    for name, config in {**CONFIGS, "whisper-tiny": SMALL["whisper-tiny"]}.items():
        (weights / name).mkdir(parents=True)
        (weights / name / "config.json").write_text(json.dumps(config))
    run("extract", bench, store, "--streams", ",".join(OTHERS), "--weights", "random", "--weights-dir", weights,
        "--mask-size", 96)  # fmt: skip
    run("extract", bench, store, "--streams", ",".join(PICTURES), "--weights-dir", weights)
    told = run("store", "info", store)
    print(told)
    streams = FeatureStore(store).streams
    assert len(streams) >= 20 and all(f"stream       {name}: " in told for name in streams)
    assert " 0 damaged" in run("store", "verify", store)
    require_same_by_others(FeatureStore(store))


def require_same_by_others(store: FeatureStore) -> None:
    """The first row of every array as zarr-python and tensorstore read it."""
    group = zarr.open_group(store.location, mode="r")
    for path, spec in store.specs.items():
        row = next(row for table, row in store._places if table == spec.table)
        expected = store.read(path, row).numpy()
        place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store.location}/{path}"}}
        others = np.asarray(group[path][row]), tensorstore.open(place, read=True).result()[row].read().result()
        for found in others:
            np.testing.assert_array_equal(found, expected)

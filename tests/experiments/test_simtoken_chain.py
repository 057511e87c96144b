"""A head of today, from videos to predictions, on features of a small relative of SAM 2.1."""

import json
from pathlib import Path

import pytest

from refavs.store import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.support.own_process import run
from tests.support.small_networks import WRITERS

STREAMS = "sam2.1-hiera-tiny,tiny-vggish,tiny-roberta"
GRID = """
description: simtoken
base:
  model: {head: simtoken, channels: 16, num_heads: 2, fusion_layers: 1, feedforward_channels: 8, tokens_per_side: 2,
          decoder_layers: 1, decoder_feedforward_channels: 8}
  train: {epochs: 1, steps_per_epoch: 2, batch_size: 4, frames: 2}
cases:
  both: {}
  text: {model.audio: false}
"""



@pytest.mark.slow
def test_simtoken_goes_from_videos_to_predictions(tmp_path: Path) -> None:
    bench, store, weights, runs = (tmp_path / name for name in ("bench", "store", "weights", "runs"))
    write_benchmark(bench, num_clips=12, seed=0, size=96, videos=1)
    WRITERS["sam2.1-hiera-tiny"](weights)
    (tmp_path / "simtoken.yaml").write_text(GRID)
    run("extract", bench, store, "--streams", STREAMS, "--weights-dir", weights, "--mask-size", 96)
    assert "visual/sam2.1-hiera-tiny/high_resolution" in FeatureStore(store).streams
    run("sweep", tmp_path / "simtoken.yaml", "--store", store, "--out", runs, "--max-concurrent", 1)
    run("report", runs)
    assert r"both and text: object\_score 1.0" in (runs / "report" / "report.md").read_text()
    (trial, _) = (runs / "trials").iterdir()
    assert 0 <= json.loads((trial / "result.json").read_text())["metrics"]["test_s/J"] <= 1
    (video,) = (bench / "videos").iterdir()
    run("predict", video, "the object on the left", "--run", trial, "--weights-dir", weights,
        "--out", tmp_path / "found")  # fmt: skip
    assert len([*(tmp_path / "found").rglob("*.png")]) >= 10

"""Pooled mask features are a level of their own, made of what the store keeps; one encoder serves several names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extract.cli import main
from extract.encoders.mask2former import VisualEncoder
from extract.encoders.protocol import EncoderSetup
from extract.encoders.stored_types import StoredTypes
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.store_cli import main as store_command
from refavs.errors import ConfigError
from refavs.steps import Steps
from refavs.store.pooled import pooled, pooled_path
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from refavs.terminal.command import Exit
from tests.extract.command import in_this_process, run_with

pytestmark = pytest.mark.usefixtures("small_networks")

STREAMS = "tiny-swin/pixel_decoder,tiny-swin/pooled8,tiny-swin@half/pixel_decoder,tiny-swin@half/pooled4"
SETUP = EncoderSetup(weights=WeightSource(kind="random"))


def chosen(*names: str, dtype: str | None = None, seeds: dict[str, int] | None = None) -> StreamSet:
    def setup(name: str) -> EncoderSetup:
        return EncoderSetup(weights=WeightSource(kind="random", seed=(seeds or {}).get(name, 0)))

    return choose_streams(names, Steps(2), setup, types=StoredTypes(dtype))


@pytest.mark.parametrize("dtype", [None, "int8", "float8"])
def test_pooled_level_has_the_means_of_the_stored_values(dtype: str | None) -> None:
    streams = chosen("tiny-swin/pixel_decoder", "tiny-swin/pooled4", dtype=dtype).streams
    source, stream = streams["visual/tiny-swin/pixel_decoder"], streams["visual/tiny-swin/pooled4"]
    rng = np.random.default_rng(0)
    arrays = {f"pixel_decoder/{spec.name}": rng.standard_normal(spec.shape).astype(spec.dtype) for spec in source.given}
    (spec,) = stream.arrays
    assert (spec.name, spec.shape, spec.dtype) == ("mask_features_pooled", (2, 96, 6, 6), "float32")
    assert stream.computed == "pixel_decoder"
    values = torch.from_numpy(source.read_back(arrays)["mask_features"].astype(np.float32))
    found = stream.stored(stream.part(arrays))["mask_features_pooled"]
    assert torch.allclose(torch.from_numpy(found), pooled(values, None, 4), rtol=1e-5, atol=1e-6)


def test_pooled_level_names_the_level_that_it_pools() -> None:
    for dtype in (None, "int8"):
        streams = chosen("tiny-swin/pixel_decoder", "tiny-swin/pooled8", dtype=dtype)
        source, stream = streams.streams["visual/tiny-swin/pixel_decoder"], streams.streams["visual/tiny-swin/pooled8"]
        assert streams.fingerprint(stream) == {**streams.fingerprint(source), "pooled": 8}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny-swin/pooled5", "pools 24 x 24 mask features, which 5 does not divide"),
        ("tiny-swin/pooled0", "has no level 'pooled0'"),
        ("swin-base-imagenet/pooled8", "has no level 'pooled8'"),
        ("vggish/pooled8", "has no level 'pooled8'"),
    ],
)
def test_level_that_cannot_be_pooled_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chosen(name)


def test_names_of_one_encoder_share_it() -> None:
    streams = chosen("tiny-swin/backbone", "tiny-swin@half/backbone", "tiny-swin@other/backbone",
                     seeds={"tiny-swin@other": 1})  # fmt: skip
    assert list(streams.encoders) == ["tiny-swin", "tiny-swin@other"]
    assert [stream.encoder for stream in streams.streams.values()] == ["tiny-swin", "tiny-swin", "tiny-swin@other"]
    assert list(streams.only(["visual/tiny-swin@half/backbone"]).encoders) == ["tiny-swin"]


@pytest.mark.long
def test_store_with_pooled_levels_is_made_in_one_pass_and_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    write_benchmark(tmp_path / "bench", num_clips=2, seed=1, size=96, videos=0)
    passes: list[Any] = []
    features = VisualEncoder.features

    def noted(encoder: VisualEncoder, frames: torch.Tensor, levels: Any) -> Any:
        passes.append(list(levels))
        return features(encoder, frames, levels)

    monkeypatch.setattr(VisualEncoder, "features", noted)
    root = tmp_path / "store"
    names = f"{STREAMS},tiny-vggish,tiny-roberta"
    assert main([str(tmp_path / "bench"), str(root), "--weights", "random", "--streams", names, "--mask-size", "96",
                 "--dtype", "tiny-swin=int8"]) == 0  # fmt: skip
    assert passes == [["pixel_decoder"]] * 2, "a clip passes once for all four streams"
    for name, by, dtype in (("tiny-swin", 8, "int8"), ("tiny-swin@half", 4, "float16")):
        store = FeatureStore(root, use={"visual": name})
        path = f"clips/visual/{name}/pixel_decoder/mask_features"
        spec, found = store.specs[path], pooled_path(store, path, by)
        assert spec.dtype == dtype and found is not None and pooled_path(store, path, 2) is None
        for row in range(2):
            scale = store.read(spec.scale_path, row) if spec.scale_path else None
            assert torch.equal(store.read(found, row), pooled(store.read(path, row), scale, by))
    shard = next((root / "clips/visual/tiny-swin/pooled8").rglob("c.0.0.0.0.0"))
    whole = shard.read_bytes()
    shard.write_bytes(b"\1" + whole[1:])
    assert store_command(["verify", str(root)]) == Exit.FAILURES
    assert store_command(["repair", str(root)]) == 0 and shard.read_bytes() == whole

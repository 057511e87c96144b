"""--dtype: streams that are stored in less than their encoders give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from extract.cli import main
from extract.encoders.mask2former import VisualEncoder
from extract.encoders.stored_types import StoredTypes
from extract.encoders.streams import choose_streams
from extract.media.clip import read_media
from extract.media.forms import Frames
from extract.store_cli import main as store_command
from refavs.data.layouts import read_source
from refavs.errors import ConfigError
from refavs.steps import Steps
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import in_this_process, refusal, run_with, streams_of, tiny

pytestmark = pytest.mark.usefixtures("small_networks")

VISUAL, AUDIO = "visual/tiny-swin/pixel_decoder", "audio/tiny-vggish"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=2, seed=1, size=96, videos=2)
    return root


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, (None, None, None)),
        ("int8", ("int8", "int8", None)),
        ("int8,vggish=float16", ("int8", "int8", "float16")),
        ("visual/swin=float8", ("float8", "float8", None)),
        ("swin/backbone=float8, int8", ("int8", "float8", None)),
        ("swin@other=int8", (None, None, None)),
    ],
)
def test_type_is_chosen_by_the_nearest_name(asked: str | None, expected: tuple[str | None, ...]) -> None:
    types = StoredTypes(asked)
    ids = ("visual/swin/pixel_decoder", "visual/swin/backbone", "audio/vggish")
    assert tuple(types.of(id) for id in ids) == expected


def test_type_is_that_of_the_store_where_none_is_asked_for() -> None:
    known = {"visual/swin": {"dtype": "int8"}, "audio/vggish": {"dtype": "float32"}, "text/roberta": {}}
    assert [StoredTypes(None, known).of(id) for id in (*known, "visual/other")] == ["int8", None, None, None]
    assert StoredTypes("float8", known).of("visual/swin") == "float8"


@pytest.mark.parametrize("asked", ["int4", "visual/swin=", "", "int8,,float8", "swin=float64"])
def test_unknown_type_is_refused(asked: str) -> None:
    with pytest.raises(ConfigError, match="accepted: one of float16, int8, float8 for all visual streams, or STREAM="):
        StoredTypes(asked)


def test_type_of_a_stream_that_the_run_does_not_have_is_refused(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path
) -> None:
    line = refusal(capsys, *tiny(bench, tmp_path / "store", "--dtype", "visual/tiny-swim=int8"))
    assert "--dtype names 'visual/tiny-swim', which is not a stream of this run; did you mean 'visual/tiny-" in line
    assert not (tmp_path / "store").exists()


@pytest.mark.long
def test_store_of_int8_has_half_the_bytes_and_is_completed_as_it_is(
    capsys: pytest.CaptureFixture[str], bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    root = tmp_path / "store"
    arguments = tiny(bench, root)
    assert main([*map(str, arguments), "--dtype", f"int8,{AUDIO}=float16"]) == 0
    store = FeatureStore(root)
    assert [store.schema.streams[id].fingerprint["dtype"] for id in (VISUAL, AUDIO)] == ["int8", "float16"]
    maps = store.specs[f"clips/{VISUAL}/mask_features"]
    assert (maps.dtype, maps.scale) == ("int8", "mask_features_scale") and store[0].audio.dtype == torch.float16
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert "call the new one visual/tiny-swin@NAME/pixel_decoder" in refusal(capsys, *arguments, "--dtype", "float16")

    more = ("--weights", "random", "--streams", "tiny-swin@half/pixel_decoder,tiny-swin@float8/pixel_decoder")
    assert main([*map(str, (bench, root)), *more, "--dtype", "tiny-swin@float8=float8"]) == 0
    sizes = {name: sum(record.arrays[array].num_bytes for record in FeatureStore(root).records
                       if record.table == f"visual/{name}/pixel_decoder" for array in record.arrays)
             for name in ("tiny-swin", "tiny-swin@half", "tiny-swin@float8")}  # fmt: skip
    assert sizes["tiny-swin"] <= 0.52 * sizes["tiny-swin@half"] >= sizes["tiny-swin@float8"]
    half = FeatureStore(root, {"visual": "tiny-swin@half"})[0].visual["mask_features"].float()
    for name, least, most in (("tiny-swin", 1e-4, 0.02), ("tiny-swin@float8", 0.01, 0.04)):
        found = FeatureStore(root, {"visual": name})[0].visual["mask_features"]
        assert least < float((found - half).norm() / half.norm()) < most
    capsys.readouterr()
    assert store_command(["info", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "dtype int8" in shown and "dtype float8" in shown and "float8_e4m" in shown
    assert store_command(["verify", str(root)]) == 0
    assert store_command(["drop", str(root), VISUAL]) == 0 and not (root / "clips" / VISUAL).exists()


@pytest.mark.long
def test_prediction_reads_the_values_that_training_reads(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(monkeypatch, in_this_process)
    assert main([*map(str, tiny(bench, tmp_path / "store")), "--dtype", "int8"]) == 0
    store = FeatureStore(tmp_path / "store")
    encoder = streams_of().encoders["tiny-swin"]
    assert isinstance(encoder, VisualEncoder) and isinstance(encoder.takes, Frames)
    takes, setup = encoder.takes, encoder.setup
    known = {id: stream.fingerprint for id, stream in store.schema.streams.items()}
    chosen = choose_streams(["tiny-swin/pixel_decoder"], Steps(10), lambda name: setup, types=StoredTypes(known=known))
    stream = chosen.streams[VISUAL]
    assert chosen.fingerprint(stream) == known[VISUAL]
    clip = next(clip for clip in read_source(bench, None, None).clips if clip.id == store[0].clip_id)
    frames = read_media(clip, Steps(10), {takes}, ()).taken(takes)
    found = stream.read_back(encoder.encode([encoder.prepare(frames)], ["pixel_decoder"])[0])
    for name, values in store[0].visual.items():
        np.testing.assert_array_equal(found[name], values.numpy())

"""Arrays of one byte a value: what is lost, how others read them, and that every reader here gets their values."""

import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refavs.choices import StoredType
from refavs.data.batches import batches, collate
from refavs.data.maps import Maps
from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec
from refavs.store.fingerprints import fingerprint_of
from refavs.store.format.quantised import dequantised, quantise, stored_as, stored_rows
from refavs.store.hdf5.exchange import export, import_
from refavs.store.verify import verify
from tests.refavs import small_store as small

TYPES: tuple[StoredType, ...] = ("int8", "float8")


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here loses power, and fsync is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def streams_as(dtype: StoredType, *ids: str) -> dict[str, StreamSpec]:
    """The streams of the small store, some of them with another type."""
    return {id: replace(spec, arrays=stored_as(spec.arrays, dtype), fingerprint=spec.fingerprint | {"dtype": dtype})
            if id in ids else spec for id, spec in small.STREAMS.items()}  # fmt: skip


def write_store(root: str | Path, dtype: StoredType) -> None:
    """The small store with all streams in that type, each row rounded from the values that it has there."""
    streams = streams_as(dtype, *small.STREAMS)
    with pytest.MonkeyPatch.context() as patch:
        row_of = small.row_of
        patch.setattr(small, "row_of", lambda key, specs: stored_rows(row_of(key, _given(specs)), specs))
        small.write_store(root, streams=streams)


def _given(specs: Any) -> list[ArraySpec]:
    """The arrays before they were quantised."""
    return [replace(spec, dtype="float32", scale=None, number_format=None) if spec.scale else spec
            for spec in specs if not spec.name.endswith("_scale")]  # fmt: skip


@pytest.fixture(scope="module", params=TYPES)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / request.param
    write_store(path, request.param)
    return path


def spec_of(shape: tuple[int, ...], axis: int, dtype: StoredType) -> ArraySpec:
    axes = tuple("c" if place == axis else f"a{place}" for place in range(len(shape)))
    return stored_as([ArraySpec(name="x", shape=shape, dtype="float32", axes=axes)], dtype)[0]


@pytest.mark.long
@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=30, deadline=None)
@given(
    values=arrays.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]), arrays.array_shapes(min_dims=1, max_dims=4, max_side=5),
        elements=st.floats(-60000, 60000, width=16) | st.sampled_from([0.0, 2.0**-24]),
    ),
    data=st.data(),
)  # fmt: skip
def test_value_is_within_half_a_step_of_what_it_was(dtype: StoredType, values: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, values.ndim - 1))
    spec = spec_of(values.shape, axis, dtype)
    stored, scale = quantise(values, spec)
    found = dequantised(torch.from_numpy(stored), torch.from_numpy(scale), axis).numpy()
    step = np.moveaxis(np.zeros(values.shape), axis, -1) + scale
    step = np.moveaxis(step, -1, axis)
    magnitude = np.abs(values.astype(np.float64))
    # e4m3 has 3 bits behind the first one, and below 2^-6 steps of 2^-9.
    allowed = step / 2 if dtype == "int8" else np.maximum(magnitude * 2.0**-4, step * 2.0**-10)
    assert (np.abs(found - values.astype(np.float64)) <= allowed * (1 + 1e-5) + 1e-37).all()
    assert (found[values == 0] == 0).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_values_beyond_float16_are_kept(dtype: StoredType) -> None:
    values = np.array([[1e6, -3e30, 0.0], [-2.5e5, 1e30, 0.0]], np.float32)
    stored, scale = quantise(values, spec_of(values.shape, 1, dtype))
    found = dequantised(torch.from_numpy(stored), torch.from_numpy(scale), 1).numpy()
    np.testing.assert_allclose(found, values, rtol=0.06)
    assert scale[2] == 0 and not found[:, 2].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", *TYPES])
def test_value_that_is_not_finite_fails_its_row_alone(tmp_path: Path, dtype: StoredType, bad: float) -> None:
    specs = stored_as([ArraySpec(name="x", shape=(2, 3), dtype="float32", axes=("t", "c"))], dtype)
    specs = (replace(specs[0], statistics=True), *specs[1:])
    writer = StoreWriter.open(tmp_path / "s", StoreSchema(
        streams={"visual/a": StreamSpec(fingerprint={}, arrays=specs, rows_per_shard=2)}, source="", seconds=2,
        fps=1.0, mask_size=8, objects_per_shard=1,
    ))  # fmt: skip
    (plan,) = writer.plan("visual/a", [["bad", "good"]])
    assert plan is not None
    values = np.ones((2, 3), np.float32)
    values[1, 2] = bad
    with writer.shard(plan) as shard:
        with pytest.raises(StoreError, match="visual/a/x of 'bad' holds values that are infinite or not a number"):
            shard.write("bad", stored_rows({"x": values}, specs))
        shard.fail("bad", "refused")
        shard.write("good", stored_rows({"x": np.ones((2, 3), np.float32)}, specs))
    assert writer.committed("visual/a") == {"good": 1}


def test_value_too_large_for_float16_becomes_infinite_without_a_warning() -> None:
    """The writer refuses it, as it does in the test above."""
    specs = stored_as([ArraySpec(name="x", shape=(1, 1), dtype="float32", axes=("t", "c"))], "float16")
    assert np.isinf(stored_rows({"x": np.array([[65_520]], np.float32)}, specs)["x"]).all()


def test_statistics_are_those_of_the_values_that_are_read(root: Path) -> None:
    store = FeatureStore(root)
    for path in (small.MAPS, small.AUDIO):
        rows = sorted(set(store.rows_of(store.specs[path].table).tolist()))
        spec = store.specs[path]
        scales = f"{path}_scale"
        values = np.stack([dequantised(store.read(path, row), store.read(scales, row), spec.channel_axis).numpy()
                           for row in rows]).astype(np.float64)  # fmt: skip
        values = np.moveaxis(values, 1 + spec.channel_axis, 0).reshape(spec.shape[spec.channel_axis], -1)
        mean, std = store.statistics[path]
        np.testing.assert_allclose(mean, values.mean(1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(std, values.std(1), rtol=1e-5)


@pytest.mark.parametrize("path", [small.MAPS, small.AUDIO])
def test_third_party_gets_the_values_as_number_times_scale(root: Path, path: str) -> None:
    store = FeatureStore(root)
    (row,) = store.rows(path, [store.facts[0]["clip"]])
    expected = (store[0].visual["mask_features"] if path == small.MAPS else store[0].audio).numpy()

    def tensor(name: str) -> np.ndarray:
        kvstore = {"driver": "file", "path": str(root / name)}
        return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()[row].read().result()

    group: Any = zarr.open_group(str(root), mode="r")
    attributes = group[path].attrs
    scale = f"{path.rpartition('/')[0]}/{attributes['scale']}"
    for numbers, factor in ((group[path][row], group[scale][row]), (tensor(path), tensor(scale))):
        if "number_format" in attributes:
            numbers = np.asarray(numbers).view(getattr(ml_dtypes, str(attributes["number_format"]))).astype(np.float32)
        values = numbers * np.asarray(factor).reshape(-1, *(1,) * (2 if path == small.MAPS else 0))
        np.testing.assert_array_equal(values, expected)
        assert np.asarray(numbers).dtype == np.float32 or np.asarray(numbers).dtype == np.int8


def test_batch_stays_quantised_until_its_values_are_asked_for(root: Path) -> None:
    store = FeatureStore(root)
    (batch,) = batches(store, [0, 1, 2], 3)
    maps = batch.to("cpu").visual
    assert isinstance(maps, Maps) and {one.element_size() for one in maps.stored.values()} == {1}
    expected = collate([store[index] for index in (0, 1, 2)])
    assert maps.keys() == expected.visual.keys() == {"mask_features", "s8"}
    for name, values in expected.visual.items():
        assert values.dtype == torch.float32 and torch.equal(maps[name], values)
    assert torch.equal(batch.audio, expected.audio) and torch.equal(batch.text, expected.text)
    part = maps.part(["s8"], torch.tensor([2, 0]))
    assert [*part] == ["s8"] and torch.equal(part["s8"], maps["s8"][:, [2, 0]])


@pytest.mark.long
def test_verify_and_exchange_keep_numbers_and_scales(root: Path, tmp_path: Path) -> None:
    assert not verify(root).damage
    export(root, tmp_path / "out.h5")
    import_(tmp_path / "out.h5", tmp_path / "back")
    assert small.files_of(tmp_path / "back") == small.files_of(root)
    record = next((root / "clips/visual/swin/pixel_decoder/s8_scale").glob("c.0*"))
    data = record.read_bytes()
    try:
        record.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert [damage.where for damage in verify(root).damage] == [record.relative_to(root).as_posix()]
        with pytest.raises(StoreError, match="s8_scale"):
            FeatureStore(root)[0]
    finally:
        record.write_bytes(data)


def test_remote_store_gives_the_same_batches(root: Path) -> None:
    remote = f"memory://{secrets.token_hex(6)}"
    write_store(remote, "int8" if root.name == "int8" else "float8")
    ours, theirs = FeatureStore(root), FeatureStore(remote)
    assert theirs.fingerprint == ours.fingerprint and not verify(remote).damage
    for one, other in zip(batches(ours, range(4), 3), batches(theirs, range(4), 3), strict=True):
        assert all(torch.equal(one.visual[name], other.visual[name]) for name in one.visual)
        assert torch.equal(one.audio, other.audio) and torch.equal(one.text, other.text)


def test_trial_key_depends_on_the_scales(root: Path) -> None:
    store = FeatureStore(root)
    assert fingerprint_of(store, [small.MAPS]) == fingerprint_of(store, [small.MAPS, f"{small.MAPS}_scale"])
    assert store.schema.with_scales(small.MAPS) == [small.MAPS, f"{small.MAPS}_scale"]


def test_other_type_of_the_same_encoder_is_another_stream(root: Path) -> None:
    with pytest.raises(StoreError, match=r"dtype=.*keep both and call the new one .*@NAME"):
        small.open_writer(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"scale": "gone"}, "scale='gone', which is not a float32"), ({"dtype": "int16"}, "accepted: int8, or uint8"),
     ({"number_format": "bfloat16"}, "accepted: int8, or uint8"), ({"axes": ("t", "d")}, "must be called 'c'")],
)  # fmt: skip
def test_array_that_cannot_be_dequantised_is_refused(changes: dict[str, Any], message: str) -> None:
    spec, scale = stored_as([ArraySpec(name="x", shape=(2, 3), dtype="float32", axes=("t", "c"))], "int8")
    with pytest.raises(StoreError, match=message):
        StreamSpec(fingerprint={}, arrays=(replace(spec, **changes), scale), rows_per_shard=1)


def test_plain_mapping_is_not_quantised() -> None:
    maps = Maps.of({"s8": torch.ones(1, 2, 3, 4, 5)})
    assert Maps.of(maps) is maps and len(maps) == 1 and torch.equal(maps["s8"], torch.ones(1, 2, 3, 4, 5))

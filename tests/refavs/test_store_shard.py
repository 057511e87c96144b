"""Shard files are standard Zarr v3: zarr-python and tensorstore read what was written, bit for bit."""

import json
import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refavs.errors import StoreError
from refavs.store import ArraySpec, FeatureStore, StreamSpec, pack_mask, unpack_mask
from refavs.store.backends.base import LocalFolder
from refavs.store.format.array_spec import DTYPES
from refavs.store.format.checksum import crc32c
from refavs.store.format.shard import ALIGNMENT_BYTES, ShardFacts, ShardFile, ShardReader, shard_name
from refavs.store.format.zarr_metadata import array_metadata
from tests.refavs import small_store as small


def open_tensorstore(root: Path, path: str) -> tensorstore.TensorStore:
    kvstore = {"driver": "file", "path": str(root / path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()


def read_all(root: Path, path: str) -> list[np.ndarray]:
    """The array as zarr-python and as tensorstore read it."""
    group = zarr.open_group(str(root), mode="r")
    return [np.asarray(group[path][...]), open_tensorstore(root, path).read().result()]


@pytest.mark.parametrize(
    "path", [small.MAPS, small.COARSE, small.AUDIO, small.FEATURES, small.VALID, "objects/mask", "objects/labelled"]
)
def test_store_is_read_by_zarr_and_tensorstore(built: Path, path: str) -> None:
    store = FeatureStore(built)
    spec = store.specs[path]
    table, keys = spec.table, store._places
    rows = [row for name, row in keys if name == table]
    for found in read_all(built, path):
        assert found.shape[0] == max(rows) + 1
        for row in rows:
            expected = small.row_of(keys[table, row][1], [spec])[spec.name]
            np.testing.assert_array_equal(found[row], expected)
            np.testing.assert_array_equal(store.read(path, row).numpy(), expected)


def test_store_names_its_rows_and_statistics_for_other_readers(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", failing=["c"])
    group = zarr.open_group(str(tmp_path / "s"), mode="r")
    ids = ["".join(map(chr, row)).rstrip("\0") for row in group["clips/id"][...]]
    assert ids == list(small.CLIPS)
    np.testing.assert_array_equal(group["clips/visual/swin/pixel_decoder/row"][...], [0, 1, -1, 3, 4])
    np.testing.assert_array_equal(group["clips/audio/vggish/row"][...], range(5))
    np.testing.assert_array_equal(group["objects/clip"][...], range(5))
    rows = open_tensorstore(tmp_path / "s", "text/text").read().result()
    assert [bytes(row).rstrip(b"\0").decode() for row in rows] == list(small.TEXTS)
    order = open_tensorstore(tmp_path / "s", "text/roberta/row").read().result()
    for row, text in zip(order, small.TEXTS, strict=True):
        expected = small.row_of(small.text_key(text), small.STREAMS[small.TEXT].arrays)["features"]
        np.testing.assert_array_equal(group[small.FEATURES][row], expected)
    store = FeatureStore(tmp_path / "s")
    np.testing.assert_array_equal(group[small.AUDIO].attrs["statistics"]["mean"], store.statistics[small.AUDIO][0])
    assert group.attrs["fingerprint"] == store.fingerprint
    assert group[small.MAPS].metadata.dimension_names == ("row", "t", "c", "h", "w")
    assert group["clips/audio/vggish"].attrs["fingerprint"] == store.encoders[small.SOUND]


def test_hole_reads_as_zeros_and_its_neighbours_are_whole(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", failing=["b"])
    for found in read_all(tmp_path / "s", small.MAPS):
        assert not found[1].any()
        for row, key in ((0, "a"), (2, "c"), (3, "d"), (4, "e")):
            expected = small.row_of(small.content_key(small.VISUAL, key), small.STREAMS[small.VISUAL].arrays)
            np.testing.assert_array_equal(found[row], expected["mask_features"])


@pytest.mark.long
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_type_and_shard_size_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("store") / "s"
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="shape"))
    dtype = data.draw(st.sampled_from(DTYPES), label="type")
    spec = ArraySpec(name="x", shape=shape, dtype=dtype, axes=tuple("thwx"[: len(shape)]), table="audio/x")
    per_shard = data.draw(st.integers(1, 5), label="rows per shard")
    keys = [f"k{number:02d}" for number in range(data.draw(st.integers(1, 9), label="keys"))]
    failing = data.draw(st.sets(st.sampled_from(keys), max_size=len(keys) - 1), label="failing")
    stream = StreamSpec(fingerprint={}, arrays=(spec,), rows_per_shard=per_shard)
    writer = small.open_writer(root, streams={"audio/x": stream})
    small.write_rows(writer, "audio/x", keys, tuple(failing))
    writer.finalise()
    store, rows = FeatureStore(root), writer.committed("audio/x")
    assert set(rows) == set(keys) - failing
    found = read_all(root, spec.path)
    for key, row in rows.items():
        expected = small.row_of(key, [spec])["x"]
        for array in found:
            np.testing.assert_array_equal(array[row], expected)
        np.testing.assert_array_equal(store.read(spec.path, row).numpy(), expected)
    for array in found:
        holes = set(range(len(array))) - set(rows.values())
        assert not any(array[row].any() for row in holes)


def write_elsewhere(writer: str, path: Path, rows: np.ndarray, order: list[int]) -> None:
    """Fills the array at `path` through another library, row by row in `order` or, where that is empty, at once."""
    array = zarr.open_array(str(path), mode="r+") if writer == "zarr" else tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()  # fmt: skip
    for part in [slice(row, row + 1) for row in order] or [slice(None)]:
        array[part] = rows[part]


def scattered(rows: np.ndarray, num_places: int, rng: np.random.Generator) -> bytes:
    """A shard file as no library writes it, which the format permits: rows in any order with any bytes in between."""
    index, data = np.full((num_places, 2), 2**64 - 1, "<u8"), b""
    for place in rng.permutation(len(rows)):
        data += rng.bytes(int(rng.integers(0, 9)))
        row = rows[place].tobytes()
        index[place] = len(data), len(row) + 4
        data += row + crc32c(row).to_bytes(4, "little")
    data += rng.bytes(int(rng.integers(0, 9))) + index.tobytes()
    return data + crc32c(index).to_bytes(4, "little")


@pytest.mark.long
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_shards_of_other_writers_are_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("store")
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4), label="shape"))
    dtype = data.draw(st.sampled_from(DTYPES), label="type")
    spec = ArraySpec(name="x", shape=shape, dtype=dtype, axes=tuple("thwx"[: len(shape)]), table="audio/x")
    size, count = data.draw(st.integers(1, 5), label="rows per shard"), data.draw(st.integers(1, 9), label="rows")
    rows = np.stack([small.row_of(f"k{row}", [spec])["x"] for row in range(count)])
    rows.reshape(count, -1)[:, 0] = 1  # an empty row would be left out
    folder = LocalFolder(root)
    folder.write(f"{spec.path}/zarr.json", array_metadata(spec, size, count))
    writer = data.draw(st.sampled_from(["zarr", "tensorstore", "by hand"]), label="writer")
    if writer == "by hand":
        rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
        for index, start in enumerate(range(0, count, size)):
            folder.write(shard_name(spec, index), scattered(rows[start : start + size], size, rng))
    else:
        order = data.draw(st.permutations(range(count)), label="order") if data.draw(st.booleans()) else []
        write_elsewhere(writer, root / spec.path, rows, order)
    for index, start in enumerate(range(0, count, size)):
        file = folder.read(shard_name(spec, index))
        sums = {place: crc32c(row) for place, row in enumerate(rows[start : start + size])}
        facts = ShardFacts(num_bytes=len(file), crc32c=crc32c(file), rows=sums)
        shard = ShardReader(folder, shard_name(spec, index), spec, size, facts)
        assert shard.file_crc32c() == facts.crc32c
        for place in sums:
            np.testing.assert_array_equal(shard.read(place, "always").numpy(), rows[start + place])
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    folder.write("zarr.json", json.dumps(group).encode())
    for found in read_all(root, spec.path):
        np.testing.assert_array_equal(found, rows)


def test_zarr_itself_finds_a_flipped_bit(root: Path) -> None:
    path = root / small.MAPS / "c.0.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(str(root), mode="r")[small.MAPS][0]


def test_rows_are_views_aligned_and_private(built: Path) -> None:
    store = FeatureStore(built)
    before = small.files_of(built)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = store.read(small.MAPS, 1), store.read(small.MAPS, 1)
    assert first.data_ptr() == second.data_ptr() and first.data_ptr() % ALIGNMENT_BYTES == 0
    first.zero_()
    assert not second.any(), "two reads are views of the same bytes"
    assert small.files_of(built) == before
    del store
    assert first.shape == (3, 4, 5, 6) and second.dtype == torch.float16


def test_mapping_keeps_no_file_open(built: Path) -> None:
    store = FeatureStore(built)
    before = len(os.listdir("/proc/self/fd"))
    rows = [store.read(path, row) for path in (small.MAPS, small.COARSE) for row in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before and len(rows) == 10


def test_writing_holds_no_more_than_a_row(tmp_path: Path) -> None:
    row = np.zeros((4, 1 << 18), np.float32)
    tracemalloc.start()
    file = ShardFile(LocalFolder(tmp_path), "c.0.0.0", 16)
    for place in range(16):
        file.append(place, row)
    facts = file.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    file.publish()
    assert facts.num_bytes > 16 * row.nbytes and peak < row.nbytes / 4


def test_checksum_of_the_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = ShardFile(LocalFolder(tmp_path), "x/c.0.0", 40)
    for place in rng.permutation(40)[:33]:
        file.append(int(place), rng.integers(0, 256, (3, 300_001), dtype=np.uint8))
    facts = file.finish()
    file.publish()
    written = (tmp_path / "x/c.0.0").read_bytes()
    assert (facts.num_bytes, facts.crc32c) == (len(written), crc32c(written)) and len(facts.rows) == 33


def test_shard_of_another_length_or_index_is_refused(tmp_path: Path) -> None:
    spec = ArraySpec(name="x", shape=(5,), dtype="float32", axes=("t",))
    path = tmp_path / "c.0.0"
    folder = LocalFolder(tmp_path)
    file = ShardFile(folder, path.name, 3)
    file.append(1, np.arange(5, dtype=np.float32))
    facts = file.finish()
    file.publish()
    whole = path.read_bytes()
    assert ShardReader(folder, path.name, spec, 3, facts).read(1, "always").tolist() == [0, 1, 2, 3, 4]
    path.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match=rf"has {len(whole) - 1} bytes, its commit record says {len(whole)}"):
        ShardReader(folder, path.name, spec, 3, facts)
    path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 4]) + whole[-29:])
    with pytest.raises(StoreError, match=r"the index of shard .* is damaged: its checksum"):
        ShardReader(folder, path.name, spec, 3, facts)


def test_metadata_is_zarr_v3_with_checksums_and_no_compression(built: Path) -> None:
    metadata = json.loads((built / small.MAPS / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed" and sharding["configuration"]["chunk_shape"] == [1, 3, 4, 5, 6]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("width", [1, 7, 8, 9, 24])
def test_packed_mask_comes_back(width: int) -> None:
    mask = np.random.default_rng(width).random((3, 5, width)) > 0.5
    packed = pack_mask(mask)
    assert packed.shape == (3, 5, -(-width // 8))
    np.testing.assert_array_equal(unpack_mask(packed, width), mask)

"""Readers and writers of the same clips that `bench_store.py` compares: refavs, tensorstore, zarr-python, h5py, NumPy.

Each reader is opened once and fills the rows of one preallocated batch in the fastest way that its library was found to
offer; where the plain way is much slower, it is there too.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import cpu

from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec

STREAM, MAPS = "visual/bench", "clips/visual/bench/maps"
Reader = Callable[[Sequence[int]], None]


def spec_of(shape: tuple[int, ...], statistics: bool) -> ArraySpec:
    """The array of clips of `shape` (t, c, h, w) in fp16."""
    return ArraySpec(name="maps", shape=shape, dtype="float16", axes=("t", "c", "h", "w"), statistics=statistics)


def open_store(root: Path, shape: tuple[int, ...], rows_per_shard: int, statistics: bool = False) -> StoreWriter:
    """The writer of a store that holds nothing but the maps of clips."""
    stream = StreamSpec(fingerprint={}, arrays=(spec_of(shape, statistics),), rows_per_shard=rows_per_shard)
    return StoreWriter.open(root, StoreSchema(
        streams={STREAM: stream}, source="benchmark", seconds=shape[0], fps=1.0, mask_size=shape[-1],
        objects_per_shard=1,
    ))  # fmt: skip


def write_store(writer: StoreWriter, clips: Sequence[np.ndarray]) -> None:
    """Writes `clips` as rows 0, 1, ..."""
    names = {f"clip{row:05d}": clip for row, clip in enumerate(clips)}
    size, keys = writer.schema.tables[STREAM].rows_per_shard, list(names)
    for plan in filter(None, writer.plan(STREAM, [keys[at : at + size] for at in range(0, len(keys), size)])):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, {"maps": names[key]})


def tensorstore_spec(path: Path, num_rows: int, shape: tuple[int, ...], rows_per_shard: int) -> dict[str, Any]:
    """A sharded array like ours, without checksums of the rows."""
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    shards = {"chunk_shape": [1, *shape], "codecs": index[:1], "index_codecs": index}
    metadata = {
        "shape": [num_rows, *shape], "data_type": "float16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows_per_shard, *shape]}},
        "codecs": [{"name": "sharding_indexed", "configuration": shards}],
    }  # fmt: skip
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}


def write_files(folder: Path, clips: np.ndarray, rows_per_shard: int) -> None:
    """The same clips as our store, as shards without checksums, as HDF5 and as plain bytes."""
    shape = clips.shape[1:]
    write_store(open_store(folder / "store", shape, rows_per_shard), clips)  # pyright: ignore
    bare = tensorstore.open(tensorstore_spec(folder / "bare", len(clips), shape, rows_per_shard), create=True).result()
    for start in range(0, len(clips), rows_per_shard):
        stop = min(start + rows_per_shard, len(clips))
        bare[start:stop].write(clips[start:stop]).result()
    with h5py.File(folder / "clips.h5", "w") as file:
        file.create_dataset("clips", data=clips, chunks=(1, *shape))
    clips.tofile(folder / "clips.raw")


def readers(folder: Path, batch: np.ndarray, num_rows: int, clips: np.ndarray) -> dict[str, Reader]:
    """Functions that read rows into the head of `batch`, by name; the last two copy from memory and are the limit."""
    shape = batch.shape[1:]
    file = h5py.File(folder / "clips.h5", "r")["clips"]
    mapped = np.memmap(folder / "clips.raw", np.float16, "r", shape=(num_rows, *shape))
    target = torch.from_numpy(batch)

    def hdf5(rows: Sequence[int]) -> None:
        for place, row in enumerate(rows):
            file.read_direct(batch, np.s_[row], np.s_[place])

    def memmap(rows: Sequence[int]) -> None:
        for place, row in enumerate(rows):
            batch[place] = mapped[row]

    def memcpy(rows: Sequence[int]) -> None:
        for place, row in enumerate(rows):
            batch[place] = clips[row]

    pool = ThreadPoolExecutor(torch.get_num_threads())

    def memcpy_threads(rows: Sequence[int]) -> None:
        list(pool.map(lambda place: np.copyto(batch[place], clips[rows[place]]), range(len(rows))))

    return {
        **{f"refavs, {verify}": _refavs(folder / "store", verify, target) for verify in ("never", "first", "always")},
        "np.memmap, copy": memmap,
        "h5py, read_direct": hdf5,
        **_tensorstore(folder / "store" / MAPS, "tensorstore", batch),
        **_tensorstore(folder / "bare", "tensorstore, no checksums", batch),
        **_zarr(folder / "store" / MAPS, "zarr-python", batch),
        **_zarr(folder / "bare", "zarr-python, no checksums", batch),
        "memory, one thread": memcpy,
        "memory, all threads": memcpy_threads,
    }


def _refavs(root: Path, verify: str, target: torch.Tensor) -> Reader:
    store = FeatureStore(root, verify=verify)

    def read(rows: Sequence[int]) -> None:
        store.read_rows({MAPS: rows}, lambda shape, dtype: target[: len(rows)])  # as training does

    return read


def _tensorstore(path: Path, name: str, batch: np.ndarray) -> dict[str, Reader]:
    """Plain reads in flight at once, then copied; and `tensorstore.array`, which writes into the batch itself."""
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    array = open_tensorstore(path, context)

    def plain(rows: Sequence[int]) -> None:
        for place, found in enumerate([array[row].read() for row in rows]):
            batch[place] = found.result()

    def direct(rows: Sequence[int]) -> None:
        target = tensorstore.array(batch)
        for done in [target[place].write(array[row]) for place, row in enumerate(rows)]:
            done.result()

    return {f"{name}, read": plain, f"{name}, into array": direct}


def open_tensorstore(path: Path, context: tensorstore.Context | None = None) -> Any:
    """An array on this disk, for reading."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, read=True, context=context or tensorstore.Context()).result()


def _zarr(path: Path, name: str, batch: np.ndarray) -> dict[str, Reader]:
    array = zarr.open_array(str(path), mode="r")
    targets = [cpu.NDBuffer.from_numpy_array(batch[place : place + 1]) for place in range(len(batch))]

    def plain(rows: Sequence[int]) -> None:
        for place, row in enumerate(rows):
            batch[place] = array[row]

    def direct(rows: Sequence[int]) -> None:
        for place, row in enumerate(rows):
            array.get_basic_selection(slice(row, row + 1), out=targets[place])

    return {f"{name}, read": plain, f"{name}, out": direct}


def write_raw(path: Path, clips: Sequence[np.ndarray]) -> None:
    """Plain bytes, one clip after the other, then fsync."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    for clip in clips:
        left = memoryview(clip.reshape(-1).view(np.uint8))
        while left:
            left = left[os.write(file, left) :]
    os.fsync(file)
    os.close(file)


def write_zarr(path: Path, clips: Sequence[np.ndarray]) -> None:
    """The whole shard at once, the only way in which zarr-python does not read it back; then fsync, which it omits."""
    shape = clips[0].shape
    array = zarr.create_array(
        str(path), shape=(len(clips), *shape), dtype="float16", chunks=(len(clips), *shape),
        compressors=None, filters=None,
        serializer=ShardingCodec(chunk_shape=(1, *shape), codecs=[BytesCodec(), Crc32cCodec()]),
    )  # fmt: skip
    array[:] = np.stack(clips)
    for found in path.rglob("*"):
        if found.is_file():
            sync_file(found)


def write_tensorstore(path: Path, clips: Sequence[np.ndarray]) -> None:
    """The whole shard with checksums; tensorstore flushes it to the disk itself."""
    spec = tensorstore_spec(path, len(clips), clips[0].shape, len(clips))
    shards = spec["metadata"]["codecs"][0]["configuration"]
    shards["codecs"] = shards["index_codecs"]
    tensorstore.open(spec, create=True).result().write(np.stack(clips)).result()


def sync_file(path: Path) -> None:
    """Flushes a file to the disk."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.close(file)

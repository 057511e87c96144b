"""One shard of one array: a standard Zarr v3 `sharding_indexed` file, streamed row by row and read by mapping it.

A file is the rows one after the other, each followed by its crc32c, and an index at the end (offset and length of each
row, then the index's own crc32c). Rows start at multiples of 64 bytes, which the format permits and which makes every
mapped row an aligned tensor.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import torch
from torch import Tensor

from refavs.errors import StoreError
from refavs.store.files import partial_path, sync_folder, write_all
from refavs.store.schema import ArraySpec

ALIGNMENT_BYTES = 64
CRC_BYTES = 4
_ABSENT = 2**64 - 1


def crc32c(data: np.ndarray | bytes, start: int = 0) -> int:
    """Checksum of `data`, going on from `start`."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    return google_crc32c.extend(start, data)  # pyright: ignore[reportArgumentType] (arrays are taken without a copy)


def shard_path(root: Path, spec: ArraySpec, index: int) -> Path:
    """File of shard `index` of an array; only its first axis is split."""
    return root / spec.path / ".".join(["c", str(index), *("0" for _ in spec.shape)])


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What a commit record keeps of a shard file.

    Attributes:
        num_bytes: length of the file.
        crc32c: checksum of the whole file.
        rows: checksum of the bytes of each row, by its place in the shard.
    """

    num_bytes: int
    crc32c: int
    rows: dict[int, int]


class ShardFile:
    """Writes one shard under a temporary name; memory holds no row after `append` returns."""

    def __init__(self, path: Path, num_places: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._partial = partial_path(path)
        self._index = np.full((num_places, 2), _ABSENT, "<u8")
        self._rows: dict[int, int] = {}
        self._end = 0
        self._crc = 0
        self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def append(self, place: int, row: np.ndarray) -> None:
        """Adds the row that belongs at `place`; the bytes of the file follow the order of the calls."""
        payload = np.ascontiguousarray(row).reshape(-1).view(np.uint8)
        self._write(np.zeros(-self._end % ALIGNMENT_BYTES, np.uint8))
        self._index[place] = self._end, payload.size + CRC_BYTES
        self._rows[place] = crc32c(payload)
        self._write(payload)
        self._write(np.frombuffer(self._rows[place].to_bytes(CRC_BYTES, "little"), np.uint8))

    def finish(self) -> ShardFacts:
        """Adds the index and flushes the file to the disk; it keeps its temporary name until `publish`."""
        self._write(self._index)
        self._write(np.frombuffer(crc32c(self._index).to_bytes(CRC_BYTES, "little"), np.uint8))
        os.fsync(self._file)
        self._close()
        return ShardFacts(num_bytes=self._end, crc32c=self._crc, rows=self._rows)

    def publish(self) -> None:
        """Gives the finished file its name."""
        os.rename(self._partial, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Removes the temporary file, if it is still there."""
        self._close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: np.ndarray) -> None:
        flat = data.reshape(-1).view(np.uint8)
        try:
            write_all(self._file, memoryview(flat))  # pyright: ignore[reportArgumentType] (NumPy's stubs lack __buffer__)
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._crc = crc32c(flat, self._crc)
        self._end += flat.size

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class MappedShard:
    """A committed shard file, mapped; `read` returns views of it.

    The mapping is private: writing into a tensor changes this process's copy of the page and never the store.

    Raises:
        StoreError: the file is missing, of another length than its commit record says, or its index is damaged.
    """

    def __init__(self, path: Path, spec: ArraySpec, num_places: int, facts: ShardFacts) -> None:
        self._spec, self._facts = spec, facts
        self._verified: set[int] = set()
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            raise StoreError(f"shard {path} cannot be read ({error.strerror})") from error
        if num_bytes != facts.num_bytes:
            raise StoreError(f"shard {path} has {num_bytes} bytes, its commit record says {facts.num_bytes}")
        # torch keeps no file descriptor for a mapping; mmap.mmap would keep one for every shard.
        raw = torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8)
        self.raw: np.ndarray = raw.numpy()
        end = num_bytes - CRC_BYTES - num_places * 16
        if end < 0 or crc32c(self.raw[end:-CRC_BYTES]) != _little(self.raw[-CRC_BYTES:]):
            raise StoreError(f"the index of shard {path} is damaged: its checksum does not match")
        self._index = np.frombuffer(self.raw[end:-CRC_BYTES].tobytes(), "<u8").reshape(num_places, 2)
        for place in facts.rows:
            offset, length = (int(value) for value in self._index[place])
            if length != spec.row_bytes + CRC_BYTES or offset + length > end:
                raise StoreError(f"the index of shard {path} is damaged: it has no row of {spec.row_bytes} bytes at "
                                 f"place {place}")

    def check(self, place: int) -> None:
        """Compares the row at `place` with its two checksums, beside it and in the commit record.

        Raises:
            StoreError: they differ.
        """
        start = int(self._index[place, 0])
        stop = start + self._spec.row_bytes
        found, expected = crc32c(self.raw[start:stop]), self._facts.rows[place]
        beside = _little(self.raw[stop : stop + CRC_BYTES])
        if not found == beside == expected:
            raise StoreError(f"its checksum is {found:08x}, the shard says {beside:08x} and the commit record "
                             f"{expected:08x}")

    def read(self, place: int, verify: str) -> Tensor:
        """The row at `place` as a view; `verify` is `first` (on first touch), `always` or `never`."""
        if verify == "always" or (verify == "first" and place not in self._verified):
            self.check(place)
            self._verified.add(place)
        start = int(self._index[place, 0])
        row = np.frombuffer(self.raw.data, self._spec.dtype, self._spec.row_bytes // _itemsize(self._spec), start)
        return torch.from_numpy(row.reshape(self._spec.shape))


def _little(data: np.ndarray) -> int:
    return int.from_bytes(data.tobytes(), "little")


def _itemsize(spec: ArraySpec) -> int:
    return np.dtype(spec.dtype).itemsize

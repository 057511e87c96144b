"""One shard of one array: a standard Zarr v3 `sharding_indexed` file, written row by row and read in place.

A file contains the rows, each followed by its crc32c, and an index at the end (offset and length of each row, then the
index's own crc32c). Rows start at multiples of 64 bytes, which the format permits, so that every mapped row is an
aligned tensor.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from refavs.errors import StoreError
from refavs.files.atomic import write_all
from refavs.store.backends.base import Folder, MappedFile
from refavs.store.format.array_spec import ArraySpec
from refavs.store.format.checksum import crc32c, joined

ALIGNMENT_BYTES = 64
CRC_BYTES = 4
_ABSENT = 2**64 - 1
_PIECE_BYTES = 2**24
_FLUSH_BYTES = 2**23
_PAGE_BYTES = 2**12
SMALL_BYTES = 2**18  # smaller rows are read through the memory map
READ_BYTES = 2**23  # size of one read request


def shard_name(spec: ArraySpec, index: int) -> str:
    """File name of shard `index` of an array; only the first axis is split."""
    return f"{spec.path}/{'.'.join(['c', str(index), *('0' for _ in spec.shape)])}"


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """The facts about a shard file in its commit record.

    Attributes:
        num_bytes: length of the file.
        crc32c: checksum of the whole file.
        rows: checksum of each row's bytes, by place in the shard.
    """

    num_bytes: int
    crc32c: int
    rows: dict[int, int]


class ShardFile:
    """Writes one shard under a temporary name; keeps no row in memory after `append` returns."""

    def __init__(self, folder: Folder, name: str, num_places: int) -> None:
        self.name = name
        self._folder = folder
        self._partial = folder.scratch(name)
        self._index = np.full((num_places, 2), _ABSENT, "<u8")
        self._rows: dict[int, int] = {}
        self._end = 0
        self._flushed = 0
        self._crc = 0
        self._file = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)

    def append(self, place: int, row: np.ndarray) -> None:
        """Appends the row for `place`; rows are stored in the order of the calls."""
        payload = np.ascontiguousarray(row).reshape(-1).view(np.uint8)
        self._write(np.zeros(-self._end % ALIGNMENT_BYTES, np.uint8))
        self._index[place] = self._end, payload.size + CRC_BYTES
        self._rows[place] = crc32c(payload)
        self._write(payload, self._rows[place])
        self._write(np.frombuffer(self._rows[place].to_bytes(CRC_BYTES, "little"), np.uint8))
        if self._end - self._flushed >= _FLUSH_BYTES:
            self._start_flush()

    def finish(self) -> ShardFacts:
        """Appends the index and flushes the file to disk; it keeps its temporary name until `publish`."""
        self._write(self._index)
        self._write(np.frombuffer(crc32c(self._index).to_bytes(CRC_BYTES, "little"), np.uint8))
        os.fsync(self._file)
        self._close()
        return ShardFacts(num_bytes=self._end, crc32c=self._crc, rows=self._rows)

    def publish(self) -> None:
        """Renames the finished file to its final name."""
        self._folder.publish(self._partial, self.name)

    def discard(self) -> None:
        """Removes the temporary file, if it still exists."""
        self._close()
        self._partial.unlink(missing_ok=True)

    def _write(self, data: np.ndarray, crc: int | None = None) -> None:
        """Appends `data`; `crc` is its checksum, if already known."""
        flat = data.reshape(-1).view(np.uint8)
        try:
            write_all(self._file, memoryview(flat))  # pyright: ignore[reportArgumentType] (NumPy's stubs lack __buffer__)
        except OSError as error:
            error.filename = self._folder.where(self.name)
            raise
        self._crc = crc32c(flat, self._crc) if crc is None else joined(self._crc, crc, flat.size)
        self._end += flat.size

    def _start_flush(self) -> None:
        """Makes the kernel start writing complete rows while the next row is computed."""
        stop = self._end - self._end % _PAGE_BYTES
        # This advice drops pages that are already on disk and starts writing the others.
        os.posix_fadvise(self._file, self._flushed, stop - self._flushed, os.POSIX_FADV_DONTNEED)
        self._flushed = stop

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class ShardReader:
    """A committed shard file; `read` returns views if the file is memory-mapped.

    Raises:
        StoreError: the file is missing, its length differs from the commit record, or its index is damaged.
    """

    def __init__(self, folder: Folder, name: str, spec: ArraySpec, num_places: int, facts: ShardFacts) -> None:
        self._spec, self._facts = spec, facts
        self._verified: set[int] = set()
        where = folder.where(name)
        try:
            self._blob = folder.open(name)
            if self._blob.num_bytes != facts.num_bytes:
                raise StoreError(f"shard {where} has {self._blob.num_bytes} bytes, its commit record says "
                                 f"{facts.num_bytes}")
            end = facts.num_bytes - CRC_BYTES - num_places * 16
            tail = self._blob.read(max(end, 0), facts.num_bytes)
        except OSError as error:
            raise StoreError(f"shard {where} cannot be read ({error.strerror or error})") from error
        if end < 0 or crc32c(tail[:-CRC_BYTES]) != _little(tail[-CRC_BYTES:]):
            raise StoreError(f"the index of shard {where} is damaged: its checksum does not match")
        self._index = np.frombuffer(tail[:-CRC_BYTES].tobytes(), "<u8").reshape(num_places, 2)
        for place in facts.rows:
            offset, length = (int(value) for value in self._index[place])
            if length != spec.row_bytes + CRC_BYTES or offset + length > end:
                raise StoreError(f"the index of shard {where} is damaged: it has no row of {spec.row_bytes} bytes at "
                                 f"place {place}")

    @property
    def order(self) -> list[int]:
        """The places that have rows, in the order of the file."""
        return sorted(self.offsets, key=self.offsets.__getitem__)

    @property
    def offsets(self) -> dict[int, int]:
        """Offset of the row of each place."""
        return {place: int(self._index[place, 0]) for place in self._facts.rows}

    def check(self, place: int) -> None:
        """Compares the row at `place` with its two checksums, in the shard and in the commit record.

        Raises:
            StoreError: they differ.
        """
        data = self._bytes(place)
        self._compare(place, data[:-CRC_BYTES], data[-CRC_BYTES:])

    def read(self, place: int, verify: str) -> Tensor:
        """Reads the row at `place`; `verify` is `first` (on first read), `always` or `never`.

        Raises:
            StoreError: its checksum differs, or it cannot be read.
        """
        data = self._bytes(place)
        row = data[:-CRC_BYTES]
        self._check_once(place, row, data[-CRC_BYTES:], verify)
        # Rows of other writers may be unaligned, which a tensor does not allow.
        row = row if row.ctypes.data % np.dtype(self._spec.dtype).itemsize == 0 else row.copy()
        return torch.from_numpy(row.view(self._spec.dtype).reshape(self._spec.shape))

    def readers(self, place: int, out: UInt8[np.ndarray, " b"]) -> list[Callable[[], None]]:
        """Calls that together read the row at `place` into `out`, in any order; empty if copying from the map is best.

        A map is read page by page on access, in one thread and, on many disks, at a fraction of their speed.
        """
        blob, start, num_bytes = self._blob, int(self._index[place, 0]), self._spec.row_bytes
        if not isinstance(blob, MappedFile) or num_bytes < SMALL_BYTES:
            return []
        with _readable():
            if not blob.is_cold(start, start + num_bytes):
                return []

        def read(at: int) -> None:
            with _readable():
                blob.copy(start + at, out[at : at + READ_BYTES])

        return [partial(read, at) for at in range(0, num_bytes, READ_BYTES)]

    def check_copy(self, place: int, row: UInt8[np.ndarray, " b"], verify: str) -> None:
        """Checks a row read by `readers`, as `read` does.

        Raises:
            StoreError: its checksum differs.
        """
        end = int(self._index[place, 0]) + self._spec.row_bytes
        self._check_once(place, row, self._blob.read(end, end + CRC_BYTES), verify)

    def file_crc32c(self) -> int:
        """Checksum of the whole file, read in pieces."""
        crc = 0
        for start in range(0, self._blob.num_bytes, _PIECE_BYTES):
            crc = crc32c(self._blob.read(start, min(start + _PIECE_BYTES, self._blob.num_bytes)), crc)
        return crc

    def _bytes(self, place: int) -> np.ndarray:
        """The row and the checksum stored after it."""
        start = int(self._index[place, 0])
        with _readable():
            return self._blob.read(start, start + self._spec.row_bytes + CRC_BYTES)

    def _check_once(self, place: int, row: np.ndarray, beside: np.ndarray, verify: str) -> None:
        # A row that is not mapped is transferred again on each read, so an earlier check does not cover it.
        if verify == "always" or (verify == "first" and not (self._blob.mapped and place in self._verified)):
            self._compare(place, row, beside)
            self._verified.add(place)

    def _compare(self, place: int, row: np.ndarray, beside_it: np.ndarray) -> None:
        found, expected, beside = crc32c(row), self._facts.rows[place], _little(beside_it)
        if not found == beside == expected:
            raise StoreError(f"its checksum is {found:08x}, the shard says {beside:08x} and the commit record "
                             f"{expected:08x}")


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"it cannot be read ({error.strerror or error})") from error


def _little(data: np.ndarray) -> int:
    return int.from_bytes(data.tobytes(), "little")

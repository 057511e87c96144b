"""One shard of one array: a standard Zarr v3 `sharding_indexed` file, written row by row and read in place.

A file contains the rows, each followed by its crc32c, and an index at the end (offset and length of each row, then the
index's own crc32c). Rows start at multiples of 64 bytes, which the format permits, so that every mapped row is an
aligned tensor. A map's row is also followed by the crc32c of each step, outside the bytes that the index names, so
that single steps can be read and verified. Their combination is the checksum of the row. A file without them, e.g. of
an earlier version, is read all the same: its rows are then verified whole.
"""

import contextlib
import functools
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
from refavs.store.backends.disk_cache import CachedFile
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
    """Writes one shard under a temporary name; keeps no row in memory after `append` returns.

    Args:
        num_parts: number of equal parts of a row to write a checksum of; see `ArraySpec.num_parts`.
    """

    def __init__(self, folder: Folder, name: str, num_places: int, num_parts: int = 1) -> None:
        self.name, self._num_parts = name, num_parts
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
        parts = [crc32c(part) for part in np.split(payload, self._num_parts)]
        self._rows[place] = _whole(parts, payload.size // self._num_parts)
        self._write(payload, self._rows[place])
        beside = [self._rows[place], *(parts if self._num_parts > 1 else ())]
        self._write(np.array(beside, "<u4").view(np.uint8))
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
        self._verified: set[int | tuple[int, int]] = set()  # places, and parts of places
        self._parts: dict[int, list[int]] = {}
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
            if isinstance(self._blob, CachedFile):
                self._blob.forget(max(end, 0), facts.num_bytes)
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
        start, stop = self._span(place)
        with _readable():
            data = self._blob.read(start, stop + CRC_BYTES)
        self._compare(place, data[:-CRC_BYTES], data[-CRC_BYTES:])

    def read(self, place: int, verify: str, part: range | None = None) -> Tensor:
        """Reads the row at `place`, or a `part` of it, consecutive entries of its first axis.

        Args:
            verify: `first` (on first read), `always` or `never`.

        Raises:
            StoreError: its checksum differs, or it cannot be read.
        """
        if part is not None and not self._parts_of(place) and not self._blob.mapped:
            return self.read(place, verify)[part.start : part.stop]  # verified whole, so read whole
        start, stop = self._span(place, part)
        with _readable():  # a whole row with its checksum, in one request
            data = self._blob.read(start, stop + (CRC_BYTES if part is None else 0))
        row = data[: stop - start]
        self._check_once(place, row, verify, part, data[len(row) :])
        # Rows of other writers may be unaligned, which a tensor does not allow.
        row = row if row.ctypes.data % np.dtype(self._spec.dtype).itemsize == 0 else row.copy()
        return torch.from_numpy(row.view(self._spec.dtype).reshape(-1, *self._spec.shape[1:]))

    def readers(
        self, place: int, out: UInt8[np.ndarray, " b"], part: range | None = None
    ) -> list[Callable[[], None]]:
        """Calls that together read the row, or a part of it, into `out`, in any order; empty if copying from the map
        is best.

        A map is read page by page on access, in one thread and, on many disks, at a fraction of their speed.
        """
        blob, (start, stop) = self._blob, self._span(place, part)
        if not isinstance(blob, MappedFile) or stop - start < SMALL_BYTES:
            return []
        with _readable():
            if not blob.is_cold(start, stop):
                return []

        def read(at: int) -> None:
            with _readable():
                blob.copy(start + at, out[at : at + READ_BYTES])

        return [partial(read, at) for at in range(0, stop - start, READ_BYTES)]

    def check_copy(
        self, place: int, row: UInt8[np.ndarray, " b"], verify: str, part: range | None = None
    ) -> None:
        """Checks what `readers` read, as `read` does.

        Raises:
            StoreError: its checksum differs.
        """
        self._check_once(place, row, verify, part)

    def file_crc32c(self) -> int:
        """Checksum of the whole file, read in pieces."""
        crc = 0
        for start in range(0, self._blob.num_bytes, _PIECE_BYTES):
            crc = crc32c(self._blob.read(start, min(start + _PIECE_BYTES, self._blob.num_bytes)), crc)
        return crc

    def _span(self, place: int, part: range | None = None) -> tuple[int, int]:
        """Where the row, or a part of it, starts and stops in the file."""
        start, size = int(self._index[place, 0]), self._spec.row_bytes // self._spec.shape[0]
        return (start, start + self._spec.row_bytes) if part is None else (
            start + part.start * size, start + part.stop * size)  # fmt: skip

    def _beside(self, place: int, num_bytes: int) -> UInt8[np.ndarray, " b"]:
        """Bytes that follow the row: its checksum, then those of its parts."""
        _, end = self._span(place)
        with _readable():
            return self._blob.read(end, min(end + num_bytes, self._blob.num_bytes))

    def _parts_of(self, place: int) -> list[int]:
        """The checksums of a row's parts; empty if the file has none that combine to the checksum of the row."""
        if place not in self._parts:
            number = self._spec.num_parts
            _, *parts = np.frombuffer(self._beside(place, CRC_BYTES * (1 + number)).tobytes(), "<u4").tolist()
            size = self._spec.row_bytes // number
            known = number > 1 and len(parts) == number and _whole(parts, size) == self._facts.rows[place]
            self._parts[place] = parts if known else []
        return self._parts[place]

    def _check_once(
        self, place: int, data: UInt8[np.ndarray, " b"], verify: str, part: range | None,
        beside: UInt8[np.ndarray, " _"] | None = None,
    ) -> None:  # fmt: skip
        """Checks a row, or a part of it, unless `verify` says that it need not be.

        Args:
            beside: the checksum that follows a whole row, if it was read with it.
        """
        if verify == "never" or (verify == "first" and self._is_verified(place, part)):
            return
        if part is None:
            self._compare(place, data, self._beside(place, CRC_BYTES) if beside is None else beside)
        elif parts := self._parts_of(place):
            for step, piece in zip(part, np.split(data, len(part)), strict=True):
                if (found := crc32c(piece)) != parts[step]:
                    self._forget(place)
                    raise StoreError(f"the checksum of its step {step} is {found:08x}, the shard says "
                                     f"{parts[step]:08x}")
        else:
            self.check(place)
            part = None
        self._verified |= {place} if part is None else {(place, step) for step in part}

    def _forget(self, place: int) -> None:
        """Has a damaged row fetched again by whoever reads it next, with what lies beside it."""
        if isinstance(self._blob, CachedFile):
            start, stop = self._span(place)
            self._blob.forget(start, min(stop + CRC_BYTES * (1 + self._spec.num_parts), self._blob.num_bytes))

    def _is_verified(self, place: int, part: range | None) -> bool:
        # What is not mapped is transferred again on each read, so an earlier check does not cover it.
        own = place in self._verified or (part is not None and all((place, one) in self._verified for one in part))
        return self._blob.mapped and own

    def _compare(self, place: int, row: np.ndarray, beside_it: np.ndarray) -> None:
        found, expected, beside = crc32c(row), self._facts.rows[place], _little(beside_it)
        if not found == beside == expected:
            self._forget(place)
            raise StoreError(f"its checksum is {found:08x}, the shard says {beside:08x} and the commit record "
                             f"{expected:08x}")


def _whole(parts: list[int], part_bytes: int) -> int:
    """The checksum of a row, from those of its parts."""
    return functools.reduce(lambda crc, part: joined(crc, part, part_bytes), parts)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"it cannot be read ({error.strerror or error})") from error


def _little(data: np.ndarray) -> int:
    return int.from_bytes(data.tobytes(), "little")

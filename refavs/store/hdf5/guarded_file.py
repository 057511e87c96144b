"""HDF5 files: written under a temporary name, and read without trusting their content.

A file may come from anywhere. Only requested names are looked up, through hard links within the file. A dataset that is
in another file, is virtual, has filters, or has an unexpected type or shape is rejected, and the library's errors about
a damaged file become one line. Nothing is unpickled.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import h5py.h5l as h5l  # pyright: ignore[reportMissingImports] (compiled)
import h5py.h5o as h5o  # pyright: ignore[reportMissingImports] (compiled)
import numpy as np
from jaxtyping import UInt8

from refavs.errors import StoreError
from refavs.files.atomic import sync_folder
from refavs.files.locks import NO_LOCKS
from refavs.files.partials import give_name, lock_partial, partial_path, remove_left

AGAIN = "export the store again, or copy the file again"
_MOST_CHUNK_BYTES = 2**24
_TROUBLE = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError)


class ForeignFile:
    """An HDF5 file opened for reading; use it as a context manager.

    Raises:
        StoreError: it is missing, truncated or not an HDF5 file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.refusing():
            self.num_bytes = path.stat().st_size
            self._file = h5py.File(path, "r", locking=False)

    def __enter__(self) -> "ForeignFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Converts errors in reading the file to a one-line StoreError."""
        try:
            yield
        except FileNotFoundError as error:
            raise StoreError(f"there is no file {self.path}; name one that refavs-store export wrote") from error
        except _TROUBLE as error:
            reason = str(error).strip("'\"") or type(error).__name__
            raise StoreError(f"{self.path} cannot be used ({reason}); {AGAIN}") from error

    def dataset(self, name: str) -> h5py.Dataset | None:
        """The dataset `name`; None if the file has none."""
        with self.refusing():
            at = h5py.h5g.open(self._file.id, b"/")
            for part in name.encode().split(b"/"):
                if not isinstance(at, h5py.h5g.GroupID) or not at.links.exists(part):
                    return None
                if at.links.get_info(part).type != h5l.TYPE_HARD:
                    raise ValueError(f"{name} is a soft or external link")
                at = h5o.open(at, part)
            if not isinstance(at, h5py.h5d.DatasetID):
                raise ValueError(f"{name} is not a dataset")
            facts = at.get_create_plist()
            if facts.get_external_count() or facts.get_layout() == h5py.h5d.VIRTUAL:
                raise ValueError(f"{name} is stored in another file")
            if facts.get_nfilters():
                raise ValueError(f"{name} is compressed or filtered, which h5repack -f NONE undoes")
            return h5py.Dataset(at)

    def small(self, name: str, dtype: str) -> np.ndarray:
        """Reads a one-dimensional dataset of numbers (`dtype`) or of UTF-8 strings of any length (`S`)."""
        found = self._flat(name, dtype)
        with self.refusing():
            return found[:]

    def _flat(self, name: str, dtype: str) -> h5py.Dataset:
        found = self.dataset(name)
        with self.refusing():
            if found is None:
                raise ValueError(f"it has no {name}, so refavs-store export did not write it")
            if found.ndim != 1 or (found.dtype != dtype if dtype != "S" else found.dtype.kind != "S"):
                raise ValueError(f"{name} is {found.dtype} {found.shape}")
            # Do not allocate memory for more than a small file can contain.
            chunk = int(np.prod(found.chunks)) * found.dtype.itemsize if found.chunks else 0
            if found.nbytes > self.num_bytes or chunk > _MOST_CHUNK_BYTES:
                raise ValueError(f"{name} claims {found.nbytes} bytes in chunks of {chunk}, the file has "
                                 f"{self.num_bytes}")
            return found

    def rows(self, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
        """The dataset of an array, checked to have one row of this shape per chunk."""
        found = self.dataset(name)
        with self.refusing():
            if found is None:
                raise ValueError(f"it has no {name}")
            if found.shape[1:] != shape or found.dtype != dtype or found.chunks != (1, *shape):
                raise ValueError(f"{name} is {found.dtype} {found.shape} in chunks of {found.chunks}, its store says "
                                 f"{dtype} rows of shape {shape}, a chunk each")
            return found

    def row(self, found: h5py.Dataset, place: int, row: np.ndarray) -> None:
        """Reads one row of a dataset from `rows` into `row`."""
        with self.refusing():
            at = (place, *(0 for _ in row.shape))
            if not 0 <= place < found.shape[0]:
                raise ValueError(f"{found.name} has no row {place}")
            facts = found.id.get_chunk_info_by_coord(at)
            if facts.byte_offset is None or facts.size != row.nbytes or facts.byte_offset + facts.size > self.num_bytes:
                raise ValueError(f"{found.name} has no complete row {place}")
            found.id.read_direct_chunk(at, out=row.reshape(-1).view(np.uint8))


class NewFile:
    """Output file for HDF5: a temporary file, renamed to `target` at the end; use it as a context manager.

    A failed write makes the library crash later with a segmentation fault, so failures are hidden from it: the first
    one is stored for `check`, and later writes are dropped. Leftovers of an interrupted process are removed first.

    Raises:
        StoreError: `target` exists at the end, or another process is writing it.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = partial_path(target)
        self._at = 0
        self._failure: OSError | None = None

    def __enter__(self) -> "NewFile":
        self._target.parent.mkdir(parents=True, exist_ok=True)
        if remove_left(self._target):
            raise StoreError(f"another process is writing {self._target}; wait for its end or name another file")
        while True:
            os.close(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            try:
                file = lock_partial(self._partial)
            except FileNotFoundError:
                file = None
            except OSError as error:
                self._partial.unlink(missing_ok=True)
                if error.errno not in NO_LOCKS:
                    raise
                raise StoreError(
                    f"{self._target} is on a file system without locks ({error.strerror}), which are needed to "
                    "exclude a second writer; mount it with locks (Lustre: -o flock) or name a file elsewhere"
                ) from error
            if file is not None:
                self._file = file
                return self
            self._partial = partial_path(self._target)  # another process removed it as a leftover

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.check()
            if error is None:
                os.fsync(self._file)
                give_name(self._partial, self._target)
                sync_folder(self._target.parent)
        except FileExistsError as found:
            raise StoreError(f"{self._target} was created by another process; name another file") from found
        finally:
            self._partial.unlink(missing_ok=True)
            os.close(self._file)

    def check(self) -> None:
        """Raises the first failure of a write, e.g. that the disk is full."""
        if self._failure is not None:
            raise self._failure

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position, as `io.RawIOBase` does."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._file).st_size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The current position."""
        return self._at

    def read(self, size: int) -> bytes:
        """Reads from the current position."""
        data = os.pread(self._file, size, self._at)
        self._at += len(data)
        return data

    def readinto(self, data: Any) -> int:
        """Fills `data` from the current position."""
        num_bytes = os.preadv(self._file, [memoryview(data)], self._at)
        self._at += num_bytes
        return num_bytes

    def write(self, data: Any) -> int:
        """Writes all of `data` at the current position."""
        left = memoryview(data).cast("B")
        num_bytes = len(left)
        try:
            while left and self._failure is None:
                written = os.pwrite(self._file, left, self._at)
                self._at, left = self._at + written, left[written:]
        except OSError as error:
            error.filename = str(self._target)
            self._failure = error
        self._at += len(left)
        return num_bytes

    def truncate(self, size: int) -> int:
        """Sets the length of the file."""
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            error.filename = str(self._target)
            self._failure = self._failure or error
        return size

    def flush(self) -> None:
        """Does nothing, because writes are not buffered."""


def strings(values: UInt8[np.ndarray, "n width"]) -> np.ndarray:
    """Converts rows of padded UTF-8 to fixed-length strings, which h5py reads with `.asstr()`."""
    width = values.shape[1]
    return np.ascontiguousarray(values).reshape(-1).view(f"S{width}").astype(h5py.string_dtype("utf-8", width))

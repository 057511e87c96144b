"""Storage backends: the files of a store are in a local or network folder, or under a prefix of an object store.

File names are paths relative to the store, with `/`. A write is atomic: a file appears completely or not at all. On
every backend, failures are OSErrors whose `filename` is the full name.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from refavs.errors import StoreError
from refavs.files.atomic import LOCK, sync_folder, whole_file, write_atomically
from refavs.files.partials import partial_path, without_mark
from refavs.files.plain_file import MOST_BYTES, UnusableFileError, open_lock, read_plain, refuse_special

TRY_AGAIN = "nothing need be wrong with it: look at the connection and the permissions, then try again"
_PROBE_BYTES = 2**21
_FILES = re.compile(r"c(\.\d+)+(\.next)?|(zarr|lease|listing|clips|text|expressions|upgrade|\d{5,9})\.json")
_OURS = (errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not caused by the file itself
T = TypeVar("T")


@runtime_checkable
class Blob(Protocol):
    """A file opened for reading.

    Attributes:
        num_bytes: its length.
        mapped: whether `read` returns memory-mapped pages, which cost nothing to read again.
    """

    num_bytes: int
    mapped: bool

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " b"]:
        """Bytes from `start` up to `stop`."""
        ...


@runtime_checkable
class Folder(Protocol):
    """The files of one store."""

    @property
    def location(self) -> str:
        """The absolute path or URL; `open_folder(location)` opens this folder again."""
        ...

    def where(self, name: str) -> str:
        """Full name of a file, for messages."""
        ...

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """Reads the whole file, up to `most` bytes.

        Raises:
            FileNotFoundError: the file does not exist.
            UnusableFileError: it is longer, or a pipe or device.
        """
        ...

    def open(self, name: str) -> Blob:
        """Opens the file for reading parts of it.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file with `data`, durably; readers see either the old bytes or the new ones."""

    def create(self, name: str, data: bytes) -> bool:
        """Writes the file if it does not exist; returns whether it did. Of concurrent callers, exactly one succeeds."""
        ...

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replaces the file if it still contains `old`; returns whether it did. Of concurrent callers, one succeeds."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        ...

    def names(self, under: str = "") -> list[str]:
        """All files below the folder `under`, at any depth, sorted."""
        ...

    def remove(self, name: str) -> None:
        """Removes the file durably, if it exists."""

    def remove_all(self, under: str) -> None:
        """Removes the folder `under` with all its files, if it exists."""

    def move(self, name: str, new: str) -> None:
        """Renames the file."""

    def scratch(self, name: str) -> Path:
        """Path for a new local file, whose content `publish` will store as `name`."""
        ...

    def publish(self, scratch: Path, name: str) -> None:
        """Stores a flushed scratch file as `name` and removes the scratch file."""

    def sweep(self) -> list[str]:
        """Removes the temporary files of interrupted writers; returns their names."""
        ...

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Results of reading calls, which run concurrently if each is a request to a server."""
        ...


class MappedFile:
    """A local file, mapped privately: writing to the mapped bytes changes this process's copy, never the file."""

    mapped = True

    def __init__(self, path: Path) -> None:
        facts = path.stat()
        refuse_special(facts)
        self.num_bytes, self._path, self._file = facts.st_size, path, (facts.st_dev, facts.st_ino)
        if not self.num_bytes:
            self._bytes = np.zeros(0, np.uint8)
            return
        # torch keeps no file descriptor for a mapping; mmap.mmap would keep one for every shard.
        try:
            with _name_for_torch(path) as name:
                self._bytes = torch.from_file(name, shared=False, size=self.num_bytes, dtype=torch.uint8).numpy()
        except RuntimeError as error:  # the system refuses to map it, e.g. a folder
            number = re.search(r"\((\d+)\)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(path)) from error

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " b"]:
        """A view of the bytes."""
        return self._bytes[start:stop]

    def is_cold(self, start: int, stop: int) -> bool:
        """Whether some of the bytes are not in memory, or the system does not say.

        If another file has replaced this one, its bytes do not count.
        """
        with self._opened() as file:
            if file is None:
                return False
            try:
                byte = [bytearray(1)]
                for place in range(start, stop, _PROBE_BYTES):
                    os.preadv(file, byte, place, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                    raise
                return True
            return False

    def copy(self, start: int, out: UInt8[np.ndarray, " b"]) -> None:
        """Copies the bytes from `start`, as `read` would return them, without mapping pages that are not in memory."""
        with self._opened() as file:
            place = 0
            while place < len(out):
                rest = memoryview(out[place:])  # pyright: ignore[reportArgumentType] (NumPy's stubs lack __buffer__)
                done = 0 if file is None else os.preadv(file, [rest], start + place)
                if not done:  # its length changed, or it is another file
                    out[place:] = self._bytes[start + place : start + len(out)]
                    return
                place += done

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Opens the file for reading, unless another file has replaced it."""
        try:  # O_NONBLOCK, as a pipe that has replaced it would block
            file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):  # gone, or replaced by a socket
                raise
            yield None
            return
        try:
            facts = os.fstat(file)
            yield file if (facts.st_dev, facts.st_ino) == self._file else None
        finally:
            os.close(file)


@contextlib.contextmanager
def _name_for_torch(path: Path) -> Iterator[str]:
    """A name of the file in valid Unicode, which torch requires and a Linux path need not be."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        file = os.open(path, os.O_RDONLY)
        try:
            yield f"/dev/fd/{file}"
        finally:
            os.close(file)
    else:
        yield name


class LocalFolder:
    """A folder on a local or mounted disk."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __reduce__(self) -> tuple[object, ...]:
        return LocalFolder, (self.path,)

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self.path)

    def where(self, name: str) -> str:
        """Full path of a file."""
        return str(self.path / name) if name else str(self.path)

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The whole file."""
        return read_plain(self.path / name, most)

    def open(self, name: str) -> MappedFile:
        """The file, mapped."""
        return MappedFile(self.path / name)

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file: writes under a temporary name, flushes, renames and flushes the folder."""
        write_atomically(self._own(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Writes the file if there is none."""
        path = self._own(name)
        with whole_file(path, data) as scratch:
            try:
                os.link(scratch, path)
            except FileExistsError:
                return False
        return True

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replaces the file if it still contains `old`, under a kernel lock."""
        with open_lock(self._own(LOCK)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.exists(name) or self.read(name) != old:
                return False
            self.write(name, new)
        return True

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.path / name).is_file()

    def names(self, under: str = "") -> list[str]:
        """All files below the folder `under`, sorted."""

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error  # do not treat an unreadable folder as empty

        found = []
        for folder, _, files in os.walk(self.path / under, onerror=refuse):
            start = os.path.relpath(folder, self.path)
            found += files if start == "." else [f"{start}/{file}" for file in files]
        return sorted(name.replace(os.sep, "/") for name in found)

    def remove(self, name: str) -> None:
        """Removes the file, if it is there."""
        path = self._own(name)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)

    def move(self, name: str, new: str) -> None:
        """Renames the file."""
        path = self._own(new)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self._own(name), path)
        sync_folder(path.parent)

    def remove_all(self, under: str) -> None:
        """Removes the folder `under` with all its files."""
        for name in self.names(under):
            self._own(name).unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.path / under, topdown=False):
            with contextlib.suppress(OSError):  # it contains other entries
                os.rmdir(folder)

    def scratch(self, name: str) -> Path:
        """A unique temporary name next to the file, on the same disk, that `sweep` recognises."""
        path = self._own(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return partial_path(path)

    def publish(self, scratch: Path, name: str) -> None:
        """Renames the scratch file."""
        path = self._own(name)
        os.rename(scratch, path)
        sync_folder(path.parent)

    def sweep(self) -> list[str]:
        """Removes the temporary files of interrupted writers."""
        strays = [name for name in self.names() if is_stray(name)]
        for stray in strays:
            self._own(stray).unlink(missing_ok=True)
        return strays

    def _own(self, name: str) -> Path:
        """Path for writing or removing a file, which must be inside the store's own folders.

        Raises:
            StoreError: one of its folders is a symbolic link, which may lead to data outside the store.
        """
        path = self.path
        for part in name.split("/")[:-1]:
            path /= part
            if path.is_symlink():
                raise StoreError(
                    f"{path} is a symbolic link (to {os.readlink(path)}); no file of a store is written or removed "
                    "through it; put the folder itself in its place (with mv, or mount --bind for another disk), then "
                    "run the same command again"
                )
        return self.path / name

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Results of the calls, one after the other, because reading mapped files does not wait for a server."""
        return [call() for call in calls]


def is_stray(name: str) -> bool:
    """Whether a file name is that of a store writer's temporary file."""
    found = without_mark(name.rpartition("/")[2])
    return found is not None and _FILES.fullmatch(found) is not None


def holds(folder: Folder, name: str, data: bytes) -> bool:
    """Whether the file exists and contains exactly `data`."""
    try:
        return folder.exists(name) and folder.read(name, len(data)) == data
    except UnusableFileError:  # it is longer
        return False


def write_if_changed(folder: Folder, name: str, data: bytes) -> None:
    """Writes `data` unless the file already contains it."""
    if not holds(folder, name, data):
        folder.write(name, data)


def read_or_refuse(folder: Folder, name: str, what: str, remedy: str, most: int = MOST_BYTES) -> bytes:
    """Reads a file.

    Raises:
        StoreError: it is missing or cannot be read; the message says `what` it is and the `remedy`.
    """
    try:
        return folder.read(name, most)
    except OSError as error:
        remedy = TRY_AGAIN if out_of_reach(error) else remedy
        raise StoreError(f"{what} {folder.where(name)} cannot be read ({error.strerror or error}); {remedy}") from error


def out_of_reach(error: BaseException | None) -> bool:
    """Whether only the access to a file failed (server, network, permission), which says nothing about the file."""
    if isinstance(error, OSError) and isinstance(error, StoreError):  # a server's answer
        return not isinstance(error, FileNotFoundError)
    ours = isinstance(error, OSError) and error.errno in _OURS
    return ours or isinstance(error, ConnectionError | TimeoutError | PermissionError)


def refuse_out_of_reach(error: StoreError, where: str = "") -> None:
    """Returns if the error is about damage; called before an error is treated as damage.

    Raises:
        StoreError: only the access to the file failed; `where` names the file if the error does not.
    """
    if out_of_reach(error) or out_of_reach(error.__cause__):
        text = f"{where}: {error}" if where else str(error)
        raise StoreError(text if TRY_AGAIN in text else f"{text}; {TRY_AGAIN}") from error

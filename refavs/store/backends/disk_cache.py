"""A bounded folder on a local disk with what was read of remote stores, shared by all processes of a machine.

`REFAVS_STORE_CACHE=FOLDER` turns it on, `REFAVS_STORE_CACHE_GB` bounds it. Each remote file has two local ones: its
bytes, sparse, and for each block a mark with the block's CRC-32C, written after the block. So a block that is torn,
lost with the power or damaged on the disk has a mark that does not fit, and is read from the server again.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8

from refavs.errors import ConfigError
from refavs.files.plain_file import open_lock
from refavs.store.backends.base import Blob
from refavs.store.format.checksum import crc32c
from refavs.terminal.printing import warn

SETTINGS = FOLDER, GIGABYTES = "REFAVS_STORE_CACHE", "REFAVS_STORE_CACHE_GB"
DEFAULT_GB = 100.0
BLOCK_BYTES = 2**18
BLOCKS = "refavs-blocks"  # below the user's folder; nothing beside it is ever removed
_PRESENT = 1 << 32  # in a mark, above the checksum
_MARK_BYTES = 8
_NAME = re.compile(r"[0-9a-f]{40}\.bytes")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Versioned(Blob, Protocol):
    """A file on a server with a text that names this version of its content."""

    version: str


@dataclass(frozen=True)
class DiskCache:
    """The folder and its bound.

    Attributes:
        most_bytes: that the blocks take up on the disk, of all processes together.
    """

    folder: Path
    most_bytes: int

    def opened(self, remote: Versioned) -> "CachedFile":
        """The file, read through this cache."""
        return CachedFile(self, remote)

    @property
    def blocks(self) -> Path:
        """Where the blocks are."""
        return self.folder / BLOCKS

    @contextlib.contextmanager
    def room_for(self, num_bytes: int) -> Iterator[bool]:
        """Removes the files used longest ago until so many bytes fit, and keeps other writers out meanwhile."""
        with open_lock(self.blocks / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            used = sorted(self._files(), reverse=True)
            total = sum(size for _, size, _ in used)
            while used and total + num_bytes > self.most_bytes:
                _, size, path = used.pop()
                path.with_suffix(".marks").unlink(missing_ok=True)  # first: no mark without its bytes
                path.unlink(missing_ok=True)
                total -= size
            yield total + num_bytes <= self.most_bytes

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        """When each file was last used, its bytes on the disk, and its path."""
        with os.scandir(self.blocks) as found:
            for entry in found:
                if _NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat(follow_symlinks=False)
                        yield facts.st_mtime_ns, facts.st_blocks * 512, Path(entry.path)


class CachedFile:
    """A file on a server whose blocks are fetched once and then read from the disk."""

    mapped = False

    def __init__(self, cache: DiskCache, remote: Versioned) -> None:
        self.num_bytes, self._cache, self._remote = remote.num_bytes, cache, remote
        name = hashlib.sha256(f"{remote.version}\0{remote.num_bytes}".encode()).hexdigest()[:40]
        self._bytes, self._marks = cache.blocks / f"{name}.bytes", cache.blocks / f"{name}.marks"

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " b"]:
        """A copy of the bytes; other processes that want the same blocks wait until they are there."""
        if not 0 <= start < stop <= self.num_bytes:
            return self._remote.read(start, stop)
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        out = np.empty(min(last * BLOCK_BYTES, self.num_bytes) - first * BLOCK_BYTES, np.uint8)
        try:
            self._fill(first, last, out)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _warn_once(f"the cache {self._cache.folder} takes no more ({error.strerror}); reading goes on without it")
            return self._remote.read(start, stop)
        return out[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def forget(self, start: int, stop: int) -> None:
        """Drops the blocks of some bytes: what the server sent was damaged."""
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        with contextlib.suppress(FileNotFoundError), _file(self._marks, os.O_RDWR) as marks:
            os.pwrite(marks, bytes(_MARK_BYTES * (last - first)), _MARK_BYTES * first)

    def _fill(self, first: int, last: int, out: UInt8[np.ndarray, " b"]) -> None:
        """Reads the blocks from `first` up to `last` into `out`, those that the disk lacks from the server."""
        if self._take(first, last, out).all():
            return
        with _file(self._marks) as lock:  # so that each block is fetched by one of its readers
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = self._take(first, last, out)
            for run_first, run_last in _runs(~known):
                begin, end = run_first * BLOCK_BYTES, min(run_last * BLOCK_BYTES, len(out))
                out[begin:end] = self._remote.read(first * BLOCK_BYTES + begin, first * BLOCK_BYTES + end)
                self._keep(first + run_first, out[begin:end])

    def _take(self, first: int, last: int, out: UInt8[np.ndarray, " b"]) -> Bool[np.ndarray, " n"]:
        """Reads what the disk has into `out`; returns which blocks those are."""
        known = np.zeros(last - first, bool)
        try:
            with _file(self._marks, os.O_RDWR) as marks, _file(self._bytes, os.O_RDWR) as data:
                found = os.pread(marks, _MARK_BYTES * (last - first), _MARK_BYTES * first)
                expected = np.zeros(last - first, np.uint64)
                whole = len(found) // _MARK_BYTES
                expected[:whole] = np.frombuffer(found[: whole * _MARK_BYTES], "<u8")
                os.utime(data)
                for run_first, run_last in _runs(expected >= _PRESENT):
                    begin, end = run_first * BLOCK_BYTES, min(run_last * BLOCK_BYTES, len(out))
                    num_bytes = os.preadv(data, [out[begin:end].data], first * BLOCK_BYTES + begin)
                    num_whole = run_last - run_first if begin + num_bytes == end else num_bytes // BLOCK_BYTES
                    for number in range(run_first, run_first + num_whole):
                        block = out[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
                        known[number] = crc32c(block) | _PRESENT == int(expected[number])
        except FileNotFoundError:  # never read, or removed to make room
            pass
        return known

    def _keep(self, first: int, data: UInt8[np.ndarray, " b"]) -> None:
        """Writes some blocks, then their marks."""
        marks = [crc32c(data[place : place + BLOCK_BYTES]) | _PRESENT for place in range(0, len(data), BLOCK_BYTES)]
        with self._cache.room_for(len(data)) as fits:
            if not fits:
                return
            with _file(self._bytes) as file:
                place = 0
                while place < len(data):
                    place += os.pwrite(file, data[place:].data, first * BLOCK_BYTES + place)
            with _file(self._marks) as file:
                os.pwrite(file, np.array(marks, "<u8").tobytes(), _MARK_BYTES * first)


def use_cache(folder: Path | None, gigabytes: float | None) -> None:
    """Names the cache of this process and of those that it starts; None leaves what the environment says.

    Raises:
        ConfigError: as `cache_in_use` does.
    """
    given = {FOLDER: folder and str(folder.absolute()), GIGABYTES: None if gigabytes is None else f"{gigabytes:g}"}
    os.environ |= {name: value for name, value in given.items() if value is not None}
    if gigabytes is not None and FOLDER not in os.environ:
        raise ConfigError("--cache-gb bounds a cache, and there is none; name its folder by --cache")
    cache_in_use()


def cache_in_use() -> DiskCache | None:
    """The cache that the environment names.

    Raises:
        ConfigError: its bound is no number above 0, or its folder cannot be made.
    """
    folder = os.environ.get(FOLDER)
    return _cache(folder, os.environ.get(GIGABYTES) or str(DEFAULT_GB)) if folder else None


@functools.lru_cache(maxsize=4)
def _cache(folder: str, gigabytes: str) -> DiskCache:
    try:
        most = float(gigabytes)
    except ValueError:
        most = 0.0
    if not 0 < most < 1e9:
        raise ConfigError(f"the cache of stores may take {gigabytes!r} GB; accepted: a number above 0")
    cache = DiskCache(Path(folder).absolute(), int(most * 1e9))
    try:
        cache.blocks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache of stores {folder} cannot be made ({error.strerror}); name a folder on a local "
                          "disk by --cache or REFAVS_STORE_CACHE") from error  # fmt: skip
    return cache


def _runs(wanted: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """First and last (excluded) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@contextlib.contextmanager
def _file(path: Path, flags: int = _OPEN) -> Iterator[int]:
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


@functools.cache
def _warn_once(text: str) -> None:
    warn(text)

"""Stores in S3, in Google Cloud Storage, behind a web server (read only), or in this process's memory.

Credentials and endpoints come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `AWS_SKIP_SIGNATURE=true`
for a public bucket, `GOOGLE_APPLICATION_CREDENTIALS`, ...) or from the cloud machine's own identity.

The library is obstore: it read ranges of 60 MB 3 to 5 times faster than tensorstore and s3fs (about equal for 5 and 20
MB, lists and small files), supports both conditional puts (absent, unchanged) and needs no other package. If a
connection is limited to 85 MB/s, as on S3, concurrent parts are 5 times faster than one request (bench_remote.py).
"""

import atexit
import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import obstore
from jaxtyping import UInt8
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import GCSStore, HTTPStore, MemoryStore, S3Store

from refavs.files.locks import NO_LOCKS
from refavs.files.plain_file import MOST_BYTES, refuse_long
from refavs.files.temporary import temporary_folder
from refavs.store.backends.disk_cache import CachedFile, DiskCache
from refavs.store.backends.hub import hub_url
from refavs.store.backends.remote_errors import RemoteError, os_error, refuse_url

PART_BYTES = 8 << 20
NUM_PARTS = 8  # parts of one file fetched concurrently
NUM_TOGETHER = 16
# A dead server causes an error after at most 15 s: 8 s during which a request is retried, and one last try.
READING = {"connect_timeout": "4s", "read_timeout": "6s", "timeout": "120s"}
# No read timeout for writes: it also runs while a part is being sent, which can take long on a slow connection.
WRITING = {"connect_timeout": "4s", "timeout": "120s"}
RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=8)}

_WRITER = "refavs-writer"
_SCRATCH = f"refavs-scratch-{os.getuid()}-"
_SCRATCH_FILE = re.compile(r".+\.[0-9a-f]{8}")
_MAX_PARTS = 9_000  # S3's limit is 10,000
_memories: dict[str, MemoryStore] = {}
_used_by: set[int] = set()
T = TypeVar("T")


class RemoteFile:
    """A file on a server, read in ranges.

    Attributes:
        version: a text that changes with the content.
    """

    mapped = False

    def __init__(self, folder: "RemoteFolder", name: str) -> None:
        self._folder, self._name = folder, name
        with folder.errors(name):
            facts = obstore.head(folder.reading, folder.key(name))
        self.num_bytes = facts["size"]
        self._tag = facts["e_tag"]
        self.version = f"{folder.where(name)} {self._tag or facts['last_modified']}"

    def read(self, start: int, stop: int) -> UInt8[np.ndarray, " b"]:
        """Returns a copy of the bytes; long ranges are fetched in concurrent parts.

        Raises:
            OSError: the range is outside the file, or the file was replaced after it was opened.
        """
        with self._folder.errors(self._name):
            if not 0 <= start <= stop <= self.num_bytes:
                raise OSError(errno.EINVAL, f"bytes {start} to {stop} were requested, it has {self.num_bytes}")
            data = np.empty(stop - start, np.uint8)
            places = range(start, stop, PART_BYTES)
            parts = [(place, min(place + PART_BYTES, stop)) for place in places]

            def fetch(part: tuple[int, int]) -> None:
                data[part[0] - start : part[1] - start] = self._part(*part)

            if len(parts) < 2:
                list(map(fetch, parts))
            else:
                list(_threads("parts", NUM_PARTS, os.getpid()).map(fetch, parts))
        return data

    def _part(self, start: int, stop: int) -> np.ndarray:
        options: Any = {"range": (start, stop)}
        if self._tag is not None:
            options["if_match"] = self._tag
        try:
            found = obstore.get(self._folder.reading, self._folder.key(self._name), options=options).bytes()
        except PreconditionError:
            raise OSError(errno.ESTALE, "it was replaced by another file while it was open; open it again") from None
        if len(found) != stop - start:
            raise OSError(errno.EIO, f"{len(found)} bytes arrived, {stop - start} were requested")
        return np.frombuffer(memoryview(found), np.uint8)


class RemoteFolder:
    """A prefix of an object store, a folder of a web server, or a location in this process's memory.

    A process that was forked from one that has read remotely cannot read; start workers with `spawn`, as Ray does.
    Interrupted uploads leave parts that no listing shows; set a bucket rule that aborts them after a few days.

    Args:
        location: `s3://bucket/prefix`, `gs://bucket/prefix`, `http(s)://host/path` (read only),
            `hf://datasets/ORG/NAME[@REVISION]/path` (read only, as `hub_url` says) or `memory://name`.

    Attributes:
        cache: where parts of files that are read are kept; None for none.

    Raises:
        StoreError: the URL has none of these forms, or contains a password or a query.
    """

    def __init__(self, location: str, cache: DiskCache | None = None) -> None:
        self._location, self.cache = location.rstrip("/"), cache
        refuse_url(location)
        parts = urlsplit(self._location)
        self._scheme = parts.scheme
        self._prefix = "" if self.read_only else parts.path.strip("/")
        self.reading = self._store(parts.netloc, READING)
        self.writing = self.reading if self.read_only else self._store(parts.netloc, WRITING)
        self._conditions_hold = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._location, self.cache)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteFolder) and other._location == self._location

    def __hash__(self) -> int:
        return hash(self._location)

    @property
    def location(self) -> str:
        """The URL."""
        return self._location

    @property
    def read_only(self) -> bool:
        """Whether it is behind a web server."""
        return self._scheme in ("http", "https", "hf")

    def where(self, name: str) -> str:
        """URL of a file."""
        return f"{self._location}/{name}" if name else self._location

    def read(self, name: str, most: int = MOST_BYTES) -> bytes:
        """The whole file."""
        with self.errors(name):
            found = obstore.get(self.reading, self.key(name))
            num_bytes = found.meta["size"]
            content = found.bytes().to_bytes() if num_bytes <= most else b""
        refuse_long(num_bytes, most)
        return content

    def open(self, name: str) -> RemoteFile | CachedFile:
        """The file, to read ranges of it."""
        file = RemoteFile(self, name)
        return file if self.cache is None else self.cache.opened(file)

    def write(self, name: str, data: bytes) -> None:
        """Replaces the file in one request."""
        with self.errors(name, writes=True):
            obstore.put(self.writing, self.key(name), data, use_multipart=False)

    def create(self, name: str, data: bytes) -> bool:
        """Writes the file if it does not exist (`If-None-Match`).

        Raises:
            OSError: the server does not support conditions, or ignores them.
        """
        with self.errors(name, writes=True):
            return self._put_if(name, data, "create", ask_again=True)

    def swap(self, name: str, old: bytes, new: bytes) -> bool:
        """Replaces the file if it still contains `old` (`If-Match`).

        Raises:
            OSError: the server does not support conditions, or ignores them.
        """
        with self.errors(name, writes=True):
            try:
                found = obstore.get(self.reading, self.key(name))
                meta = found.meta
                if found.bytes() != old:
                    return False
            except FileNotFoundError:
                return False
            version = {kind: meta[kind] for kind in ("e_tag", "version") if meta[kind] is not None}
            return self._put_if(name, new, version, ask_again=old != new)

    def exists(self, name: str) -> bool:
        """Whether the file exists."""
        with self.errors(name):
            try:
                obstore.head(self.reading, self.key(name))
            except FileNotFoundError:
                return False
        return True

    def names(self, under: str = "") -> list[str]:
        """All files below the folder `under`, sorted."""
        start = f"{self._prefix}/" if self._prefix else ""
        with self.errors(under):
            pages = obstore.list(self.reading, self.key(under) or None, chunk_size=1000)
            return sorted(facts["path"].removeprefix(start) for page in pages for facts in page)

    def remove(self, name: str) -> None:
        """Removes the file, if it is there."""
        with self.errors(name, writes=True), contextlib.suppress(FileNotFoundError):
            obstore.delete(self.writing, self.key(name))

    def move(self, name: str, new: str) -> None:
        """Copies the file on the server and removes the old one."""
        with self.errors(name, writes=True):
            obstore.rename(self.writing, self.key(name), self.key(new))

    def remove_all(self, under: str) -> None:
        """Removes all files below the folder `under`."""
        for name in self.names(under):
            self.remove(name)

    def scratch(self, name: str) -> Path:
        """A file in this process's folder below `$TMPDIR`, which must have space for a shard until it is published."""
        self._refuse_writing(name)
        return _scratch_folder(os.getpid()) / f"{name.replace('/', '-')}.{secrets.token_hex(4)}"

    def publish(self, scratch: Path, name: str) -> None:
        """Uploads the scratch file, in parts if it is long; readers see all of it or nothing."""
        num_bytes = scratch.stat().st_size
        part = max(PART_BYTES, -(-num_bytes // _MAX_PARTS))
        with self.errors(name, writes=True):
            obstore.put(self.writing, self.key(name), scratch, chunk_size=part, max_concurrency=NUM_PARTS)
            found = obstore.head(self.reading, self.key(name))["size"]
            if found != num_bytes:
                raise OSError(errno.EIO, f"{found} bytes of {num_bytes} arrived; run the same command again")
        scratch.unlink()

    def sweep(self) -> list[str]:
        """Removes this machine's scratch files of dead writers; an object store never shows partial files."""
        self._refuse_writing("")
        return _sweep_scratch()

    def together(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Results of reading calls, run concurrently."""
        return list(_threads("calls", NUM_TOGETHER, os.getpid()).map(lambda call: call(), calls))

    def key(self, name: str) -> str:
        """Key of a file within the bucket."""
        return "/".join(part for part in (self._prefix, name) if part)

    @contextlib.contextmanager
    def errors(self, name: str, writes: bool = False) -> Iterator[None]:
        """Converts the library's exceptions to an OSError about the file `name`, without secrets."""
        url = self.where(name)
        if writes:
            self._refuse_writing(name)
        if self._scheme != "memory":
            _refuse_fork(url)
        try:
            yield
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            # The library's own text can contain signatures and keys, so it is not kept as the cause.
            raise os_error(error, url) from None

    def _refuse_writing(self, name: str) -> None:
        if self.read_only:
            raise RemoteError(errno.EROFS, "a store behind a web server can only be read", self.where(name))

    def _put_if(self, name: str, data: bytes, mode: Any, ask_again: bool) -> bool:
        """Puts `data` under a condition; returns whether that succeeded.

        If an answer is lost and the request is repeated, the mark distinguishes this writer's result from another's.
        """
        mark = {_WRITER: secrets.token_hex(8)}

        def put() -> bool:
            try:
                obstore.put(self.writing, self.key(name), data, mode=mode, attributes=mark, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        if not put():
            return self._mark(name) == mark[_WRITER]
        if ask_again and not self._conditions_hold:
            if put():
                raise OSError(errno.EOPNOTSUPP, "the server ignores conditional puts (If-None-Match, If-Match), so two "
                                                "writers could not exclude each other; use a server that has them")
            self._conditions_hold = True
        return True

    def _mark(self, name: str) -> str | None:
        try:
            return obstore.get(self.reading, self.key(name), options={"head": True}).attributes.get(_WRITER)
        except FileNotFoundError:
            return None

    def _store(self, host: str, options: dict[str, Any]) -> Any:
        if self._scheme == "memory":
            return _memories.setdefault(host, MemoryStore())
        config: dict[str, Any] = {"client_options": dict(options), "retry_config": RETRIES}
        if self.read_only:
            url, headers = hub_url(self._location) if self._scheme == "hf" else (self._location, {})
            config["client_options"] |= {"allow_http": url.startswith("http://"), "default_headers": headers}
            return HTTPStore(url, **config)
        if self._scheme == "gs":
            return GCSStore(host, **config)
        endpoints = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
        if any(os.environ.get(name, "").startswith("http://") for name in endpoints):
            config["client_options"]["allow_http"] = True
        return S3Store(host, **config)


def _refuse_fork(url: str) -> None:
    """Checks that the process was not forked: the library's threads do not survive, so every call would hang."""
    if not _used_by:
        _used_by.add(os.getpid())
    if os.getpid() not in _used_by:
        raise RemoteError(errno.ENOTSUP, "this process was forked from one that had read a remote store; start it by "
                          "spawn (DataLoader(..., multiprocessing_context='spawn'))", url)  # fmt: skip


@functools.cache
def _threads(_purpose: str, number: int, _process: int) -> ThreadPoolExecutor:
    """Thread pool of this process; tasks for one purpose never wait for others of the same purpose."""
    return ThreadPoolExecutor(number, thread_name_prefix="refavs-remote")


@functools.cache
def _scratch_folder(process: int) -> Path:
    """A private folder, locked while this process lives, so that the `sweep` of another process leaves it.

    Without locks in the file system, `sweep` leaves every such folder.
    """
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=temporary_folder()))
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        if folder.is_dir():  # not swept before it was locked
            break
        os.close(lock)
    # A forked process also runs its parent's exit handlers.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder


def _sweep_scratch() -> list[str]:
    removed = []
    for folder in temporary_folder().glob(f"{_SCRATCH}*"):
        if folder.is_symlink():
            continue
        try:
            lock = os.open(folder, os.O_RDONLY)
        except (FileNotFoundError, PermissionError):
            continue  # already removed, or not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in folder.iterdir():
                if _SCRATCH_FILE.fullmatch(path.name):
                    path.unlink()
                    removed.append(str(path))
            folder.rmdir()
        except OSError as error:
            if not isinstance(error, BlockingIOError) and error.errno not in (*NO_LOCKS, errno.ENOTEMPTY):
                raise
            # Its writer is alive, cannot be determined, or the folder contains something else.
        finally:
            os.close(lock)
    return removed

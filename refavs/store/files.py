"""Local files that appear whole or not at all: written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"
LOCK = ".lock"
_MARK = re.compile(rf"\.\d+-[0-9a-f]{{8}}{re.escape(PARTIAL)}")
_MOST_MARK_BYTES = 40
_MOST_NAME_BYTES = 255


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process uses; a name near the limit of the file system is shortened in it."""
    return path.with_name(f"{_start(path)}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")


def without_mark(name: str) -> str | None:
    """What a temporary file becomes, by its name; None for a name that `partial_path` does not give."""
    mark = _MARK.search(name, max(0, len(name) - _MOST_MARK_BYTES))
    return name[: mark.start()] if mark is not None and mark.end() == len(name) else None


def partials_of(path: Path) -> list[Path]:
    """What `partial_path` named for `path` and is still there; links are none of it."""
    start = _start(path)
    try:
        found = list(path.parent.iterdir())
    except FileNotFoundError:
        return []
    return sorted(one for one in found if without_mark(one.name) == start and not one.is_symlink())


def _start(path: Path) -> str:
    """The name of `path`, with a checksum in the place of its end where nothing could be added to it."""
    name = path.name
    if len(os.fsencode(name)) <= _MOST_NAME_BYTES - _MOST_MARK_BYTES:
        return name
    short = f"~{zlib.crc32(os.fsencode(name)):08x}"
    while len(os.fsencode(name + short)) > _MOST_NAME_BYTES - _MOST_MARK_BYTES:
        name = name[:-1]
    return name + short


def write_all(file: int, data: memoryview) -> None:
    """Writes every byte of `data`; a system call may take fewer than it is given."""
    while data:
        data = data[os.write(file, data) :]


@contextlib.contextmanager
def whole_file(path: Path, data: bytes) -> Iterator[Path]:
    """A temporary file beside `path` that holds `data` durably, to be given its name; the folder is flushed after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        try:
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                write_all(file, memoryview(data))
                os.fsync(file)
            finally:
                os.close(file)
            yield partial
        finally:
            partial.unlink(missing_ok=True)  # which a disk that has become read-only refuses as well
    except OSError as error:
        error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces `path` by `data`, durably; whoever reads it sees the old bytes or the new ones."""
    with whole_file(path, data) as partial:
        os.rename(partial, path)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, as fsync does for bytes."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

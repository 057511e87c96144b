"""Local files that appear whole or not at all: written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from refavs.files.partials import partial_path

LOCK = ".lock"


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

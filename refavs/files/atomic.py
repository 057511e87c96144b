"""Local files that appear whole or not at all: written under a temporary name, flushed to disk, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from refavs.files.partials import partial_path

LOCK = ".lock"


def write_all(file: int, data: memoryview) -> None:
    """Writes every byte of `data`; a single system call may write fewer."""
    while data:
        data = data[os.write(file, data) :]


@contextlib.contextmanager
def whole_file(path: Path, data: bytes, mode: int = 0o644) -> Iterator[Path]:
    """Yields a temporary file beside `path` with `data` on disk, for the caller to rename; then flushes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        try:
            file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            try:
                write_all(file, memoryview(data))
                os.fsync(file)
            finally:
                os.close(file)
            yield partial
        finally:
            partial.unlink(missing_ok=True)  # fails too if the disk has become read-only
    except OSError as error:
        error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replaces the content of `path` durably; a reader sees the old bytes or the new ones."""
    with whole_file(path, data, mode) as partial:
        os.rename(partial, path)


def sync_folder(folder: Path) -> None:
    """Flushes the names in `folder` to disk."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

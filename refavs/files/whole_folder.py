"""Folders that appear whole or not at all: written under a hidden temporary name, then renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from refavs.errors import ConfigError
from refavs.files.partials import lock_partial, partial_path, remove_left, remove_partial


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yields a new folder that replaces `out`, which must be missing or empty, when the block ends without an error.

    Raises:
        OSError: `out` was filled meanwhile.
    """
    hidden = out.with_name(f".{out.name}")
    remove_left(hidden)
    partial = partial_path(hidden)
    partial.mkdir(parents=True)
    lock = None
    try:
        with suppress(OSError):  # without locks, nobody removes the folder of a killed process
            lock = lock_partial(partial)
        yield partial
        os.rename(partial, out)  # also replaces an empty folder
    finally:
        with suppress(OSError):  # for example on a disk that became read-only
            remove_partial(partial)
        if lock is not None:
            os.close(lock)


def refuse_full(out: Path) -> None:
    """Raises ConfigError unless `out` is missing or an empty folder."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} holds files; name a new or empty folder")

"""Temporary files and folders: the name tells the final name, and a lock tells that a process is still writing.

A file or folder is first written beside its final place, under a unique temporary name. A killed process leaves that
behind; the next writer of the same file removes it and touches nothing else.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import zlib
from pathlib import Path

from refavs.files.locks import NO_LOCKS

PARTIAL = ".partial"
MOST_NAME_BYTES = 255  # limit of common file systems
_MARK = re.compile(rf"\.\d+-[0-9a-f]{{8}}{re.escape(PARTIAL)}")
_MOST_MARK_BYTES = 40


def partial_path(path: Path) -> Path:
    """A unique temporary name beside `path`; a name near the file system's limit is shortened."""
    return path.with_name(f"{_start(path)}{_mark()}")


def without_mark(name: str) -> str | None:
    """The final name of a temporary file; None unless `partial_path` made the name."""
    mark = _MARK.search(name, max(0, len(name) - _MOST_MARK_BYTES))
    return name[: mark.start()] if mark is not None and mark.end() == len(name) else None


def partials_of(path: Path) -> list[Path]:
    """Existing temporary files and folders of `path`."""
    start = _start(path)
    try:
        found = list(path.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return sorted(one for one in found if without_mark(one.name) == start and not one.is_symlink())


def lock_partial(partial: Path) -> int | None:
    """Locks a temporary file or folder until the returned descriptor is closed; None if another process holds it.

    Raises:
        FileNotFoundError: it was renamed or removed.
        OSError: the file system has no locks.
    """
    kind = os.O_RDONLY if partial.is_dir() else os.O_RDWR
    file = os.open(partial, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file), os.lstat(partial)):
            raise FileNotFoundError(f"{partial} was replaced")
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def remove_left(path: Path) -> bool:
    """Removes what dead writers of `path` left; returns whether a live one exists."""
    alive = False
    for left in partials_of(path):
        try:
            file = lock_partial(left)
        except OSError:
            continue  # just removed, another user's, or without locks, where nobody can tell whether its writer lives
        if file is None:
            alive = True
            continue
        with contextlib.suppress(OSError):
            remove_partial(left)
        os.close(file)
    return alive


def remove_partial(partial: Path) -> None:
    """Removes a temporary file or folder; renamed first, so that its writer can no longer publish it half-removed."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(partial).st_mode):
            away = partial.with_name(f"{without_mark(partial.name)}{_mark()}")
            os.rename(partial, away)
            shutil.rmtree(away)
        else:
            os.unlink(partial)


def give_name(partial: Path, path: Path) -> None:
    """Gives a temporary file its final name.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    else:
        os.unlink(partial)
        return
    # Without hard links, a file that another process creates right here is overwritten.
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    os.rename(partial, path)


def _mark() -> str:
    return f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"


def _start(path: Path) -> str:
    """The name of `path`; if too long for a mark, its end is replaced by a checksum."""
    name = path.name
    if len(os.fsencode(name)) <= MOST_NAME_BYTES - _MOST_MARK_BYTES:
        return name
    short = f"~{zlib.crc32(os.fsencode(name)):08x}"
    while len(os.fsencode(name + short)) > MOST_NAME_BYTES - _MOST_MARK_BYTES:
        name = name[:-1]
    return name + short

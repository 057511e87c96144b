"""Temporary files and folders: their names say what they become, and a lock says that somebody writes them.

What becomes a file or a folder is first written under a name of its own beside it. A process that is killed leaves
that; the next one that writes the same removes it, and nothing that anybody else has given a name.
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
MOST_NAME_BYTES = 255  # of the usual file systems
_MARK = re.compile(rf"\.\d+-[0-9a-f]{{8}}{re.escape(PARTIAL)}")
_MOST_MARK_BYTES = 40


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process uses; a name near the limit of the file system is shortened in it."""
    return path.with_name(f"{_start(path)}{_mark()}")


def without_mark(name: str) -> str | None:
    """What a temporary file becomes, by its name; None for a name that `partial_path` does not give."""
    mark = _MARK.search(name, max(0, len(name) - _MOST_MARK_BYTES))
    return name[: mark.start()] if mark is not None and mark.end() == len(name) else None


def partials_of(path: Path) -> list[Path]:
    """Files and folders that `partial_path` named for `path` and that are still there."""
    start = _start(path)
    try:
        found = list(path.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return sorted(one for one in found if without_mark(one.name) == start and not one.is_symlink())


def lock_partial(partial: Path) -> int | None:
    """A descriptor that holds the lock of a temporary file or folder while it is open; None where another one does.

    Raises:
        FileNotFoundError: it has its final name, or was removed.
        OSError: the file system has no locks.
    """
    kind = os.O_RDONLY if partial.is_dir() else os.O_RDWR
    file = os.open(partial, kind | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file), os.lstat(partial)):
            raise FileNotFoundError(f"{partial} is another one now")
    except BlockingIOError:
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    return file


def remove_left(path: Path) -> bool:
    """Removes what writers of `path` that are no more have left; says whether one is alive."""
    alive = False
    for left in partials_of(path):
        try:
            file = lock_partial(left)
        except OSError:
            continue  # gone just now, somebody else's, or without locks, where nobody knows who lives
        if file is None:
            alive = True
            continue
        with contextlib.suppress(OSError):
            remove_partial(left)
        os.close(file)
    return alive


def remove_partial(partial: Path) -> None:
    """Removes a temporary file or folder; from the first moment on, nobody can give it its final name."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(partial).st_mode):
            away = partial.with_name(f"{without_mark(partial.name)}{_mark()}")
            os.rename(partial, away)
            shutil.rmtree(away)
        else:
            os.unlink(partial)


def give_name(partial: Path, path: Path) -> None:
    """Gives a temporary file its name, unless that is taken.

    Raises:
        FileExistsError: it is.
    """
    try:
        os.link(partial, path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    else:
        os.unlink(partial)
        return
    # On a disk without hard links, a file that comes at this very moment is lost.
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists")
    os.rename(partial, path)


def _mark() -> str:
    return f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"


def _start(path: Path) -> str:
    """The name of `path`, with a checksum in the place of its end where nothing could be added to it."""
    name = path.name
    if len(os.fsencode(name)) <= MOST_NAME_BYTES - _MOST_MARK_BYTES:
        return name
    short = f"~{zlib.crc32(os.fsencode(name)):08x}"
    while len(os.fsencode(name + short)) > MOST_NAME_BYTES - _MOST_MARK_BYTES:
        name = name[:-1]
    return name + short

"""Opens regular files only, up to a size limit.

Folders come from downloads and archives, so any name may turn out to be a pipe without a writer, an endless device or
a file larger than memory.
"""

import contextlib
import io
import os
import stat
from pathlib import Path

MOST_BYTES = 2**24  # of a record, which takes up to twenty times as much memory once parsed
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device", stat.S_IFLNK: "a symbolic link",
}


class UnusableFileError(OSError):
    """A file that cannot be used; the text fits into "cannot be read (...)", and the caller names the file."""

    def __init__(self, reason: str, path: str | Path | None = None) -> None:
        super().__init__(reason)
        self.filename = None if path is None else str(path)

    def __str__(self) -> str:
        return str(self.args[0])


def refuse_special(facts: os.stat_result, path: str | Path | None = None) -> None:
    """Raises `UnusableFileError` for a folder, pipe, socket or device."""
    if not stat.S_ISREG(facts.st_mode):
        raise UnusableFileError(f"it is {_KINDS.get(stat.S_IFMT(facts.st_mode), 'something else')}, not a file", path)


def open_plain(path: str | Path) -> int:
    """Opens a plain file for reading without ever blocking; the caller closes the returned descriptor.

    Raises:
        UnusableFileError: a folder, pipe, socket or device.
        OSError: the file is missing or may not be read.
    """
    refuse_special(os.stat(path), path)
    # Checked again once open, as the file may have been replaced; O_NONBLOCK, as a pipe without a writer would block.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        refuse_special(os.fstat(file), path)
    except UnusableFileError:
        os.close(file)
        raise
    return file


def read_plain(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """Reads a whole plain file.

    Raises:
        UnusableFileError: a folder, pipe, socket or device, or a file of more than `most` bytes.
        OSError: the file is missing or may not be read.
    """
    with open(open_plain(path), "rb", buffering=0) as file:
        refuse_long(os.fstat(file.fileno()).st_size, most, path)
        return file.readall()


def open_lock(path: str | Path) -> io.FileIO:
    """Opens a lock file, and creates it if missing.

    Raises:
        UnusableFileError: the name belongs to a link, pipe or device.
        OSError: the file cannot be created or opened.
    """
    with contextlib.suppress(FileNotFoundError):
        refuse_special(os.lstat(path), path)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW, 0o666)
    try:
        refuse_special(os.fstat(file), path)
    except UnusableFileError:
        os.close(file)
        raise
    return io.FileIO(file, "a")


def refuse_long(num_bytes: int, most: int, path: str | Path | None = None) -> None:
    """Raises `UnusableFileError` for more than `most` bytes."""
    if num_bytes > most:
        raise UnusableFileError(f"it has {num_bytes:,} bytes; a file of this kind has {most:,} at most", path)

"""Files that are none: nobody waits for a pipe, reads a device to its end, or asks for a terabyte."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refavs.files.plain_file import UnusableFileError, open_lock, open_plain, read_plain
from refavs.store.backends.base import LocalFolder, holds
from refavs.store.lease import Lease
from refavs.terminal.command import Exit, run_command

KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is a named pipe, not a file"), "folder": (Path.mkdir, "it is a folder, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
}


def test_plain_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_plain(tmp_path / "a") == read_plain(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UnusableFileError, match="it has 5 bytes; a file of this kind has 4 at most"):
        read_plain(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "b")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_path_that_is_not_a_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    make, text = KINDS[name]
    make(tmp_path / "x")
    for call in (open_plain, read_plain, open_lock):
        with pytest.raises(UnusableFileError, match=f"{text}|it is a symbolic link, not a file"):
            call(str(tmp_path / "x"))
    with pytest.raises(UnusableFileError, match=text):
        LocalFolder(tmp_path).open("x")
    assert not holds(LocalFolder(tmp_path), "x", b"")


def test_sparse_terabyte_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", 2**40)
    with pytest.raises(UnusableFileError, match=r"it has 1,099,511,627,776 bytes"):
        read_plain(tmp_path / "a")


@pytest.mark.parametrize("name", ["lease.json", ".lock"])
def test_store_whose_lease_is_a_pipe_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / name)
    if name == ".lock":
        (tmp_path / "lease.json").write_text("{}")

    def take() -> int:
        with Lease(LocalFolder(tmp_path), "refavs-extract", beat_s=0.01, expires_s=0.02):
            return 0

    assert run_command("refavs-extract", take) == Exit.USAGE
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and "cannot use" in told[0] and name in told[0]

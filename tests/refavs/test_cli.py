"""Which errors every command prints on one line, and which keep their traceback."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from refavs.errors import ConfigError
from refavs.files.temporary import temporary_folder
from refavs.terminal.command import run_command

ROOT = Path(__file__).resolve().parents[2]


def failing(number: int) -> int:
    raise OSError(number, os.strerror(number), "some/place")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (errno.ENOSPC, "cannot write some/place: No space left on device; free space or name another folder, then"),
        (errno.EACCES, "cannot use some/place: Permission denied; change its permissions or name another path, then"),
        (errno.EEXIST, "cannot use some/place: File exists; change"),
        (errno.ENOTDIR, "cannot use some/place: Not a directory; change"),
        (errno.EISDIR, "cannot use some/place: Is a directory; change"),
        (errno.EPERM, "cannot use some/place: Operation not permitted; change"),
        (errno.ENAMETOOLONG, "cannot use some/place: File name too long; change"),
        (errno.ELOOP, "cannot use some/place: Too many levels of symbolic links; change"),
    ],
)
def test_place_that_cannot_be_used_is_one_line(
    number: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("refavs-x", lambda: failing(number)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"refavs-x: {line}") and printed.count("\n") == 1


@pytest.mark.process
def test_python_without_docstrings_is_refused_in_a_line() -> None:
    code = "import sys; from refavs.terminal.command import run_command; sys.exit(run_command('refavs-x', lambda: 0))"
    for option, status in (("-OO", 2), ("-O", 0)):
        done = subprocess.run([sys.executable, option, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == status and done.stderr.count("\n") == (status == 2)
        assert status == 0 or done.stderr.startswith("refavs-x: python -OO and PYTHONOPTIMIZE=2 drop")


def test_full_temporary_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def gettempdir() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", gettempdir)
    expected = r"\(No usable temporary .*\); free space, or set TMPDIR to a folder that can"
    with pytest.raises(ConfigError, match=expected):
        temporary_folder()


def test_other_system_errors_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        run_command("refavs-x", lambda: failing(errno.EIO))

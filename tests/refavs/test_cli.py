"""What every command tells on one line, and what keeps its traceback."""

import errno
import os

import pytest

from refavs.cli import run_command


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
    ],
)
def test_place_that_cannot_be_used_is_one_line(
    number: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("refavs-x", lambda: failing(number)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"refavs-x: {line}") and printed.count("\n") == 1


def test_other_system_errors_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        run_command("refavs-x", lambda: failing(errno.EIO))

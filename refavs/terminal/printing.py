"""The one way in which commands print text: what users, files and other programs name things is shown, never obeyed.

A name may hold codes that clear the screen, turn the direction of writing or begin a line of their own. Commands print
with `say` and `warn`, tables with `PlainConsole`; linting refuses `print` and rich's own console.
"""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # they change the order in which what follows is shown
_HIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")
_HIDDEN_BUT_LINES = re.compile(_HIDDEN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
# What progress bars of other libraries write in one call: back to the line's beginning, or lines up, and plain text.
_BAR = re.compile("(\r|(\x1b\\[A)+)([^\x00-\x1f]*)(\r?)")


def printable(text: str) -> str:
    """The text on one line, with an escape as of Python in the place of each character that a terminal would obey."""
    return _HIDDEN.sub(_escape, text)


def printable_lines(text: str) -> str:
    """As `printable`, of a text whose line ends are ours."""
    return _HIDDEN_BUT_LINES.sub(_escape, text)


def say(line: str) -> None:
    """Prints one line on standard output."""
    print(printable(line))


def warn(line: str) -> None:
    """Prints one line on standard error, at once."""
    print(printable(line), file=sys.stderr, flush=True)


def show_trace(text: str) -> None:
    """Prints a traceback on standard error."""
    print(printable_lines(text), file=sys.stderr, flush=True)


@contextmanager
def printable_streams() -> Iterator[None]:
    """What others print inside, as warnings and the logs of libraries, has no codes for the terminal either."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    out: Any = _Printable(sys.stdout)
    err: Any = _Printable(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _Printable:
    """A stream that escapes what is written to it; else the stream that it was made of."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # the name by which consoles of rich, whose codes are ours, find it

    def write(self, text: str) -> int:
        bar = _BAR.fullmatch(text)
        shown = f"{bar[1]}{printable(bar[3])}{bar[4]}" if bar else printable_lines(text)
        self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode()

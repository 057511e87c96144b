"""The only way commands print text: terminal codes in names from users, files and programs are escaped.

A name may contain codes that clear the screen, reverse the text direction or start a new line. Commands print with
`say` and `warn`, tables with `PlainConsole`; linting refuses `print` and rich's own console.
"""

import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of the text that follows
_HIDDEN = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")
_HIDDEN_BUT_LINES = re.compile(_HIDDEN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))
# One update of another library's progress bar: back to the start of the line, or some lines up, then plain text.
_BAR = re.compile("(\r|(\x1b\\[A)+)([^\x00-\x1f]*)(\r?)")


def printable(text: str) -> str:
    """The text on one line, with Python's escape for each character that a terminal would interpret."""
    return _HIDDEN.sub(_escape, text)


def printable_lines(text: str) -> str:
    """Like `printable`, but keeps line ends."""
    return _HIDDEN_BUT_LINES.sub(_escape, text)


def say(line: str) -> None:
    """Prints one line on standard output."""
    print(printable(line))


def warn(line: str) -> None:
    """Prints one line on standard error and flushes it."""
    print(printable(line), file=sys.stderr, flush=True)


def show_trace(text: str) -> None:
    """Prints a traceback on standard error."""
    print(printable_lines(text), file=sys.stderr, flush=True)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Escapes terminal codes in everything printed inside, including warnings and logs of libraries."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may not fit the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    out: Any = _Printable(sys.stdout)
    err: Any = _Printable(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _Printable:
    """Wraps a stream and escapes what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # the name by which our rich consoles find the stream itself

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
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode()


def readable_bytes(num_bytes: int) -> str:
    """A size in the largest decimal unit that keeps it above one."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

"""What users name things is shown on a terminal and not obeyed: escapes, markup, emoji, lines of their own."""

import io
import sys
import traceback
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from refavs.terminal.command import CommandParser, run_command
from refavs.terminal.console import PlainConsole, ProgressBar
from refavs.terminal.printing import printable, printable_streams, say, warn

NASTY = "lr[low] [/old] :smile: \x1b[2J\r\a\n\u202ename\x9b1m"
SHOWN = "lr[low] [/old] :smile: \\x1b[2J\\r\\x07\\n\\u202ename\\x9b1m"


class Terminal(io.StringIO):
    """Keeps what is written to it, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_that_a_terminal_would_obey_is_escaped() -> None:
    assert printable(NASTY) == SHOWN
    assert printable("\udcff\ud800\u2028\t\x00") == "\\xff\\ud800\\u2028\\t\\x00"
    for plain in ("Bläser", "吉他 手", "a\\b", "👩‍🎤", "می‌خواهم", "e\u0301"):
        assert printable(plain) == plain


def test_lines_are_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    say(NASTY)
    warn(NASTY)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_strings_are_never_markup_in_what_rich_prints(file: type[io.StringIO]) -> None:
    console = PlainConsole(file=file(), width=200, force_terminal=file is Terminal)
    table = Table("trial", NASTY, title=NASTY, caption=NASTY)
    table.add_row(NASTY, Text(NASTY))
    console.print(table)
    console.print(NASTY, style="bold", markup=True)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count("lr[low] [/old] :smile: ") == 6 and text.count(SHOWN) == 5  # a Text may have lines
    assert "\x1b[2J" not in text and not {"\a", "\r", "\u202e", "\x9b"} & set(text)
    assert ("\x1b[1m" in text) == (file is Terminal)


def test_progress_shows_titles_and_notes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setenv("COLUMNS", "300")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", stream)
        with ProgressBar(NASTY, 2, "trials") as bar:
            bar.advance(note=NASTY)
        assert stream.getvalue().count(SHOWN) >= 2 and "\x1b[2J" not in stream.getvalue()


def test_what_libraries_print_has_no_codes_but_those_of_bars(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        sys.stderr.write(warnings.formatwarning(NASTY, UserWarning, "x.py", 1))
        sys.stderr.write("\r 50%|█   |")
        sys.stderr.write("\x1b[A")
        sys.stderr.writelines(["first\x1b[2J\n", "second\n"])
        print("two\nlines\x1b[2J\rgone")
        return 0

    assert run_command("refavs-x", command) == 0
    out, err = capsys.readouterr()
    assert out == "two\nlines\\x1b[2J\\rgone\n"
    assert "\\x1b[2J\\r\\x07\n\\u202ename\\x9b1m\n" in err and err.endswith("\r 50%|█   |\x1b[Afirst\\x1b[2J\nsecond\n")


def test_names_that_the_terminals_encoding_lacks_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", ascii_only)
    with printable_streams():
        say("吉他 \udcff")
        PlainConsole().print("é")
    ascii_only.flush()
    assert ascii_only.buffer.getvalue() == b"\\u5409\\u4ed6 \\xff\n\\xe9\n"  # type: ignore[attr-defined]


def test_refused_arguments_and_tracebacks_are_escaped_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        CommandParser("refavs-x").parse_args([NASTY])
    assert capsys.readouterr().err.splitlines()[-1] == f"refavs-x: error: unrecognized arguments: {SHOWN}"

    def bug() -> int:
        raise LookupError(NASTY)

    monkeypatch.setattr("sys.excepthook", sys.__excepthook__)
    with pytest.raises(LookupError) as caught:
        run_command("refavs-x", bug)
    assert sys.stderr is not None and not hasattr(sys.stderr, "rich_proxied_file")
    monkeypatch.setattr("sys.__excepthook__", lambda *error: traceback.print_exception(*error))
    sys.excepthook(LookupError, caught.value, None)
    told = capsys.readouterr().err
    assert "LookupError: lr[low] [/old] :smile: \\x1b[2J\\r\\x07\n" in told and "\x1b" not in told

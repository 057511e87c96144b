"""Shared by all commands: exit statuses, one line for a user's error, a traceback for a bug."""

import argparse
import errno
import os
import select
import sys
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Any, NoReturn

from refavs.errors import ConfigError, RefAVSError
from refavs.files.plain_file import UnusableFileError
from refavs.terminal.printing import printable, printable_streams, warn

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
WRONG_PATH = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
STDOUT = 1
STRIPPED = 2  # optimisation level at which Python drops docstrings


class Exit(IntEnum):
    """Exit statuses of every command."""

    COMPLETE = 0
    ERROR = 1
    USAGE = 2
    FAILURES = 3
    INTERRUPTED = 130
    READER_GONE = 141  # as a shell reports a program whose reader, e.g. `head`, has ended


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        told = "default: " in (action.help or "")
        return action.help if told or action.default in (None, False, []) else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kind = argparse.RawDescriptionHelpFormatter if "\n" in text else argparse.HelpFormatter
        return kind._fill_text(self, text, width, indent)


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose help shows defaults and keeps line breaks, and whose error messages escape terminal
    codes in the arguments they quote.
    """

    def __init__(self, *args: Any, formatter_class: Any = _Formatter, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=formatter_class, **kwargs)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def run_command(name: str, command: Callable[[], int]) -> int:
    """Runs `command`, turns user errors into one line on stderr and an exit status, and escapes all printed text."""
    with printable_streams():
        return _status_of(name, command)


def _status_of(name: str, command: Callable[[], int]) -> int:
    try:
        if sys.flags.optimize >= STRIPPED:
            raise ConfigError("python -OO and PYTHONOPTIMIZE=2 drop the docstrings that Ray and the list of settings "
                              "need; run Python with -O or without it")  # fmt: skip
        status = command()
        sys.stdout.flush()
        return status
    except RefAVSError as error:
        warn(f"{name}: {' '.join(str(error).split())}")
        return Exit.USAGE
    except UnusableFileError as error:
        warn(f"{name}: cannot use {error.filename or 'a file'}: {error}; remove it or name another path, then run the "
             "same command again")
        return Exit.USAGE
    except KeyboardInterrupt:
        warn(f"{name}: interrupted; run the same command again to resume")
        return Exit.INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE and _reader_is_gone():
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # Python writes what is left when it ends
            return Exit.READER_GONE
        if error.errno in FULL:
            where, remedy = error.filename or "the output folder", "free space or name another folder"
            warn(f"{name}: cannot write {where}: {error.strerror}; {remedy}, then run the same command again")
            return Exit.USAGE
        if error.errno in WRONG_PATH:
            where, remedy = error.filename or "a file or folder", "change its permissions or name another path"
            warn(f"{name}: cannot use {where}: {error.strerror}; {remedy}, then run the same command again")
            return Exit.USAGE
        sys.excepthook = _show_bug
        raise
    except Exception:
        sys.excepthook = _show_bug
        raise


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(STDOUT, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints Python's own traceback, escaped."""
    with printable_streams():
        sys.__excepthook__(kind, error, trace)

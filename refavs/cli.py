"""What every command shares: one line for the user's mistakes, a traceback for ours, and the exit statuses."""

import errno
import sys
from collections.abc import Callable
from enum import IntEnum

from refavs.errors import RefAVSError
from refavs.plain_file import UnusableFileError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
WRONG_PATH = (errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class Exit(IntEnum):
    """Exit statuses of every command."""

    COMPLETE = 0
    ERROR = 1
    USAGE = 2
    FAILURES = 3
    INTERRUPTED = 130


def run_command(name: str, command: Callable[[], int]) -> int:
    """Runs `command` and turns the errors a user can meet into one line on stderr and an exit status."""
    try:
        return command()
    except RefAVSError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return Exit.USAGE
    except UnusableFileError as error:
        print(f"{name}: cannot use {error.filename or 'a file'}: {error}; remove it or name another path, then run the "
              "same command again", file=sys.stderr)
        return Exit.USAGE
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to go on", file=sys.stderr)
        return Exit.INTERRUPTED
    except OSError as error:
        if error.errno in FULL:
            where, remedy = error.filename or "the output folder", "free space or name another folder"
            print(f"{name}: cannot write {where}: {error.strerror}; {remedy}, then run the same command again",
                  file=sys.stderr)
            return Exit.USAGE
        if error.errno in WRONG_PATH:
            where, remedy = error.filename or "a file or folder", "change its permissions or name another path"
            print(f"{name}: cannot use {where}: {error.strerror}; {remedy}, then run the same command again",
                  file=sys.stderr)
            return Exit.USAGE
        raise

"""Paths as text of a JSON record, which is UTF-8, though a path may hold any bytes."""

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

_URI = "file://"


def path_text(path: Path) -> str:
    """The absolute path; a path with bytes that are not UTF-8 as a file URI."""
    absolute = path.absolute()
    try:
        str(absolute).encode()
    except UnicodeEncodeError:
        return absolute.as_uri()
    return str(absolute)


def path_of(text: str) -> Path:
    """The path that `path_text` turned into `text`."""
    return Path(os.fsdecode(unquote_to_bytes(text.removeprefix(_URI))) if text.startswith(_URI) else text)

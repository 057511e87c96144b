"""Tables as CSV files, and untrusted names: ids that become file names, both forms of Unicode."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from refavs.errors import DatasetError
from refavs.files.plain_file import UnusableFileError
from refavs.files.source_files import open_file, reason_of

# A store pads texts to the longest one. Expressions have about ten words; a much longer text means an unclosed quote.
MOST_CHARACTERS = 2_000
_LINE_CHARACTERS = 2**20
# The last range is how Python represents file name bytes that are not UTF-8.
_SEPARATOR_OR_CONTROL = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")


def plain_name(name: str, where: str) -> str:
    """Returns `name` if it is safe as the name of a folder inside another.

    Raises:
        DatasetError: `name` is empty, starts with a dot, or has a path separator, `..`, a control character or
            bytes that are not UTF-8.
    """
    if not name or name.startswith(".") or ".." in name or _SEPARATOR_OR_CONTROL.search(name):
        raise DatasetError(
            f"{where}: {name!r} cannot be a media id; accepted: a plain name without '/', '\\', '..', control "
            "characters, bytes that are not UTF-8 or a leading dot. Correct or remove it."
        )
    return name


def composed(name: str) -> str:
    """A name in composed Unicode form. Disks, e.g. on a Mac, may use the decomposed form for the same letters."""
    return unicodedata.normalize("NFC", name)


def read_rows(path: Path, columns: Iterable[str | int]) -> Iterator[tuple[str, ...]]:
    """Yields the `columns` of each row of a UTF-8 CSV file with a header, unchanged; other columns are skipped.

    Args:
        columns: their names, or their places from 0.

    Raises:
        DatasetError: the file is missing, not a plain file or not UTF-8, a column is missing or repeated, or a row has
            a different number of fields than the header.
    """
    columns = tuple(columns)
    expected = f"expected a CSV file with columns {_told(columns)}"
    try:
        with open_file(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(file, path), strict=True)
            header = next(reader, [])
            places = _places(path, header, columns)
            for fields in reader:
                if len(fields) != len(header) and fields:
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(header)}; "
                        "put an expression with a comma in double quotes."
                    )
                if fields:
                    values = tuple(fields[place] for place in places)
                    _refuse_long(values, columns, f"{path}, line {reader.line_num}")
                    yield values
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; {expected}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as CSV in UTF-8 ({error}); save it as such.") from error
    except UnusableFileError as error:
        raise DatasetError(f"{path} cannot be read ({error}); {expected}.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); copy it again.") from error


def header_of(path: Path) -> list[str]:
    """The columns of a CSV file; empty if it cannot be read, which `read_rows` then explains."""
    try:
        with open_file(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            return next(csv.reader([file.readline(_LINE_CHARACTERS)]), [])
    except (OSError, UnusableFileError, UnicodeDecodeError, csv.Error):
        return []


def _lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_LINE_CHARACTERS):
        number += 1
        if "\0" in line:
            raise DatasetError(f"{path}, line {number} contains a NUL byte (UTF-16 or a damaged file); save it as "
                               "CSV in UTF-8.")  # fmt: skip
        if len(line) == _LINE_CHARACTERS:
            raise DatasetError(f"{path}, line {number} is longer than {_LINE_CHARACTERS:,} characters; save the file "
                               "as CSV with one row to a line.")  # fmt: skip
        yield line


def _told(columns: tuple[str | int, ...]) -> str:
    return ",".join(f"<column {name + 1}>" if isinstance(name, int) else name for name in columns)


def _refuse_long(values: tuple[str, ...], columns: tuple[str | int, ...], where: str) -> None:
    for name, value in zip(columns, values, strict=True):
        if len(value) > MOST_CHARACTERS:
            raise DatasetError(
                f"{where}: {_told((name,))} has {len(value):,} characters; accepted: up to {MOST_CHARACTERS:,}. "
                "Shorten it, or close the double quote that is open there."
            )


def _places(path: Path, header: list[str], columns: tuple[str | int, ...]) -> list[int]:
    missing = [name for name in columns if (name >= len(header) if isinstance(name, int) else name not in header)]
    twice = [name for name in columns if isinstance(name, str) and header.count(name) > 1]
    if missing or twice:
        found = f"no column {', '.join(map(repr, missing))}" if missing else f"column {twice[0]!r} more than once"
        raise DatasetError(
            f"{path}: {found} among {', '.join(header) or 'nothing'}; accepted: a CSV file with a header of "
            f"{_told(columns)}, each once."
        )
    return [name if isinstance(name, int) else header.index(name) for name in columns]


def is_plain_path(name: str) -> bool:
    """Whether `name`, plain names joined by '/', is safe as a path inside a folder."""
    try:
        return all(plain_name(part, "") for part in name.split("/"))
    except DatasetError:
        return False


def named_on_disk(folder: Path, name: str) -> Path:
    """Path of the entry `name` in a folder, in the Unicode form used on disk."""
    path = folder / name
    if name.isascii() or os.path.exists(path) or not os.access(folder, os.R_OK | os.X_OK):
        return path
    return next((entry for entry in sorted(folder.iterdir()) if composed(entry.name) == composed(name)), path)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue().encode()

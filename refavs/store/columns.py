"""Plain tables: clips, texts and expressions, and columns that tell other readers which rows belong to them.

A plain table is written as a whole when an extraction ends. Strings are UTF-8, zero-padded to the longest one, which
every Zarr reader can decode.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypedDict

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.files.plain_file import UnusableFileError
from refavs.files.typed_json import Count, read_json, shaped
from refavs.store.backends.base import Folder, holds, out_of_reach, read_or_refuse, write_if_changed
from refavs.store.format.commits import Crc, seal, unseal
from refavs.store.format.shard import CRC_BYTES, crc32c
from refavs.store.format.zarr_metadata import column_metadata, group_metadata

Columns = dict[str, np.ndarray]
Table = tuple[pd.DataFrame, dict[str, Any]]  # the frame and its record
# Columns that a table must have, and the kind of those that are checked.
NEEDED: dict[str, dict[str, str]] = {
    "clips": {"id": "str", "frames": "str", "sound": "str", "seconds": "int or float"},
    "text": {"key": "str", "text": "str"},
    "expressions": {"uid": "str", "vid": "", "clip": "int", "object": "int", "text": "int", "split": "str", "fid": "",
                    "grade": "", "dimension": "str"},
}  # fmt: skip
_AXES = {"clips": "clip", "objects": "object", "expressions": "expression"}  # axis by the start of a path
# Allowed column names. Streams share the groups `clips` and `text`; a reader adds two columns to `expressions`.
_NAMES = {"clips": r"(?!(?:visual|audio)\b)\w+", "text": "key|text", "expressions": r"(?!(?:clip_id|text_row)\b)\w+"}
_TEXT = {"encoding": "utf-8"}
_NEXT = ".next"  # suffix of a new column that has not yet replaced the old one
AGAIN = "run the same refavs-extract command again, which rewrites it"
MOST_BYTES = 2**28  # in a column
_DTYPES = {"str": "uint8", "int": "int64", "float": "float64", "bool": "bool"}


class ColumnFacts(TypedDict):
    """The parts of a column's description that are read."""

    shape: list[Count]
    data_type: Literal["uint8", "int64", "float64", "bool"]
    attributes: dict[str, Any]


class _Column(TypedDict):
    name: str
    kind: Literal["str", "int", "float", "bool"]
    dtype: str
    shape: list[Count]
    crc32c: Crc


class _Facts(TypedDict):
    num_rows: Count
    columns: list[_Column]


def table_record(table: str) -> str:
    """The file whose presence marks a plain table as complete."""
    return f"commits/{table}.json"


def encode_strings(values: list[str], where: str) -> np.ndarray:
    """Encodes strings as rows of zero-padded UTF-8 bytes.

    Raises:
        StoreError: a string contains a NUL or cannot be encoded as UTF-8; the message names its row.
    """
    encoded = []
    for place, value in enumerate(values):
        try:
            encoded.append(value.encode())
        except UnicodeEncodeError as error:
            raise StoreError(f"{where}, row {place}: {value!r} is not valid Unicode; rename it") from error
        if b"\0" in encoded[-1]:
            raise StoreError(f"{where}, row {place}: {value!r} holds a NUL character; remove it")
    width = max(map(len, encoded), default=0) or 1
    data = b"".join(value.ljust(width, b"\0") for value in encoded)
    return np.frombuffer(data, np.uint8).reshape(len(encoded), width)


def decode_strings(rows: np.ndarray) -> list[str]:
    """Inverse of `encode_strings`."""
    return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def from_frame(frame: pd.DataFrame) -> tuple[Columns, dict[str, str]]:
    """Converts the columns of `frame` to arrays, each with the kind that restores it: str, int, float or bool."""
    columns: Columns = {}
    kinds: dict[str, str] = {}
    for name in map(str, frame.columns):
        values = frame[name]
        present = values.dropna()
        if values.dtype == object and all(isinstance(value, bool) for value in present):
            # A missing fact means False; if all rows lack it, the column becomes NaN.
            values = values == True if len(present) else values.astype("float64")  # noqa: E712
        if pd.api.types.is_bool_dtype(values.dtype):
            columns[name], kinds[name] = values.to_numpy(bool), "bool"
        elif pd.api.types.is_integer_dtype(values.dtype):
            columns[name], kinds[name] = values.to_numpy("int64"), "int"
        elif pd.api.types.is_float_dtype(values.dtype):
            columns[name], kinds[name] = values.to_numpy("float64"), "float"
        else:
            strings = ["" if pd.isna(value) else str(value) for value in values]
            columns[name], kinds[name] = encode_strings(strings, f"column {name}"), "str"
    return columns, kinds


def column_files(
    group: str, columns: Mapping[str, np.ndarray], kinds: Mapping[str, str]
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the files of columns, which are one-chunk arrays below `group`."""
    for name, column in columns.items():
        if column.size:
            yield _chunk_name(group, name, column), _chunk(column)
        attributes = _TEXT if kinds[name] == "str" else {}
        yield f"{group}/{name}/zarr.json", _description(group, column, attributes)


def _description(group: str, column: np.ndarray, attributes: Mapping[str, Any]) -> bytes:
    start = group.split("/")[0]
    return column_metadata(column, _AXES.get(start, start), attributes)


def read_column(folder: Folder, group: str, name: str) -> np.ndarray | None:
    """Reads a column by its own description and checksum; None if it is missing or damaged.

    Raises:
        OSError: its files cannot be accessed.
    """
    try:
        told: ColumnFacts = shaped(read_json(folder.read(f"{group}/{name}/zarr.json")), ColumnFacts, name)
        empty = _described(told["shape"], told["data_type"])
        data = folder.read(_chunk_name(group, name, empty), empty.nbytes + CRC_BYTES) if empty.size else b""
        column = np.frombuffer(data[:-CRC_BYTES], empty.dtype).reshape(empty.shape)
    except (OSError, ValueError) as error:
        if out_of_reach(error):
            raise
        return None
    return column if not column.size or data == _chunk(column) else None


def write_table(folder: Folder, table: str, frame: pd.DataFrame, first: Callable[[], None] = lambda: None) -> None:
    """Replaces a plain table; concurrent readers see either the old or the new one.

    New columns are written next to the old ones, the record is replaced, and then the new columns replace the old ones.
    If this is interrupted, the next call completes it.

    Args:
        first: called before the table is replaced, but not if it is unchanged.

    Raises:
        StoreError: a column is missing or cannot be stored.
    """
    columns, kinds = from_frame(frame)
    facts = {
        "num_rows": len(frame),
        "columns": [
            {"name": name, "kind": kinds[name], "dtype": str(column.dtype), "shape": list(column.shape),
             "crc32c": crc32c(np.ascontiguousarray(column))}
            for name, column in columns.items()
        ],
    }  # fmt: skip
    try:
        _refuse_odd(table, facts)
    except ValueError as error:
        raise StoreError(f"the table {table} cannot be written: {error}") from error
    record = table_record(table)
    files = {f"{table}/zarr.json": group_metadata()} | dict(column_files(table, columns, kinds))
    replaces = folder.exists(record)
    if not holds(folder, record, seal(facts)):
        if replaces:
            first()
        for file in [_chunk_name(table, name, column) for name, column in columns.items() if column.size]:
            if not replaces:
                write_if_changed(folder, file, files[file])
            elif not holds(folder, file, files[file]):
                folder.write(f"{file}{_NEXT}", files[file])
        folder.write(record, seal(facts))
    for name, data in files.items():
        write_if_changed(folder, name, data)
    for name, column in _files_there(folder, table).items():
        if name not in files and (column in columns or _is_ours(folder, table, column)):
            folder.remove(name)


def _files_there(folder: Folder, table: str) -> dict[str, str]:
    """Files of the table's columns, each with its column, ordered so that descriptions come last."""
    file = re.compile(rf"{table}/(zarr\.json|({_NAMES[table]})/(zarr\.json|c(\.0){{1,2}}({re.escape(_NEXT)})?))")
    found = [match for name in folder.names(table) if (match := file.fullmatch(name))]
    return {match[0]: match[2] or "" for match in found}


def _is_ours(folder: Folder, table: str, name: str) -> bool:
    """Whether a column's description was written by this code."""
    try:
        data = folder.read(f"{table}/{name}/zarr.json")
        told: ColumnFacts = shaped(read_json(data), ColumnFacts, name)
        return data == _description(table, _described(told["shape"], told["data_type"]), told["attributes"])
    except (OSError, ValueError) as error:
        if out_of_reach(error):
            raise
        return False


def read_table(folder: Folder, table: str) -> Table | None:
    """Reads a plain table and its record; None if it was not written yet.

    Raises:
        StoreError: it is half-written or damaged.
    """
    file = table_record(table)
    record = folder.where(file)
    if not folder.exists(file):
        if folder.exists(f"{table}/{next(iter(NEEDED[table]))}/zarr.json"):
            raise StoreError(f"the table {table} of {folder.location} is half-written (there is no {record}); {AGAIN}")
        return None
    facts = unseal(folder, file)
    frame = {}
    try:
        _refuse_odd(table, facts)
        for fact in facts["columns"]:
            column = _read_column(folder, table, fact)
            frame[fact["name"]] = decode_strings(column) if fact["kind"] == "str" else column
        return pd.DataFrame(frame, index=pd.RangeIndex(facts["num_rows"])), facts
    except ValueError as error:
        raise StoreError(f"the table {table} of {folder.location} cannot be used ({error}); remove {record}, then "
                         f"{AGAIN}") from error


def _read_column(folder: Folder, table: str, fact: dict[str, Any]) -> np.ndarray:
    """Reads one column and compares it with the record. It may still be in its `.next` file."""
    name = fact["name"]
    empty = _described(fact["shape"], fact["dtype"])
    if not empty.size:
        return empty
    file = _chunk_name(table, name, empty)
    what, most = f"column {name} of the table {table}", empty.nbytes + CRC_BYTES
    # Try the final place twice, because a writer may move the column there in between.
    for place in (file, f"{file}{_NEXT}", file):
        data = _read_if_there(folder, place, what, most)
        payload = data[:-CRC_BYTES]
        if crc32c(payload) == fact["crc32c"] and data[-CRC_BYTES:] == fact["crc32c"].to_bytes(CRC_BYTES, "little"):
            return np.frombuffer(payload, fact["dtype"]).reshape(fact["shape"]).copy()
    read_or_refuse(folder, file, what, AGAIN, most)
    raise StoreError(f"column {folder.where(file)} is damaged: it does not match its checksum; remove "
                     f"{folder.where(table_record(table))}, then {AGAIN}")


def _read_if_there(folder: Folder, file: str, what: str, most: int) -> bytes:
    try:
        return read_or_refuse(folder, file, what, AGAIN, most)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError | UnusableFileError):  # or it belongs to the previous table
            return b""
        raise


def _refuse_odd(table: str, facts: dict[str, Any]) -> None:
    """Checks a record before memory of the size it claims is allocated.

    Raises:
        ValueError: columns are missing, or have another type or number of rows.
    """
    known: _Facts = shaped(facts, _Facts, "the record")
    columns = {fact["name"]: fact for fact in known["columns"]}
    needed = NEEDED[table]
    lacking = [name for name in needed if name not in columns]
    if lacking or len(columns) < len(known["columns"]):
        raise ValueError(f"it has the columns {', '.join(columns)[:200]}; needed: {', '.join(needed)}, each once")
    for name, fact in columns.items():
        if not re.fullmatch(_NAMES[table], name):
            raise ValueError(f"a column {name!r}; accepted: letters, digits and _, and no name that has another use")
        rows, *width = fact["shape"] or [-1]
        right = len(width) == (fact["kind"] == "str") and fact["dtype"] == _DTYPES[fact["kind"]]
        if not right or rows != known["num_rows"] or 0 in width:
            raise ValueError(f"column {name} is {fact['kind']} of {fact['dtype']} {fact['shape']}, in a table of "
                             f"{known['num_rows']} rows")
        if rows and fact["kind"] not in (needed.get(name) or fact["kind"]).split(" or "):
            raise ValueError(f"column {name} holds {fact['kind']}; accepted: {needed[name]}")


def _described(shape: list[int], dtype: str) -> np.ndarray:
    """An array of that shape and type that occupies no memory.

    Raises:
        ValueError: the column is longer than allowed.
    """
    if len(shape) > 2 or math.prod(shape) * np.dtype(dtype).itemsize > MOST_BYTES:
        raise ValueError(f"a column of {dtype} {shape}; accepted: up to {MOST_BYTES:,} bytes")
    return np.broadcast_to(np.zeros((), dtype), shape)


def _chunk_name(group: str, name: str, column: np.ndarray) -> str:
    return f"{group}/{name}/{'.'.join(['c', *('0' for _ in column.shape)])}"


def _chunk(column: np.ndarray) -> bytes:
    column = np.ascontiguousarray(column)
    return column.tobytes() + crc32c(column).to_bytes(CRC_BYTES, "little")

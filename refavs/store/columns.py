"""Small columns that are written whole: the expressions, and the names of rows for readers without this code.

Strings are UTF-8 padded with zero bytes to the longest one, an encoding that every Zarr reader has.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.store.commits import seal, unseal
from refavs.store.files import read_file, sync_folder, write_atomically, write_if_changed
from refavs.store.schema import column_metadata, group_metadata
from refavs.store.shard import CRC_BYTES, crc32c

Columns = dict[str, np.ndarray]
_FOLDER = "expressions"
_TEXT = {"encoding": "utf-8"}
AGAIN = "run the same refavs-extract command again, which writes it anew"


def expressions_record(root: Path) -> Path:
    """The file whose presence says that the table of expressions is whole."""
    return root / "commits" / "expressions.json"


def encode_strings(values: list[str], where: str) -> np.ndarray:
    """Rows of UTF-8 bytes, padded with zeros.

    Raises:
        StoreError: a string holds a NUL or cannot be written as UTF-8; the message names its place.
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
    """Arrays of the columns of `frame`, and for each the kind that restores it: str, int, float or bool."""
    columns: Columns = {}
    kinds: dict[str, str] = {}
    for name in map(str, frame.columns):
        values = frame[name]
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


def write_columns(folder: Path, columns: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> None:
    """Writes each column as an array of one chunk below `folder`; what is there already is left alone."""
    write_if_changed(folder / "zarr.json", group_metadata())
    for name, column in columns.items():
        if column.size:
            write_if_changed(_chunk_path(folder, name, column), _chunk(column))
        attributes = _TEXT if kinds[name] == "str" else {}
        write_if_changed(folder / name / "zarr.json", column_metadata(column, attributes))


def write_expressions(root: Path, frame: pd.DataFrame) -> None:
    """Replaces the table of expressions; its record goes first and comes back last."""
    columns, kinds = from_frame(frame)
    facts = {
        "num_rows": len(frame),
        "columns": [
            {"name": name, "kind": kinds[name], "dtype": str(column.dtype), "shape": list(column.shape),
             "crc32c": crc32c(np.ascontiguousarray(column))}
            for name, column in columns.items()
        ],
    }  # fmt: skip
    record = expressions_record(root)
    if record.is_file():
        if record.read_bytes() == seal(facts):
            return
        record.unlink()
        sync_folder(record.parent)
    if (root / _FOLDER).exists():
        shutil.rmtree(root / _FOLDER)
    write_columns(root / _FOLDER, columns, kinds)
    write_atomically(record, seal(facts))


def read_expressions(root: Path) -> tuple[pd.DataFrame, dict[str, Any]] | None:
    """The table of expressions and its record, or None where none was written yet.

    Raises:
        StoreError: it is half-written or damaged.
    """
    record = expressions_record(root)
    if not record.is_file():
        if (root / _FOLDER).exists():
            raise StoreError(f"the table of expressions of {root} is half-written (there is no {record}); {AGAIN}")
        return None
    facts = unseal(record)
    frame = {}
    try:
        for fact in facts["columns"]:
            column = _read_column(root / _FOLDER, fact)
            frame[fact["name"]] = decode_strings(column) if fact["kind"] == "str" else column
        return pd.DataFrame(frame, index=pd.RangeIndex(facts["num_rows"])), facts
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"the table of expressions of {root} cannot be used ({error}); remove {record}, then "
                         f"{AGAIN}") from error


def _read_column(folder: Path, fact: dict[str, Any]) -> np.ndarray:
    """One column, compared with the record."""
    name = fact["name"]
    if not name.replace("_", "").isalnum():
        raise ValueError(f"column name {name!r}")
    empty = np.empty(fact["shape"], fact["dtype"])
    if not empty.size:
        return empty
    path = _chunk_path(folder, name, empty)
    data = read_file(path, f"column {name} of the expressions", AGAIN)
    payload = data[:-CRC_BYTES]
    if crc32c(payload) != fact["crc32c"] or data[-CRC_BYTES:] != fact["crc32c"].to_bytes(CRC_BYTES, "little"):
        raise StoreError(f"column {path} is damaged: it does not match its checksum; remove "
                         f"{expressions_record(folder.parent)}, then {AGAIN}")
    return np.frombuffer(payload, fact["dtype"]).reshape(fact["shape"]).copy()


def _chunk_path(folder: Path, name: str, column: np.ndarray) -> Path:
    return folder / name / ".".join(["c", *("0" for _ in column.shape)])


def _chunk(column: np.ndarray) -> bytes:
    column = np.ascontiguousarray(column)
    return column.tobytes() + crc32c(column).to_bytes(CRC_BYTES, "little")

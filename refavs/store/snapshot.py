"""What a store holds at one moment, while a writer may be adding to it.

A writer first takes the fingerprint out of the description, then commits shards, then exchanges the table of
expressions, and at last writes the description anew. Read in the order of `read_snapshot`, what was read first never
needs what was not yet there; what still does not fit together is read again for as long as the store changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.store.backends.base import Folder, out_of_reach
from refavs.store.columns import EXPRESSIONS_RECORD, read_expressions
from refavs.store.format.commits import CommitRecord, read_records, record_files
from refavs.store.format.schema import StoreSchema, root_attributes

T = TypeVar("T")
COLUMN_OF = {"clips": "clip", "objects": "object", "text": "text"}  # of the expressions, by the table of its rows


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A store's description, commit records, and expressions with the record of their table."""

    attributes: dict[str, Any]
    schema: StoreSchema
    records: list[CommitRecord]
    expressions: tuple[pd.DataFrame, dict[str, Any]] | None


def read_snapshot(folder: Folder) -> Snapshot:
    """Reads a store.

    Raises:
        StoreError: there is none, it is damaged, or its expressions need rows that no record holds.
    """
    return while_it_changes(folder, lambda: _read(folder))


def while_it_changes(folder: Folder, read: Callable[[], T]) -> T:
    """What `read` returns; where that fails and a writer has changed the store since, it is called again.

    Raises:
        StoreError: of `read`, which failed twice on the same store, or on one that is out of reach.
    """
    seen = None
    while True:
        try:
            return read()
        except StoreError as error:
            now = None if out_of_reach(error) or out_of_reach(error.__cause__) else state_of(folder)
            if now in (None, seen):
                raise
            seen = now


def state_of(folder: Folder) -> tuple[Any, ...] | None:
    """Changes with every step of a writer that readers see; None where it cannot be read."""
    try:
        return *described(folder), *record_files(folder)
    except (OSError, StoreError):
        return None


def described(folder: Folder) -> tuple[bytes, bytes]:
    """The description of the store and the record of its expressions, which change unless only shards are added."""
    names = "zarr.json", EXPRESSIONS_RECORD
    root, expressions = (folder.read(name) if folder.exists(name) else b"" for name in names)
    return root, expressions


def lost_rows(expressions: pd.DataFrame, records: list[CommitRecord]) -> dict[str, np.ndarray]:
    """Rows that the expressions need and no record holds, by table."""
    found = {}
    for table, column in COLUMN_OF.items():
        known = [row for record in records if record.table == table for row in record.rows.values()]
        values = expressions[column].to_numpy()
        found[table] = np.unique(values[(values >= 0) & ~np.isin(values, known)])
    return {table: rows for table, rows in found.items() if len(rows)}


def _read(folder: Folder) -> Snapshot:
    attributes = root_attributes(folder)
    schema = StoreSchema.from_attributes(attributes, f"store {folder.location}")
    expressions = read_expressions(folder)
    records = read_records(folder, schema)
    for table, rows in (lost_rows(expressions[0], records) if expressions else {}).items():
        raise StoreError(
            f"the expressions of store {folder.location} need row {rows[0]} of {table}, which no commit record holds "
            f"({len(rows)} such rows); run the same refavs-extract command again, or remove "
            f"{folder.where(EXPRESSIONS_RECORD)} to read what is there"
        )
    return Snapshot(attributes=attributes, schema=schema, records=records, expressions=expressions)

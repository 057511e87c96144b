"""What a store holds at one moment, while a writer may be adding to it.

A writer first takes the fingerprint out of the description, then commits shards, then adds to the clips and texts, then
exchanges the expressions, and at last writes the description again. Read in the order of `read_snapshot`, what was read
first never needs what was not yet there; what still does not fit together is read again for as long as the store
changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.store.backends.base import Folder, out_of_reach
from refavs.store.columns import NEEDED, Table, read_table, table_record
from refavs.store.format.commits import CommitRecord, read_records, record_files
from refavs.store.format.schema import OBJECTS, StoreSchema, root_attributes

T = TypeVar("T")
COLUMN_OF = {"clips": "clip", "objects": "object", "text": "text"}  # of the expressions, by the table of its rows


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A store's description, commit records, and plain tables with their records."""

    attributes: dict[str, Any]
    schema: StoreSchema
    records: list[CommitRecord]
    tables: dict[str, Table]


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


def described(folder: Folder) -> tuple[bytes, ...]:
    """The description of the store and the records of its plain tables, which change unless only shards are added."""
    names = ["zarr.json", *map(table_record, NEEDED)]
    return tuple(folder.read(name) if folder.exists(name) else b"" for name in names)


def lost_rows(
    expressions: pd.DataFrame, objects: list[CommitRecord], tables: Mapping[str, pd.DataFrame]
) -> dict[str, np.ndarray]:
    """Rows that the expressions need and that are not there, by table.

    Args:
        objects: commit records of the masks.
        tables: the clips and the texts, where they are there.
    """
    found = {}
    for table, column in COLUMN_OF.items():
        known = ([row for record in objects for row in record.rows.values()] if table == OBJECTS
                 else range(len(tables.get(table, ()))))  # fmt: skip
        values = expressions[column].to_numpy()
        needed = values[(values >= 0) | (table != OBJECTS)]
        found[table] = np.unique(needed[~np.isin(needed, np.asarray(known, "int64"))])
    return {table: rows for table, rows in found.items() if len(rows)}


def _read(folder: Folder) -> Snapshot:
    attributes = root_attributes(folder)
    schema = StoreSchema.from_attributes(attributes, f"store {folder.location}")
    tables = {name: found for name in reversed(NEEDED) if (found := read_table(folder, name))}
    records = read_records(folder, schema)
    if "expressions" in tables:
        objects = [record for record in records if record.table == OBJECTS]
        known = {name: frame for name, (frame, _) in tables.items()}
        for table, rows in lost_rows(known["expressions"], objects, known).items():
            raise StoreError(
                f"the expressions of store {folder.location} need row {rows[0]} of {table}, which is not there "
                f"({len(rows)} such rows); run the same refavs-extract command again, or remove "
                f"{folder.where(table_record('expressions'))} to read the rest"
            )
    return Snapshot(attributes=attributes, schema=schema, records=records, tables=tables)

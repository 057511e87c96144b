"""A consistent snapshot of a store while a writer may be adding to it.

A writer first removes the fingerprint from the description, then commits shards, adds to the clips and texts, replaces
the expressions, and finally writes the description again. `read_snapshot` reads in an order in which earlier parts do
not refer to parts that did not exist yet. If parts still do not match, it reads again while the store keeps changing.
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
COLUMN_OF = {"clips": "clip", "objects": "object", "text": "text"}  # the expressions' column, by the table it refers to


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The description of a store, its commit records, and its plain tables with their records."""

    attributes: dict[str, Any]
    schema: StoreSchema
    records: list[CommitRecord]
    tables: dict[str, Table]


def read_snapshot(folder: Folder) -> Snapshot:
    """Reads a store.

    Raises:
        StoreError: there is no store, it is damaged, or its expressions need rows that are not committed.
    """
    return while_it_changes(folder, lambda: _read(folder))


def while_it_changes(folder: Folder, read: Callable[[], T]) -> T:
    """Returns the result of `read`; retries a failure if a writer has changed the store since.

    Raises:
        StoreError: from `read`, if it failed twice on the unchanged store or on one that is out of reach.
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
    """A value that changes with every visible step of a writer; None if it cannot be read."""
    try:
        return *described(folder), *record_files(folder)
    except (OSError, StoreError):
        return None


def described(folder: Folder) -> tuple[bytes, ...]:
    """The store's description and the records of its plain tables; unchanged if only shards are added."""
    names = ["zarr.json", *map(table_record, NEEDED)]
    return tuple(folder.read(name) if folder.exists(name) else b"" for name in names)


def lost_rows(
    expressions: pd.DataFrame, objects: list[CommitRecord], tables: Mapping[str, pd.DataFrame]
) -> dict[str, np.ndarray]:
    """Missing rows that the expressions refer to, by table.

    Args:
        objects: commit records of the masks.
        tables: the clips and the texts, if they exist.
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
                f"the expressions of store {folder.location} need row {rows[0]} of {table}, which is missing "
                f"({len(rows)} such rows); run the same refavs-extract command again, or remove "
                f"{folder.where(table_record('expressions'))} to read the rest"
            )
    return Snapshot(attributes=attributes, schema=schema, records=records, tables=tables)

"""Making a damaged store one from which an extraction computes again what is damaged: nothing but files is removed."""

import contextlib
from collections.abc import Sequence

from refavs.errors import StoreError
from refavs.files.typed_json import read_json
from refavs.store.backends.base import Folder, holds
from refavs.store.columns import NEEDED, table_record
from refavs.store.format.commits import read_listing, record_name, shard_of
from refavs.store.format.schema import StoreSchema, root_attributes, schema_at
from refavs.store.format.shard import shard_name
from refavs.store.verify import Damage

ROOT = "zarr.json"


def drop_damaged(folder: Folder, damage: Sequence[Damage]) -> list[str]:
    """Removes the shards and plain tables that `verify` found damaged; returns what was removed, by commit record.

    What follows from the rest (names of rows, statistics, descriptions) is left to `StoreWriter.finalise`.
    """
    schema = schema_at(folder)
    tables = {spec.path: spec.table for spec in schema.specs.values()}
    gone: dict[str, None] = {}
    for one in damage:
        parent, _, file = one.where.rpartition("/")
        start = one.where.split("/")[0]
        if parent in tables and file.startswith("c."):
            gone[record_name(tables[parent], int(file.split(".")[1]))] = None
        elif shard_of(one.where):
            gone[one.where] = None
        elif one.where in map(table_record, NEEDED):
            gone[one.where] = None
            gone[table_record("expressions")] = None  # which name rows of the other tables
        elif start == "expressions" or one.where in ("clips", "objects", "text"):  # expressions of rows that are lost
            gone[table_record("expressions")] = None
    for file in gone:
        folder.remove(file)
        if shard := shard_of(file):
            for spec in schema.tables[shard[0]].arrays:
                folder.remove(shard_name(spec, shard[1]))
    return list(gone)


def restore_root(folder: Folder) -> bool:
    """Writes the description of a finished store again from the copy in the list of its records, if they differ.

    Returns:
        Whether that was needed and done.
    """
    copy = root_copy(folder)
    try:
        told = root_attributes(folder)
        # A store that is being added to says nothing but its schema, and differs from what it was when last finished.
        finished = told.keys() != StoreSchema.from_attributes(told, f"store {folder.location}").to_attributes().keys()
    except StoreError:
        if copy is None:
            raise
        finished = True
    if copy is None or not finished or holds(folder, ROOT, copy):
        return False
    folder.write(ROOT, copy)
    return True


def root_copy(folder: Folder) -> bytes | None:
    """The store's description when it was last finished; None where there is no whole copy."""
    with contextlib.suppress(StoreError, KeyError, ValueError, TypeError, AttributeError):
        copy = read_listing(folder)["zarr.json"].encode()
        StoreSchema.from_attributes(read_json(copy)["attributes"], "")
        return copy
    return None

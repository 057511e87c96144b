"""Repair of a damaged store: removes damaged files, so that the next extraction computes their rows again."""

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

    Derived files (row columns, statistics, descriptions) are left to `StoreWriter.finalise`.
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
            gone[table_record("expressions")] = None  # expressions refer to rows of the other tables
        elif start == "expressions" or one.where in ("clips", "objects", "text"):  # expressions that refer to lost rows
            gone[table_record("expressions")] = None
    for file in gone:
        folder.remove(file)
        if shard := shard_of(file):
            for spec in schema.tables[shard[0]].arrays:
                folder.remove(shard_name(spec, shard[1]))
    return list(gone)


def restore_root(folder: Folder) -> bool:
    """Restores the description of a finished store from its copy in the list of records, if they differ.

    Returns:
        Whether it was restored.
    """
    copy = root_copy(folder)
    try:
        told = root_attributes(folder)
        # An unfinished store's description has only the schema, and legitimately differs from the last copy.
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
    """The store's description from when it was last finished; None if there is no intact copy."""
    with contextlib.suppress(StoreError, KeyError, ValueError, TypeError, AttributeError):
        copy = read_listing(folder)["zarr.json"].encode()
        StoreSchema.from_attributes(read_json(copy)["attributes"], "")
        return copy
    return None

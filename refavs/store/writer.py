"""Writing a store: plan the missing shards, write each whole, commit it, and finish the store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from refavs.choices import Role
from refavs.errors import StoreError
from refavs.store import columns
from refavs.store.backends.base import Folder, open_folder, write_if_changed
from refavs.store.derived_files import array_files, committed_rows, finished_files, num_rows
from refavs.store.format.commits import (
    CommitRecord,
    read_each,
    record_files,
    record_name,
    refuse_doubles,
    store_fingerprint,
)
from refavs.store.format.schema import (
    ArraySpec,
    StoreSchema,
    TableSchema,
    extended,
    group_metadata,
    refuse_foreign,
    root_attributes,
)
from refavs.store.mender import ShardMender
from refavs.store.plan import ShardPlan, Shares, plan_shards
from refavs.store.shard_writer import ShardWriter

EXPRESSION_COLUMNS = columns.NEEDED


class StoreWriter:
    """Plans, writes and finishes a store; `open` in the process that plans, `attach` in those that write shards."""

    def __init__(self, folder: Folder, schema: StoreSchema) -> None:
        self.folder, self.schema = folder, schema
        self._records: dict[str, CommitRecord] = {}
        self._planned: dict[str, ShardPlan] = {}

    @classmethod
    def open(
        cls, location: str | Path, *, encoders: Mapping[str, dict], source: str, num_frames: int, input_size: int,
        specs: Mapping[str, Sequence[ArraySpec]], rows_per_shard: Mapping[str, int],
        mask_rule: str | None = None, extraction: Mapping[str, Any] | None = None,
        splits: Mapping[str, Role] | None = None,
    ) -> "StoreWriter":  # fmt: skip
        """Creates the store, or opens the one that is there and removes what interrupted writers left.

        An existing store keeps its own `source` and `rows_per_shard`, which do not change what its rows hold, and gains
        the streams and arrays that it lacks.

        Raises:
            StoreError: the folder holds something else, or a store of other encoders, arrays or sizes.
        """
        folder = open_folder(location)
        refuse_foreign(folder)
        schema = planned_schema(
            folder, encoders=encoders, source=source, num_frames=num_frames, input_size=input_size, specs=specs,
            rows_per_shard=rows_per_shard, mask_rule=mask_rule, extraction=extraction, splits=splits,
        )  # fmt: skip
        folder.sweep()
        if not folder.exists("zarr.json") or schema != _schema_at(folder):
            folder.write("zarr.json", group_metadata(schema.to_attributes()))
        writer = cls(folder, schema)
        for table in schema.tables.values():
            for spec in table.arrays:
                if not folder.exists(f"{spec.path}/zarr.json"):
                    writer._describe(spec, 0)
        return writer

    @classmethod
    def attach(cls, location: str | Path) -> "StoreWriter":
        """Opens an existing store for `shard`, changing nothing."""
        folder = open_folder(location)
        return cls(folder, _schema_at(folder))

    @property
    def location(self) -> str:
        """The store's absolute path or URL."""
        return self.folder.location

    def records(self, table: str | None = None) -> list[CommitRecord]:
        """The commit records there are now; what was read once is not read again.

        Raises:
            StoreError: a record is damaged, or two of them hold the same key.
        """
        files = record_files(self.folder)
        known = {file: self._records[file] for file in files if file in self._records and file not in self._planned}
        unknown = [file for file in files if file not in known]
        for file, record in zip(unknown, read_each(self.folder, unknown, self.schema), strict=True):
            known[file] = record
            plan = self._planned.get(file)
            if plan is None or set(plan.arrays) & set(record.arrays):
                self._planned.pop(file, None)
        if known.keys() != self._records.keys():
            refuse_doubles(self.folder, known.values())
        self._records = {file: known[file] for file in files}
        return [record for record in self._records.values() if table in (None, record.table)]

    def committed(self, table: str) -> dict[str, int]:
        """Row of every committed key; a clip whose features are another one's counts if that one is there."""
        return committed_rows(self.records(table))

    def noted(self, table: str) -> dict[str, dict]:
        """What was noted of every committed key, e.g. that a clip is silent."""
        return {key: facts for record in self.records(table) for key, facts in record.meta.items()}

    def shared(self, table: str) -> dict[str, dict[str, str]]:
        """Of every key with the same input as another one: that other key, by the start of the array paths."""
        return {key: owners for record in self.records(table) for key, owners in record.shares.items()}

    def plan(self, table: str, keys: Iterable[str], shares: Shares | None = None) -> list[ShardPlan]:
        """Shards that compute what is missing of `keys`, and room for them in the arrays.

        Args:
            shares: of keys that have the same input as another one: that other key, by the start of the array paths.

        Raises:
            StoreError: a key is not valid Unicode.
        """
        records = self.records(table)
        plans = plan_shards(self.schema, table, records, keys, shares or {})
        if plans:
            self._unfinish()
            rows = max(num_rows(records), *(plan.rows[-1] + 1 for plan in plans))
            for spec in self.schema.tables[table].arrays:
                self._describe(spec, rows)
            self._planned |= {record_name(table, plan.index): plan for plan in plans}
        return plans

    def shard(self, plan: ShardPlan) -> ShardWriter:
        """A context in which the rows of `plan` are written; leaving it without an error commits them."""
        return (ShardMender if plan.mends else ShardWriter)(self.folder, self.schema, plan)

    def write_expressions(self, table: pd.DataFrame) -> None:
        """Replaces the table of expressions, one row each, unless it is the same already.

        Args:
            table: columns `EXPRESSION_COLUMNS`, where clip, object (-1 for none) and text are committed rows; further
                columns are kept.

        Raises:
            StoreError: a column is missing, or a row does not exist.
        """
        missing = [name for name in EXPRESSION_COLUMNS if name not in table.columns]
        if missing:
            raise StoreError(f"the expressions lack {', '.join(missing)}; needed: {', '.join(EXPRESSION_COLUMNS)}")
        for column, name in (("clip", "clips"), ("object", "objects"), ("text", "text")):
            rows = set(self.committed(name).values()) if name in self.schema.tables else set()
            unknown = sorted(set(table[column].tolist()) - rows - ({-1} if column == "object" else set()))
            if unknown:
                raise StoreError(f"the expressions name row {unknown[0]} of {name}, which is not committed; leave out "
                                 "the expressions of clips that failed")
        columns.write_expressions(self.folder, table, self._unfinish)

    def finalise(self) -> str:
        """Writes what readers without this code want (row names, statistics, lengths); returns the fingerprint."""
        expressions = columns.read_expressions(self.folder)
        facts = expressions and expressions[1]
        for name, data in finished_files(self.schema, self.records(), facts):
            write_if_changed(self.folder, name, data)
        return store_fingerprint(self.schema, self.records(), facts)

    def _unfinish(self) -> None:
        """Takes the fingerprint out of the description until `finalise`, so that the store says it is not finished."""
        write_if_changed(self.folder, "zarr.json", group_metadata(self.schema.to_attributes()))

    def _describe(self, spec: ArraySpec, rows: int) -> None:
        size = self.schema.tables[spec.table].rows_per_shard
        for name, data in array_files(spec, size, rows, {}):
            write_if_changed(self.folder, name, data)


def planned_schema(
    folder: Folder, *, encoders: Mapping[str, dict], source: str, num_frames: int, input_size: int,
    specs: Mapping[str, Sequence[ArraySpec]], rows_per_shard: Mapping[str, int],
    mask_rule: str | None = None, extraction: Mapping[str, Any] | None = None,
    splits: Mapping[str, Role] | None = None,
) -> StoreSchema:  # fmt: skip
    """The schema that a run makes of what is at `folder`, where nothing is changed; arguments as for `open`.

    Raises:
        StoreError: a store is there, of other encoders, arrays or sizes.
    """
    wanted = StoreSchema.from_attributes(
        StoreSchema(
            encoders=dict(encoders), source=source, num_frames=num_frames, input_size=input_size,
            tables={name: TableSchema(rows_per_shard=rows_per_shard[name], arrays=tuple(arrays))
                    for name, arrays in specs.items()},
            mask_rule=mask_rule, extraction=dict(extraction or {}),
            splits=None if splits is None else dict(splits),
        ).to_attributes(), "the new store",
    )  # fmt: skip
    if not folder.exists("zarr.json"):
        return wanted
    found = _schema_at(folder)
    if found.mask_rule is None and record_files(folder, "objects"):
        wanted = replace(wanted, mask_rule=None)  # no rule tells how those were read
    return extended(found, wanted, folder.location)


def _schema_at(folder: Folder) -> StoreSchema:
    return StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")

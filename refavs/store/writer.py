"""Writing a store: plan the missing shards, write each whole, commit it, and finish the store."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd

from refavs.errors import StoreError
from refavs.store import columns
from refavs.store.commits import (
    LISTING,
    CommitRecord,
    read_record,
    record_files,
    record_name,
    refuse_doubles,
    seal,
    store_fingerprint,
)
from refavs.store.folder import Folder, open_folder, write_if_changed
from refavs.store.plan import ShardPlan, Shares, plan_shards
from refavs.store.schema import (
    ArraySpec,
    StoreSchema,
    TableSchema,
    array_metadata,
    extended,
    group_metadata,
    refuse_foreign,
    root_attributes,
)
from refavs.store.shard_writer import ShardWriter
from refavs.store.statistics import ChannelSums

EXPRESSION_COLUMNS = ("uid", "vid", "clip", "object", "text", "split", "fid", "grade", "dimension")
# Starts of array paths that clips may share; column `<last part>_row` says where a clip's features lie.
SHARED = ("clips/visual", "clips/audio")


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
            rows_per_shard=rows_per_shard,
        )  # fmt: skip
        folder.sweep()
        if not folder.exists("zarr.json") or schema != _schema_at(folder):
            folder.write("zarr.json", group_metadata(schema.to_attributes()))
        writer = cls(folder, schema)
        for table in schema.tables.values():
            for spec in table.arrays:
                if not folder.exists(f"{spec.path}/zarr.json"):
                    writer._describe(spec, 0, {})
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
        for file in files:
            if file not in known:
                known[file] = read_record(self.folder, file, self.schema)
                plan = self._planned.get(file)
                if plan is None or set(plan.arrays) & set(known[file].arrays):
                    self._planned.pop(file, None)
        if known.keys() != self._records.keys():
            refuse_doubles(self.folder, known.values())
        self._records = {file: known[file] for file in files}
        return [record for record in self._records.values() if table in (None, record.table)]

    def committed(self, table: str) -> dict[str, int]:
        """Row of every committed key; a clip whose features are another one's counts if that one is there."""
        rows = {key: row for record in self.records(table) for key, row in record.rows.items()}
        lost = [key for record in self.records(table) for key, owners in record.shares.items()
                if not rows.keys() >= set(owners.values())]  # fmt: skip
        return {key: row for key, row in rows.items() if key not in set(lost)}

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
            # Without a fingerprint until `finalise`, so that the store says it is not finished.
            write_if_changed(self.folder, "zarr.json", group_metadata(self.schema.to_attributes()))
            rows = max(_num_rows(records), *(plan.rows[-1] + 1 for plan in plans))
            self._describe_table(table, rows, {})
            self._planned |= {record_name(table, plan.index): plan for plan in plans}
        return plans

    def shard(self, plan: ShardPlan) -> ShardWriter:
        """A context in which the rows of `plan` are written; leaving it without an error commits them."""
        return ShardWriter(self.folder, self.schema, plan)

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
        columns.write_expressions(self.folder, table)

    def finalise(self) -> str:
        """Writes what readers without this code want (row names, statistics, lengths); returns the fingerprint."""
        for name in self.schema.tables:
            records = self.records(name)
            attributes = {}
            for path, total in merged_statistics(records).items():
                mean, std = total.moments()
                attributes[path] = {"statistics": {"mean": mean.tolist(), "std": std.tolist()}}
            self._describe_table(name, _num_rows(records), attributes)
            self._write_names(name, records)
        expressions = columns.read_expressions(self.folder)
        fingerprint = store_fingerprint(self.schema, self.records(), expressions and expressions[1])
        write_if_changed(self.folder, LISTING, seal({"names": sorted(self._records)}))
        root = self.schema.to_attributes() | {"fingerprint": fingerprint}
        write_if_changed(self.folder, "zarr.json", group_metadata(root))
        return fingerprint

    def _write_names(self, table: str, records: list[CommitRecord]) -> None:
        """`clips/{id,visual_row,audio_row}`, `objects/{clip,fid}`, `text/string`; empty or -1 where a row is a hole."""
        keys, metas = [""] * _num_rows(records), [{}] * _num_rows(records)
        for record in records:
            for key, row in record.rows.items():
                keys[row], metas[row] = key, record.meta[key]
        clips = self.committed("clips") if "clips" in self.schema.tables else {}
        if table == "clips":
            owners = self.shared(table)
            rows = {f"{start.split('/')[1]}_row": [clips.get(owners.get(key, {}).get(start, key), -1) for key in keys]
                    for start in SHARED}  # fmt: skip
            frame = {"id": keys, **rows}
        elif table == "objects":
            pairs = [key.rsplit("/", 1) if key else ["", "-1"] for key in keys]
            frame = {"clip": [clips.get(clip, -1) for clip, _ in pairs], "fid": [int(fid) for _, fid in pairs]}
        else:
            frame = {"string": [meta.get("text", "") for meta in metas]}
        columns.write_columns(self.folder, table, *columns.from_frame(pd.DataFrame(frame)))

    def _describe_table(self, table: str, num_rows: int, attributes: Mapping[str, dict]) -> None:
        for spec in self.schema.tables[table].arrays:
            self._describe(spec, num_rows, attributes.get(spec.path, {}))

    def _describe(self, spec: ArraySpec, num_rows: int, attributes: dict[str, Any]) -> None:
        names = spec.path.split("/")
        for depth in range(1, len(names)):
            write_if_changed(self.folder, f"{'/'.join(names[:depth])}/zarr.json", group_metadata())
        size = self.schema.tables[spec.table].rows_per_shard
        write_if_changed(self.folder, f"{spec.path}/zarr.json", array_metadata(spec, size, num_rows, attributes))


def planned_schema(
    folder: Folder, *, encoders: Mapping[str, dict], source: str, num_frames: int, input_size: int,
    specs: Mapping[str, Sequence[ArraySpec]], rows_per_shard: Mapping[str, int],
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
        ).to_attributes(), "the new store",
    )  # fmt: skip
    return extended(_schema_at(folder), wanted, folder.location) if folder.exists("zarr.json") else wanted


def merged_statistics(records: Iterable[CommitRecord]) -> dict[str, ChannelSums]:
    """Sums over all rows, by array path."""
    by_path: dict[str, list[ChannelSums]] = {}
    for record in records:
        for path, sums in record.statistics.items():
            by_path.setdefault(path, []).append(sums)
    return {path: reduce(ChannelSums.merge, parts) for path, parts in by_path.items()}


def _schema_at(folder: Folder) -> StoreSchema:
    return StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")


def _num_rows(records: Iterable[CommitRecord]) -> int:
    return max((row + 1 for record in records for row in record.rows.values()), default=0)

"""Writing a store: plan the missing shards, write and commit each as a whole, and finish the store."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from refavs.config import nearest
from refavs.errors import StoreError
from refavs.store.backends.base import Folder, write_if_changed
from refavs.store.columns import NEEDED, read_table, table_record, write_table
from refavs.store.derived_files import (
    array_file,
    committed_rows,
    finished_files,
    num_rows,
    store_fingerprint,
    stream_groups,
)
from refavs.store.folders import open_folder
from refavs.store.format.array_spec import table_path
from refavs.store.format.commits import CommitRecord, files_of, read_each, record_files, refuse_doubles
from refavs.store.format.schema import (
    OBJECTS,
    STREAM_ID,
    StoreSchema,
    extended,
    refuse_foreign,
    schema_at,
)
from refavs.store.format.zarr_metadata import group_metadata
from refavs.store.plan import ShardPlan, plan_shards
from refavs.store.shard_writer import ShardWriter
from refavs.store.snapshot import lost_rows

EXPRESSION_COLUMNS = tuple(NEEDED["expressions"])


class StoreWriter:
    """Plans, writes and finishes a store; use `open` in the planning process, `attach` in those that write shards."""

    def __init__(self, folder: Folder, schema: StoreSchema) -> None:
        self.folder, self.schema = folder, schema
        self._records: dict[str, CommitRecord] = {}

    @classmethod
    def open(cls, location: str | Path, wanted: StoreSchema) -> "StoreWriter":
        """Creates a store, or opens an existing one and adds missing streams; removes leftovers of interrupted writers.

        An existing store keeps its `source` and shard sizes, which do not affect the content of rows.

        Raises:
            StoreError: the folder contains something else, a store with other seconds or masks, or a stream of the same
                id from another encoder.
        """
        folder = open_folder(location)
        refuse_foreign(folder)
        there = folder.exists("zarr.json")
        schema = planned_schema(folder, wanted)
        folder.sweep()
        found = schema_at(folder) if there else None
        for stream in schema.streams.keys() - (found.streams.keys() if found else set()):
            for place in _places(stream):
                folder.remove_all(place)  # left by an interrupted `drop`
        if found != schema:
            folder.write("zarr.json", group_metadata(schema.to_attributes()))
        writer = cls(folder, schema)
        for table in schema.tables:
            for name, data in writer._descriptions(table, 0):
                if not folder.exists(name):
                    folder.write(name, data)
        return writer

    @classmethod
    def attach(cls, location: str | Path) -> "StoreWriter":
        """Opens an existing store for `shard` without changing it."""
        folder = open_folder(location)
        return cls(folder, schema_at(folder))

    @property
    def location(self) -> str:
        """The store's absolute path or URL."""
        return self.folder.location

    def records(self, table: str | None = None) -> list[CommitRecord]:
        """The current commit records; each record is read only once.

        Raises:
            StoreError: a record is damaged, or two records contain the same key.
        """
        files = files_of(self.folder, self.schema)
        unknown = [file for file in files if file not in self._records]
        new = dict(zip(unknown, read_each(self.folder, unknown, self.schema), strict=True))
        self._records = {file: new[file] if file in new else self._records[file] for file in files}
        if new:
            refuse_doubles(self.folder, self._records.values())
        return [record for record in self._records.values() if table in (None, record.table)]

    def committed(self, table: str) -> dict[str, int]:
        """The row of every committed key."""
        return committed_rows(self.records(table))

    def missing(self, table: str, keys: Sequence[str]) -> list[str]:
        """The keys that are not committed, without repeats, in order."""
        done = self.committed(table)
        return [key for key in dict.fromkeys(keys) if key not in done]

    def failed(self, table: str) -> dict[str, str]:
        """Keys that failed and have not been committed since, with the reason."""
        records = self.records(table)
        done = committed_rows(records)
        return {key: why for record in records for key, why in record.failures.items() if key not in done}

    def noted(self, table: str) -> dict[str, dict]:
        """Facts noted for every committed key, e.g. that the audio is silent."""
        return {key: facts for record in self.records(table) for key, facts in record.meta.items()}

    def table(self, name: str) -> pd.DataFrame | None:
        """The plain table `clips`, `text` or `expressions`; None if it was not written completely."""
        found = read_table(self.folder, name) if self.folder.exists(table_record(name)) else None
        return found and found[0]

    def plan(self, table: str, groups: Sequence[Sequence[str]]) -> list[ShardPlan | None]:
        """Plans a shard for the missing keys of each group (None if none), and makes room for it in the arrays.

        Args:
            groups: keys to store together, at most `rows_per_shard` each; pass keys that failed before in separate
                groups.

        Raises:
            StoreError: a key is not valid Unicode.
        """
        records = self.records(table)
        plans = plan_shards(self.schema, table, records, groups)
        if ends := [plan.rows[-1] + 1 for plan in plans if plan is not None]:
            self.unfinish()
            for name, data in self._descriptions(table, max(num_rows(records), *ends)):
                write_if_changed(self.folder, name, data)
        return plans

    def shard(self, plan: ShardPlan) -> ShardWriter:
        """Context manager that writes the rows of `plan` and commits them on exit without an error."""
        return ShardWriter(self.folder, self.schema, plan)

    def write_clips(self, frame: pd.DataFrame) -> dict[str, int]:
        """Adds clips to the table, or updates the facts of existing ones; returns the place of each id.

        Args:
            frame: columns `id`, `frames` and `sound` (keys in the visual and audio streams) and `seconds` (at most
                those of the store); further columns are kept.

        Raises:
            StoreError: a column is missing, an id is repeated, or a clip has more seconds than the store.
        """
        ids, seconds = (frame[name].tolist() if name in frame.columns else [] for name in ("id", "seconds"))
        if len(set(ids)) < len(ids) or max(seconds, default=0) > self.schema.seconds:
            raise StoreError(f"a clip of {max(seconds, default=0)} seconds, or a repeated id, among "
                             f"{len(ids)} clips; accepted: up to the {self.schema.seconds} seconds of the store")
        return self._write_growing("clips", frame)

    def write_texts(self, frame: pd.DataFrame) -> dict[str, int]:
        """Adds texts (columns `key` and `text`) to the table of texts; returns the place of each key."""
        return self._write_growing("text", frame)

    def write_expressions(self, frame: pd.DataFrame) -> None:
        """Replaces the table of expressions, one row each, unless it is unchanged.

        Args:
            frame: columns `EXPRESSION_COLUMNS`; clip and text are places in those tables, object is a committed row of
                `objects` or -1. Further columns are kept.

        Raises:
            StoreError: a column is missing, or a row does not exist.
        """
        _refuse_lacking("expressions", frame)
        tables = {name: found for name in ("clips", "text") if (found := self.table(name)) is not None}
        for name, rows in lost_rows(frame, self.records(OBJECTS), tables).items():
            raise StoreError(f"the expressions refer to row {rows[0]} of {name}, which does not exist; leave out the "
                             "expressions of clips that failed")
        write_table(self.folder, "expressions", frame, self.unfinish)

    def finalise(self) -> str:
        """Writes the derived files (rows of clips, statistics, lengths) and returns the fingerprint."""
        tables = {name: found for name in NEEDED if (found := read_table(self.folder, name))}
        records = self.records()
        for name, data in finished_files(self.schema, records, tables):
            write_if_changed(self.folder, name, data)
        return store_fingerprint(self.schema, records, tables)

    def describe(self) -> None:
        """Updates the lengths in the arrays' descriptions, for a store that is not finished."""
        for table in self.schema.tables:
            for name, data in self._descriptions(table, num_rows(self.records(table))):
                write_if_changed(self.folder, name, data)

    def drop(self, stream: str) -> list[str]:
        """Removes a stream, or all levels of an encoder, and frees its space; returns the ids.

        The description is changed first, then the commit records are removed, then the shards, so that readers who open
        the store in the meantime do not see the stream. Call it again after an interruption, and `finalise` at the end.

        Raises:
            StoreError: the store has no such stream.
        """
        gone = [name for name in self.schema.streams if f"{name}/".startswith(f"{stream}/")]
        named = re.fullmatch(STREAM_ID, stream) is not None
        if not named or not (gone or any(self.folder.names(place) for place in _places(stream))):
            raise StoreError(f"store {self.location} has no stream {stream!r}; {nearest(stream, self.schema.streams)}")
        kept = {name: spec for name, spec in self.schema.streams.items() if name not in gone}
        self.schema = replace(self.schema, streams=kept)
        self.unfinish()
        for place in _places(stream):
            self.folder.remove_all(place)
        modality = table_path(stream).rpartition("/")[0]
        if modality not in NEEDED and not any(table_path(name).startswith(f"{modality}/") for name in kept):
            self.folder.remove_all(modality)  # the description of an empty group
        return gone

    def _write_growing(self, table: str, frame: pd.DataFrame) -> dict[str, int]:
        """Adds rows to a table without moving existing rows, because the expressions refer to them."""
        _refuse_lacking(table, frame)
        key = next(iter(NEEDED[table]))
        old = self.table(table)
        rows = {} if old is None else {row[key]: row for row in old.to_dict("records")}
        rows |= {row[key]: row for row in frame.to_dict("records")}
        merged = pd.DataFrame(list(rows.values()), columns=None if rows else frame.columns)
        write_table(self.folder, table, merged, self.unfinish)
        return {name: place for place, name in enumerate(rows)}

    def unfinish(self) -> None:
        """Removes the fingerprint from the description until `finalise`, which marks the store as unfinished."""
        write_if_changed(self.folder, "zarr.json", group_metadata(self.schema.to_attributes()))

    def _descriptions(self, table: str, rows: int) -> Iterator[tuple[str, bytes]]:
        yield from stream_groups(self.schema, table)
        for spec in self.schema.tables[table].arrays:
            yield array_file(spec, self.schema.tables[table].rows_per_shard, rows, {})


def planned_schema(folder: Folder, wanted: StoreSchema) -> StoreSchema:
    """The schema that `open` would give the store, without changing anything.

    Raises:
        StoreError: an existing store has other seconds or masks, or a stream of the same id from another encoder.
    """
    wanted = StoreSchema.from_attributes(wanted.to_attributes(), "the new store")
    if not folder.exists("zarr.json"):
        return wanted
    found = schema_at(folder)
    if found.mask_rule is None and record_files(folder, OBJECTS):
        wanted = replace(wanted, mask_rule=None)  # the store does not record the rule
    return extended(found, wanted, folder.location)


def _refuse_lacking(table: str, frame: pd.DataFrame) -> None:
    lacking = [name for name in NEEDED[table] if name not in frame.columns]
    if lacking:
        raise StoreError(f"the table {table} lacks {', '.join(lacking)}; needed: {', '.join(NEEDED[table])}")


def _places(stream: str) -> tuple[str, str]:
    """Folders of the commit records and the arrays of a stream."""
    return f"commits/{stream}", table_path(stream)

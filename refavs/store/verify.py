"""Verifies a store: re-hashes every byte of every committed row, index, record and description."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refavs.errors import StoreError
from refavs.files.typed_json import read_json
from refavs.store.backends.base import Folder, holds, is_stray, out_of_reach, refuse_out_of_reach
from refavs.store.columns import AGAIN, NEEDED, Table, column_files, from_frame, read_column, read_table, table_record
from refavs.store.derived_files import KEYS, finished_files
from refavs.store.folders import open_folder
from refavs.store.format.array_spec import table_path
from refavs.store.format.commits import (
    LISTING,
    READERS,
    CommitRecord,
    files_of,
    read_listing,
    read_record,
    record_files,
    record_name,
    refuse_doubles,
    shard_of,
)
from refavs.store.format.schema import OBJECTS, StoreSchema, root_attributes
from refavs.store.format.shard import ShardReader, shard_name
from refavs.store.format.zarr_metadata import array_metadata
from refavs.store.lease import writer_of
from refavs.store.snapshot import COLUMN_OF, described, lost_rows

_MOST_LOOKS = 100


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A damaged file.

    Attributes:
        where: the file, relative to the store.
        keys: the clips (by id), objects or texts that are lost with it.
        problem: description of the damage.
    """

    where: str
    keys: tuple[str, ...]
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of `verify`.

    Attributes:
        num_rows: number of committed rows checked.
        num_bytes: number of bytes hashed.
        damage: empty if every byte is as written.
        uncommitted: temporary files and shard files that no commit record lists; harmless, because readers ignore them.
        writer: the process that currently holds the store; empty if none is known.
    """

    num_rows: int
    num_bytes: int
    damage: tuple[Damage, ...]
    uncommitted: tuple[str, ...]
    writer: str = ""


def verify(location: str | Path, progress: Callable[[str], None] = lambda record: None) -> Verdict:
    """Compares everything in the store with its checksums; `progress` is called with each commit record checked.

    Raises:
        StoreError: there is no store, its description cannot be read, or a file cannot be accessed (network,
            permission), which does not mean that it is damaged.
    """
    folder = open_folder(location)
    whole: dict[str, tuple[Any, ...]] = {}
    before = described(folder)
    verdict = _look(folder, whole, progress)
    # Shards added during the check do no harm; other changes by a writer could look like damage, but not in each look.
    for _ in range(_MOST_LOOKS - 1):
        now = described(folder)
        if not verdict.damage or now == before:
            break
        before, seen = now, {(one.where, one.problem) for one in verdict.damage}
        verdict = _look(folder, whole, progress)
        lasting = tuple(one for one in verdict.damage if (one.where, one.problem) in seen)
        verdict = replace(verdict, damage=lasting)
    return verdict


def _look(folder: Folder, whole: dict[str, tuple[Any, ...]], progress: Callable[[str], None]) -> Verdict:
    """Checks everything except the rows already in `whole`, by commit record, and adds intact ones to it."""
    told = root_attributes(folder)
    schema = StoreSchema.from_attributes(told, f"store {folder.location}")
    tables, table_damage = _read_tables(folder)
    records, damage = _read_records(folder, schema, tables)
    unknown = [record for record in records if whole.get(record.file) != (record.rows, record.arrays)]
    names = {stream: _names(stream, tables) for stream in schema.tables}
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda record: [*_shard_damage(folder, schema, record, names[record.table])], unknown)
        for record, bad in zip(unknown, found, strict=True):
            damage += bad
            if not bad:
                whole[record.file] = record.rows, record.arrays
            progress(record.file)
    complete = len(records) == len(files_of(folder, schema))
    if complete:
        table_damage += _double_keys(folder, records)
    table_damage += _lost_rows(tables, records)
    damage += table_damage
    damage += _description_damage(folder, told, schema, records, tables, complete and not table_damage)
    uncommitted, writer = _uncommitted(folder, schema, records)
    return Verdict(
        num_rows=sum(len(record.rows) for record in records), damage=tuple(damage),
        num_bytes=sum(facts.num_bytes for record in records for facts in record.arrays.values()),
        uncommitted=tuple(uncommitted), writer=writer,
    )  # fmt: skip


def _read_tables(folder: Folder) -> tuple[dict[str, Table], list[Damage]]:
    """The plain tables, those that others refer to last, and their damage."""
    tables, damage = {}, []
    for name in reversed(NEEDED):
        try:
            if found := read_table(folder, name):
                tables[name] = found
        except StoreError as error:
            refuse_out_of_reach(error)
            damage.append(Damage(where=table_record(name), keys=(), problem=str(error)))
    return tables, damage


def _read_records(
    folder: Folder, schema: StoreSchema, tables: Mapping[str, Table]
) -> tuple[list[CommitRecord], list[Damage]]:
    """The intact records, and the damaged or missing ones with the keys they contained."""
    listed = _listed(folder, "names")  # read first, because a writer may add to both
    files = files_of(folder, schema)
    records: list[CommitRecord] = []
    problems = {file: f"the commit record is missing; {AGAIN}" for file in listed
                if file not in files and (shard := shard_of(file)) and shard[0] in schema.tables}  # fmt: skip

    def read(file: str) -> CommitRecord | str:
        try:
            return read_record(folder, file, schema)
        except StoreError as error:
            refuse_out_of_reach(error)
            return str(error)

    with ThreadPoolExecutor(READERS) as pool:
        for file, found in zip(files, pool.map(read, files), strict=True):
            if isinstance(found, str):
                problems[file] = found
            else:
                records.append(found)
    damage = [Damage(where=file, keys=_keys_of_shard(folder, schema, tables, file), problem=problem)
              for file, problem in problems.items()]  # fmt: skip
    return records, damage


def _names(stream: str, tables: Mapping[str, Table]) -> dict[str, list[str]]:
    """Readable names for the keys of a stream: the ids of its clips, or the text."""
    table, column = KEYS.get(stream.split("/")[0], ("", ""))
    found: dict[str, list[str]] = {}
    if table in tables:
        frame = tables[table][0]
        for key, name in zip(frame[column], frame["id" if table == "clips" else "text"], strict=True):
            found.setdefault(key, []).append(name)
    return found


def _keys_of_shard(folder: Folder, schema: StoreSchema, tables: Mapping[str, Table], file: str) -> tuple[str, ...]:
    """The keys of a lost commit record, from the columns of the finished store; empty if these are damaged."""
    shard = shard_of(file)
    assert shard is not None
    table, index = shard
    size = schema.tables[table].rows_per_shard
    clips = tables["clips"][0]["id"].tolist() if "clips" in tables else []
    if table == OBJECTS:
        clip, fid = (read_column(folder, OBJECTS, name) for name in ("clip", "fid"))
        if clip is None or fid is None:
            return ()
        pairs = zip(clip[index * size : (index + 1) * size], fid[index * size : (index + 1) * size], strict=False)
        return tuple(f"{clips[place]}/{number}" for place, number in pairs if 0 <= place < len(clips))
    rows, of_text = read_column(folder, table_path(table), "row"), table.startswith("text/")
    names = (tables["text"][0]["text"].tolist() if "text" in tables else []) if of_text else clips
    known = zip([] if rows is None else rows.tolist(), names, strict=False)
    return tuple(name for row, name in known if index * size <= row < (index + 1) * size)


def _shard_damage(
    folder: Folder, schema: StoreSchema, record: CommitRecord, names: Mapping[str, list[str]]
) -> Iterator[Damage]:
    """Damage to the files of one shard, narrowed down to the affected rows as far as possible."""
    table = schema.tables[record.table]
    keys = sorted(record.rows, key=record.rows.__getitem__)
    for name, facts in record.arrays.items():
        spec = table.specs[name]
        where = shard_name(spec, record.index)
        try:
            shard = ShardReader(folder, where, spec, table.rows_per_shard, facts)
        except StoreError as error:
            refuse_out_of_reach(error)
            lost = tuple(one for key in keys for one in names.get(key, [key]))
            yield Damage(where=where, keys=lost, problem=str(error))
            continue
        bad = [(key, problem) for key in keys
               if (problem := _row_problem(shard, record, key, table.rows_per_shard, folder.where(where)))]  # fmt: skip
        for key, problem in bad:
            yield Damage(where=where, keys=tuple(names.get(key, [key])), problem=problem)
        if not bad and shard.file_crc32c() != facts.crc32c:
            yield Damage(where=where, keys=(), problem="bytes between its rows have changed; every row is intact")


def _description_damage(
    folder: Folder, told: dict[str, Any], schema: StoreSchema, records: list[CommitRecord],
    tables: Mapping[str, Table], complete: bool,
) -> Iterator[Damage]:  # fmt: skip
    """Damage that would mislead readers without this code; in a finished, `complete` store, of every file."""
    finished = told.keys() != schema.to_attributes().keys()
    if finished:
        copy = _listed(folder, "zarr.json")  # read first, because a writer changes the file before its copy
        root = folder.read("zarr.json").decode(errors="replace")
        if root_attributes(folder) != told:
            return  # a writer is at work
        if copy not in ("", root):
            yield Damage(where="zarr.json", keys=(), problem="differs from its copy when the store was finished, in "
                         f"{LISTING}")
            return
    if not finished or not complete:
        yield from _array_damage(folder, schema, records)
        return
    expected = dict(finished_files(schema, records, tables))
    found = json.loads(expected["zarr.json"])["attributes"]["fingerprint"]
    if told.get("fingerprint") != found:
        yield Damage(where="zarr.json", keys=(), problem=f"the store was finished as {told.get('fingerprint')}, its "
                     f"content is {found}: zarr.json was changed, or a commit record or a table was; {AGAIN}")
        return
    for name, (frame, _) in tables.items():
        expected |= dict(column_files(name, *from_frame(frame)))
    for file, data in expected.items():
        if not holds(folder, file, data):
            yield Damage(where=file, keys=(), problem=f"does not match the commit records; {AGAIN}")


def _listed(folder: Folder, name: str) -> Any:
    """An entry of the list of records; empty if the list is missing or damaged."""
    try:
        return read_listing(folder).get(name, "") if folder.exists(LISTING) else ""
    except StoreError as error:
        refuse_out_of_reach(error)
        return ""


def _array_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """Arrays whose zarr.json does not describe them; outdated lengths and statistics are allowed."""
    for spec in schema.specs.values():
        if not any(spec.table == record.table for record in records):
            continue
        path = f"{spec.path}/zarr.json"
        expected = json.loads(array_metadata(spec, schema.tables[spec.table].rows_per_shard, 0))
        try:
            found = read_json(folder.read(path))
            attributes = {name: value for name, value in found["attributes"].items() if name != "statistics"}
            told = {**found, "shape": [0, *found["shape"][1:]], "attributes": attributes}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if out_of_reach(error):
                raise
            told = repr(error)
        if told != expected:
            yield Damage(where=path, keys=(), problem="does not describe the array that the store's schema names; "
                         f"remove it and {AGAIN}")


def _row_problem(shard: ShardReader, record: CommitRecord, key: str, size: int, where: str) -> str | None:
    try:
        shard.check(record.rows[key] - record.index * size)
    except StoreError as error:
        refuse_out_of_reach(error, where)
        return str(error)
    return None


def _double_keys(folder: Folder, records: list[CommitRecord]) -> Iterator[Damage]:
    try:
        refuse_doubles(folder, records)
    except StoreError as error:
        yield Damage(where="commits", keys=(), problem=str(error))


def _lost_rows(tables: Mapping[str, Table], records: list[CommitRecord]) -> Iterator[Damage]:
    """Missing clips, texts and masks that expressions refer to."""
    if "expressions" not in tables:
        return
    frames = {name: frame for name, (frame, _) in tables.items()}
    objects = [record for record in records if record.table == OBJECTS]
    expressions = frames["expressions"]
    for table, rows in lost_rows(expressions, objects, frames).items():
        uids = expressions["uid"][expressions[COLUMN_OF[table]].isin(rows.tolist())]
        yield Damage(where=table, keys=tuple(uids[:5]), problem=f"{len(rows)} rows that {len(uids)} expressions need "
                     f"are not there, e.g. row {rows[0]}")  # fmt: skip


def _uncommitted(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> tuple[list[str], str]:
    """Shard files that no commit record lists, temporary files, and the process that may be writing them.

    A damaged record may list the files with its number.
    """
    tables = {spec.path: spec.table for spec in schema.specs.values()}
    known = {record.file for record in records}
    found = []
    for name in folder.names():
        parent, _, file = name.rpartition("/")
        shard = shard_of(name)
        if is_stray(name) or (shard and shard[0] not in schema.tables):  # left by an interrupted `drop`
            found.append((name, ""))
        elif parent in tables and file.startswith("c."):
            index = file.split(".")[1]
            record = record_name(tables[parent], int(index)) if index.isdigit() else ""
            if record not in known:
                found.append((name, record))
    writer = writer_of(folder)
    # Check again, so that files committed or renamed by a writer in the meantime are not reported.
    damaged_or_new = {*record_files(folder)} - known
    return [name for name, record in found if record not in damaged_or_new and folder.exists(name)], writer

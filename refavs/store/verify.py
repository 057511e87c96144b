"""Re-hashing a store: every byte of every committed row, index, record and description."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refavs.errors import StoreError
from refavs.records import read_json
from refavs.store.columns import AGAIN, EXPRESSIONS_RECORD, column_files, from_frame, read_expressions
from refavs.store.commits import (
    LISTING,
    READERS,
    CommitRecord,
    read_listing,
    read_record,
    record_files,
    record_name,
    refuse_doubles,
    shard_of,
)
from refavs.store.files import PARTIAL
from refavs.store.finished import finished_files, keys_of_rows
from refavs.store.folder import Folder, holds, open_folder, out_of_reach, refuse_out_of_reach
from refavs.store.schema import StoreSchema, array_metadata, root_attributes
from refavs.store.shard import ShardReader, shard_name


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that cannot be used.

    Attributes:
        where: the file, relative to the store.
        keys: the clips, objects or texts that are lost with it.
        problem: what was found.
    """

    where: str
    keys: tuple[str, ...]
    problem: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `verify` found.

    Attributes:
        num_rows: committed rows looked at.
        num_bytes: bytes hashed.
        damage: empty where every byte is as it was written.
        uncommitted: shard files that no commit record names and temporary files; harmless, readers do not see them.
    """

    num_rows: int
    num_bytes: int
    damage: tuple[Damage, ...]
    uncommitted: tuple[str, ...]


def verify(location: str | Path, progress: Callable[[str], None] = lambda record: None) -> Verdict:
    """Compares everything in the store with its checksums; `progress` is told each commit record that is done.

    Raises:
        StoreError: there is no store, its description cannot be read, or a file is out of reach (network, permission),
            which says nothing about it.
    """
    folder = open_folder(location)
    schema = StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")
    records, damage = _read_records(folder, schema)
    sharers = _sharers(records)
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda record: [*_shard_damage(folder, schema, record, sharers)], records)
        for record, bad in zip(records, found, strict=True):
            damage += bad
            progress(record_name(record.table, record.index))
    table_damage = [*_table_damage(folder, schema, records)]
    complete = not table_damage and len(records) == len(record_files(folder))
    damage += [*table_damage, *_description_damage(folder, schema, records, complete)]
    return Verdict(
        num_rows=sum(len(record.rows) for record in records), damage=tuple(damage),
        num_bytes=sum(facts.num_bytes for record in records for facts in record.arrays.values()),
        uncommitted=tuple(_uncommitted(folder, schema, records)),
    )  # fmt: skip


def _read_records(folder: Folder, schema: StoreSchema) -> tuple[list[CommitRecord], list[Damage]]:
    """The whole records, and those that are damaged or gone with the keys that they held."""
    files = record_files(folder)
    listed = _listed(folder, "names")
    records: list[CommitRecord] = []
    problems = {file: f"the commit record is gone; {AGAIN}" for file in listed if file not in files}

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
    sharers = _sharers(records)
    damage = []
    for file, problem in problems.items():
        table, index = shard_of(file)
        size = schema.tables[table].rows_per_shard if table in schema.tables else 0
        names = keys_of_rows(folder, table) if size else {}
        keys = [names[row] for row in range(index * size, (index + 1) * size) if row in names]
        lost = _lost(sharers, [start for start, _ in sharers], keys)
        damage.append(Damage(where=file, keys=lost, problem=problem))
    return records, damage


def _sharers(records: list[CommitRecord]) -> dict[tuple[str, str], list[str]]:
    """Keys that have the features of another one, by the start of the array paths and that other one."""
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for key, owners in record.shares.items():
            for start, owner in owners.items():
                found.setdefault((start, owner), []).append(key)
    return found


def _lost(sharers: dict[tuple[str, str], list[str]], paths: Iterable[str], keys: Iterable[str]) -> tuple[str, ...]:
    """The keys, and those that share rows of them in the arrays at `paths`."""
    starts = {start for start, _ in sharers if any(f"{path}/".startswith(f"{start}/") for path in paths)}
    lost = list(keys)
    return tuple(dict.fromkeys([*lost, *(other for key in lost for start in sorted(starts)
                                         for other in sorted(sharers.get((start, key), [])))]))  # fmt: skip


def _shard_damage(
    folder: Folder, schema: StoreSchema, record: CommitRecord, sharers: dict[tuple[str, str], list[str]]
) -> Iterator[Damage]:
    """Damage of the files of one shard, as exactly as it can be told which rows it reaches."""
    size = schema.tables[record.table].rows_per_shard
    for path, facts in record.arrays.items():
        spec = schema.specs[path]
        where = shard_name(spec, record.index)
        rows = record.own_rows(path)
        keys = sorted(rows, key=rows.__getitem__)
        try:
            shard = ShardReader(folder, where, spec, size, facts)
        except StoreError as error:
            refuse_out_of_reach(error)
            yield Damage(where=where, keys=_lost(sharers, [path], keys), problem=str(error))
            continue
        bad = [(key, problem) for key in keys
               if (problem := _row_problem(shard, record, key, size, folder.where(where)))]  # fmt: skip
        for key, problem in bad:
            yield Damage(where=where, keys=_lost(sharers, [path], [key]), problem=problem)
        if not bad and shard.file_crc32c() != facts.crc32c:
            yield Damage(where=where, keys=(), problem="bytes between its rows have changed; every row is whole")


def _description_damage(
    folder: Folder, schema: StoreSchema, records: list[CommitRecord], complete: bool
) -> Iterator[Damage]:
    """What would mislead a reader without this code; of a finished store whose records are `complete`, every file."""
    told, known = root_attributes(folder), schema.to_attributes()
    finished = told.keys() != known.keys()
    if finished and _listed(folder, "zarr.json") not in ("", folder.read("zarr.json").decode(errors="replace")):
        yield Damage(where="zarr.json", keys=(), problem="is not what it was when the store was finished, of which "
                     f"{LISTING} has a copy")
        return
    if not finished or not complete:
        yield from _array_damage(folder, schema, records)
        return
    expressions = read_expressions(folder)
    expected = dict(finished_files(schema, records, expressions and expressions[1]))
    found = json.loads(expected["zarr.json"])["attributes"]["fingerprint"]
    if told.get("fingerprint") != found:
        yield Damage(where="zarr.json", keys=(), problem=f"the store was finished as {told.get('fingerprint')}, its "
                     f"content is {found}: zarr.json was changed, or a commit record or the expressions were; {AGAIN}")
        return
    if expressions:
        expected |= dict(column_files("expressions", *from_frame(expressions[0])))
    for file, data in expected.items():
        if not holds(folder, file, data):
            yield Damage(where=file, keys=(), problem=f"is not what the commit records say; {AGAIN}")


def _listed(folder: Folder, name: str) -> Any:
    """What the list of records says; empty where there is none, or a damaged one."""
    try:
        return read_listing(folder).get(name, "") if folder.exists(LISTING) else ""
    except StoreError as error:
        refuse_out_of_reach(error)
        return ""


def _array_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """Arrays with rows whose zarr.json does not describe them; lengths and statistics may be those of another time."""
    for spec in schema.specs.values():
        if not any(spec.path in record.arrays for record in records):
            continue
        path = f"{spec.path}/zarr.json"
        expected = json.loads(array_metadata(spec, schema.tables[spec.table].rows_per_shard, 0))
        try:
            found = read_json(folder.read(path))
            told = {**found, "shape": [0, *found["shape"][1:]], "attributes": {}}
        except (OSError, ValueError, KeyError, TypeError) as error:
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


def _table_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """Damage of what lies beside the shards: double keys, the table of expressions and rows it needs."""
    try:
        if len(records) == len(record_files(folder)):
            refuse_doubles(folder, records)
        expressions = read_expressions(folder)
    except StoreError as error:
        refuse_out_of_reach(error)
        yield Damage(where=EXPRESSIONS_RECORD.rsplit("/", 1)[0], keys=(), problem=str(error))
        return
    if expressions is None:
        return
    for column, table in (("clip", "clips"), ("object", "objects"), ("text", "text")):
        known = [row for record in records if record.table == table for row in record.rows.values()]
        values = expressions[0][column].to_numpy()
        lost = np.unique(values[(values >= 0) & ~np.isin(values, known)])
        if len(lost):
            uids = expressions[0]["uid"][np.isin(values, lost)]
            yield Damage(
                where=table, keys=tuple(uids[:5]),
                problem=f"{len(lost)} rows that {len(uids)} expressions need are in no whole commit record, e.g. row "
                f"{lost[0]}",
            )  # fmt: skip


def _uncommitted(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[str]:
    """Shard files that no commit record names, and temporary files; a damaged record may name what has its number."""
    tables = {spec.path: spec.table for spec in schema.specs.values()}
    named = {shard_name(schema.specs[path], record.index) for record in records for path in record.arrays}
    damaged = {*record_files(folder)} - {record_name(record.table, record.index) for record in records}
    for name in folder.names():
        parent, _, file = name.rpartition("/")
        if name.endswith(PARTIAL):
            yield name
        elif parent in tables and file.startswith("c.") and name not in named:
            index = file.split(".")[1]
            if not index.isdigit() or record_name(tables[parent], int(index)) not in damaged:
                yield name

"""Re-hashing a store: every byte of every committed row, index, record and description."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.files.typed_json import read_json
from refavs.store.backends.base import Folder, holds, is_stray, open_folder, out_of_reach, refuse_out_of_reach
from refavs.store.columns import AGAIN, column_files, from_frame, read_expressions
from refavs.store.derived_files import finished_files, keys_of_rows
from refavs.store.format.commits import (
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
from refavs.store.format.schema import StoreSchema, array_metadata, root_attributes
from refavs.store.format.shard import ShardReader, shard_name
from refavs.store.lease import writer_of
from refavs.store.snapshot import COLUMN_OF, described, lost_rows

_MOST_LOOKS = 100


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
        writer: the process that holds the store meanwhile; empty where none is known to.
    """

    num_rows: int
    num_bytes: int
    damage: tuple[Damage, ...]
    uncommitted: tuple[str, ...]
    writer: str = ""


def verify(location: str | Path, progress: Callable[[str], None] = lambda record: None) -> Verdict:
    """Compares everything in the store with its checksums; `progress` is told each commit record that is done.

    Raises:
        StoreError: there is no store, its description cannot be read, or a file is out of reach (network, permission),
            which says nothing about it.
    """
    folder = open_folder(location)
    whole: dict[str, tuple[Any, ...]] = {}
    for look in range(_MOST_LOOKS):
        before = described(folder)
        verdict = _look(folder, whole, progress)
        # Shards that are added meanwhile do no harm; what else a writer did may be taken for damage.
        if not verdict.damage or described(folder) == before or look == _MOST_LOOKS - 1:
            return verdict
    raise AssertionError("at least one look")


def _look(folder: Folder, whole: dict[str, tuple[Any, ...]], progress: Callable[[str], None]) -> Verdict:
    """Looks at everything but the rows that were found `whole` before, by commit record, and adds to these."""
    told = root_attributes(folder)
    schema = StoreSchema.from_attributes(told, f"store {folder.location}")
    try:
        expressions, table_damage = read_expressions(folder), []
    except StoreError as error:
        refuse_out_of_reach(error)
        expressions, table_damage = None, [Damage(where="commits", keys=(), problem=str(error))]
    records, damage = _read_records(folder, schema)
    sharers = _sharers(records)
    unknown = [record for record in records if whole.get(record_name(record.table, record.index)) != _rows(record)]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda record: [*_shard_damage(folder, schema, record, sharers)], unknown)
        for record, bad in zip(unknown, found, strict=True):
            damage += bad
            name = record_name(record.table, record.index)
            if not bad:
                whole[name] = _rows(record)
            progress(name)
    complete = len(records) == len(record_files(folder))
    if complete:
        table_damage += _double_keys(folder, records)
    if expressions:
        table_damage += _lost_rows(expressions[0], records)
    damage += table_damage
    damage += _description_damage(folder, told, schema, records, expressions, complete and not table_damage)
    uncommitted, writer = _uncommitted(folder, schema, records)
    return Verdict(
        num_rows=sum(len(record.rows) for record in records), damage=tuple(damage),
        num_bytes=sum(facts.num_bytes for record in records for facts in record.arrays.values()),
        uncommitted=tuple(uncommitted), writer=writer,
    )  # fmt: skip


def _rows(record: CommitRecord) -> tuple[Any, ...]:
    return record.rows, record.shares, record.arrays


def _read_records(folder: Folder, schema: StoreSchema) -> tuple[list[CommitRecord], list[Damage]]:
    """The whole records, and those that are damaged or gone with the keys that they held."""
    listed = _listed(folder, "names")  # first, for a writer may add to both
    files = record_files(folder)
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
    folder: Folder, told: dict[str, Any], schema: StoreSchema, records: list[CommitRecord],
    expressions: tuple[pd.DataFrame, dict[str, Any]] | None, complete: bool,
) -> Iterator[Damage]:  # fmt: skip
    """What would mislead a reader without this code; of a finished store whose records are `complete`, every file."""
    finished = told.keys() != schema.to_attributes().keys()
    if finished and _listed(folder, "zarr.json") not in ("", folder.read("zarr.json").decode(errors="replace")):
        yield Damage(where="zarr.json", keys=(), problem="is not what it was when the store was finished, of which "
                     f"{LISTING} has a copy")
        return
    if not finished or not complete:
        yield from _array_damage(folder, schema, records)
        return
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


def _double_keys(folder: Folder, records: list[CommitRecord]) -> Iterator[Damage]:
    try:
        refuse_doubles(folder, records)
    except StoreError as error:
        yield Damage(where="commits", keys=(), problem=str(error))


def _lost_rows(expressions: pd.DataFrame, records: list[CommitRecord]) -> Iterator[Damage]:
    """Rows that expressions need and no whole record holds."""
    for table, rows in lost_rows(expressions, records).items():
        uids = expressions["uid"][np.isin(expressions[COLUMN_OF[table]].to_numpy(), rows)]
        yield Damage(
            where=table, keys=tuple(uids[:5]),
            problem=f"{len(rows)} rows that {len(uids)} expressions need are in no whole commit record, e.g. row "
            f"{rows[0]}",
        )  # fmt: skip


def _uncommitted(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> tuple[list[str], str]:
    """Shard files that no commit record names, and temporary files; and the process that may be writing them.

    A damaged record may name what has its number.
    """
    tables = {spec.path: spec.table for spec in schema.specs.values()}
    named = {shard_name(schema.specs[path], record.index) for record in records for path in record.arrays}
    known = {record_name(record.table, record.index) for record in records}
    found = []
    for name in folder.names():
        parent, _, file = name.rpartition("/")
        if is_stray(name):
            found.append((name, ""))
        elif parent in tables and file.startswith("c.") and name not in named:
            index = file.split(".")[1]
            found.append((name, record_name(tables[parent], int(index)) if index.isdigit() else ""))
    writer = writer_of(folder)
    # Looked at once more, so that what a writer has committed or given its name since is not called left over.
    damaged_or_new = {*record_files(folder)} - known
    return [name for name, record in found if record not in damaged_or_new and folder.exists(name)], writer

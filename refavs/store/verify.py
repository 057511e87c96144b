"""Re-hashing a store: every byte of every committed row, index, record and description."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refavs.errors import StoreError
from refavs.store.columns import EXPRESSIONS_RECORD, read_expressions
from refavs.store.commits import (
    LISTING,
    CommitRecord,
    read_record,
    read_records,
    record_files,
    record_name,
    store_fingerprint,
    unseal,
)
from refavs.store.files import PARTIAL
from refavs.store.folder import Folder, open_folder
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
        StoreError: there is no store, or its description cannot be read.
    """
    folder = open_folder(location)
    schema = StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")
    records, damage, num_bytes = [], [], 0
    for file in record_files(folder):
        try:
            record = read_record(folder, file, schema)
        except StoreError as error:
            damage.append(Damage(where=file, keys=(), problem=str(error)))
            continue
        records.append(record)
        damage += _shard_damage(folder, schema, record)
        num_bytes += sum(facts.num_bytes for facts in record.arrays.values())
        progress(file)
    damage += [*_description_damage(folder, schema, records), *_table_damage(folder, schema, records)]
    if not damage:
        damage += _fingerprint_damage(folder, schema, records)
    return Verdict(
        num_rows=sum(len(record.rows) for record in records), num_bytes=num_bytes, damage=tuple(damage),
        uncommitted=tuple(_uncommitted(folder, schema)),
    )  # fmt: skip


def _shard_damage(folder: Folder, schema: StoreSchema, record: CommitRecord) -> Iterator[Damage]:
    """Damage of the files of one shard, as exactly as it can be told which rows it reaches."""
    size = schema.tables[record.table].rows_per_shard
    for path, facts in record.arrays.items():
        spec = schema.specs[path]
        where = shard_name(spec, record.index)
        rows = record.own_rows(path)
        keys = tuple(sorted(rows, key=rows.__getitem__))
        try:
            shard = ShardReader(folder, where, spec, size, facts)
        except StoreError as error:
            yield Damage(where=where, keys=keys, problem=str(error))
            continue
        bad = [(key, problem) for key in keys if (problem := _row_problem(shard, record, key, size))]
        for key, problem in bad:
            yield Damage(where=where, keys=(key,), problem=problem)
        if not bad and shard.file_crc32c() != facts.crc32c:
            yield Damage(where=where, keys=(), problem="bytes between its rows have changed; every row is whole")


def _description_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """Arrays with rows whose zarr.json would mislead a reader without this code."""
    for spec in schema.specs.values():
        if not any(record.table == spec.table for record in records):
            continue
        path = f"{spec.path}/zarr.json"
        expected = json.loads(array_metadata(spec, schema.tables[spec.table].rows_per_shard, 0))
        try:
            found = json.loads(folder.read(path))
            told = {**found, "shape": [0, *found["shape"][1:]], "attributes": {}}
        except (OSError, ValueError, KeyError, TypeError) as error:
            told = repr(error)
        if told != expected:
            yield Damage(where=path, keys=(), problem="does not describe the array that the store's "
                         "schema names; remove it and run the same refavs-extract command again")


def _row_problem(shard: ShardReader, record: CommitRecord, key: str, size: int) -> str | None:
    try:
        shard.check(record.rows[key] - record.index * size)
    except StoreError as error:
        return str(error)
    return None


def _table_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """Damage of what lies beside the shards: double keys, the table of expressions and rows it needs."""
    try:
        if len(records) == len(record_files(folder)):
            read_records(folder, schema)
        expressions = read_expressions(folder)
    except StoreError as error:
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


def _fingerprint_damage(folder: Folder, schema: StoreSchema, records: list[CommitRecord]) -> Iterator[Damage]:
    """A store whose parts are whole, but that is not the one whose extraction ended; one still open names none."""
    told = root_attributes(folder).get("fingerprint")
    expressions = read_expressions(folder)
    found = store_fingerprint(schema, records, expressions and expressions[1])
    try:
        listed = folder.exists(LISTING) and unseal(folder, LISTING) == {"names": record_files(folder)}
    except StoreError:
        listed = False
    if told is not None and not listed:
        yield Damage(where=LISTING, keys=(), problem="does not name the commit records that are there; run the same "
                     "refavs-extract command again")
    if told not in (None, found):
        yield Damage(where="zarr.json", keys=(), problem=f"the store was finished as {told}, its content is {found}: "
                     "zarr.json was changed, or a commit record or the expressions were; run the same refavs-extract "
                     "command again")


def _uncommitted(folder: Folder, schema: StoreSchema) -> Iterator[str]:
    """Shard files without a commit record, whole or damaged, and temporary files."""
    arrays = {spec.path: spec for spec in schema.specs.values()}
    committed = set(record_files(folder))
    for name in folder.names():
        parent, _, file = name.rpartition("/")
        if parent not in arrays or not file.startswith("c."):
            continue
        index = file.split(".")[1]
        known = index.isdigit() and record_name(arrays[parent].table, int(index)) in committed
        if file.endswith(PARTIAL) or not known:
            yield name

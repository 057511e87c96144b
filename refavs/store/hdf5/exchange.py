"""Export of a store to one HDF5 file, for use without refavs, and lossless import.

Each array is an uncompressed dataset with the same path and axes, one row per chunk. Next to it, `key` has the key of
each row (empty if unused) and `row` the row of each clip or text. The columns of the plain tables are datasets too. The
group `refavs` contains the description of the store and its commit records. Both directions keep only one row in
memory.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import h5py
import numpy as np
import pandas as pd

from refavs.errors import StoreError
from refavs.files.partials import remove_left
from refavs.files.typed_json import read_json, shaped
from refavs.store.backends.base import Folder
from refavs.store.columns import NEEDED, encode_strings, from_frame, read_table, write_table
from refavs.store.derived_files import KEYS, num_rows, store_fingerprint
from refavs.store.folders import open_folder
from refavs.store.format.array_spec import table_path
from refavs.store.format.checksum import crc32c
from refavs.store.format.commits import CommitRecord, parse_record, read_records, record_name, seal, write_record
from refavs.store.format.schema import StoreSchema, refuse_foreign, schema_at
from refavs.store.format.shard import ShardFile, ShardReader, shard_name
from refavs.store.format.zarr_metadata import group_metadata
from refavs.store.hdf5.guarded_file import AGAIN, ForeignFile, NewFile, strings
from refavs.store.lease import Lease
from refavs.store.reader import FeatureStore
from refavs.store.snapshot import state_of
from refavs.store.writer import StoreWriter

VERSION = 2
PROGRAM = "refavs-store"
ABOUT, RECORDS = "refavs/about", "refavs/records"
Progress = Callable[[int, int, str], None]


class _About(TypedDict):
    version: int
    fingerprint: str
    finished: bool
    attributes: dict[str, Any]
    tables: dict[str, dict[str, Any]]


def silent(done: int, total: int, note: str) -> None:
    """Progress callback that does nothing."""


def export(location: str | Path, file: str | Path, progress: Progress = silent) -> str:
    """Writes the committed rows of a store with all metadata to one new HDF5 file.

    Args:
        progress: called with the number of rows done, the total, and the current shard file.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: a row is damaged, the store changes during the export, or the file exists and is not an export of
            the same content.
    """
    target, folder = Path(file).absolute(), open_folder(location)
    before = state_of(folder)
    store = FeatureStore(location)
    if target.exists():
        if _fingerprint_in(target) != store.fingerprint:
            raise StoreError(f"{target} exists and is not an export of the current {store.location}; name another file")
        remove_left(target)
        return store.fingerprint
    with NewFile(target) as new:
        with h5py.File(new, "w", libver="v110") as out:
            _write_about(out, store)
            _write_columns(out, store)
            _write_rows(out, store, new.check, progress)
        new.check()
        if before is None or state_of(folder) != before:
            raise StoreError(f"{store.location} changed during the export; run the same command again when nothing "
                             "writes to it")
    return store.fingerprint


def import_(file: str | Path, location: str | Path, progress: Progress = silent) -> str:
    """Restores a store from an export; call it again after an interruption.

    Args:
        progress: called with the number of rows done, the total, and the current shard file.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: the file is damaged or not an export, or another store is at `location`.
    """
    folder = open_folder(location)
    refuse_foreign(folder)
    with ForeignFile(Path(file).absolute()) as kept:
        about = _about(kept)
        with kept.refusing():
            schema = StoreSchema.from_attributes(about["attributes"], f"the store in {kept.path}")
            records = _records(kept, schema)
        with Lease(folder, PROGRAM) as lease:
            folder.sweep()
            there = _there(folder, schema, records, kept.path)
            if not folder.exists("zarr.json"):
                folder.write("zarr.json", group_metadata(schema.to_attributes()))
            total, done, whole = sum(map(_num_rows, records)), 0, True
            for record in records:
                if record.file not in there:
                    lease.check()
                    made = _read_shard(kept, folder, schema, record)
                    whole &= made == record
                done += _num_rows(record)
                progress(done, total, record.file)
            lease.check()
            for name in reversed(NEEDED):
                if name in about["tables"]:
                    _read_table(kept, folder, name, about["tables"][name])
            writer = StoreWriter(folder, schema)
            tables = {name: found for name in NEEDED if (found := read_table(folder, name))}
            fingerprint = store_fingerprint(schema, writer.records(), tables)
            if whole and not there and fingerprint != about["fingerprint"]:
                raise StoreError(f"{kept.path} claims to contain store {about['fingerprint']}, its content is "
                                 f"{fingerprint}; export the store again")
            lease.check()
            if about["finished"]:
                writer.finalise()
            else:
                writer.describe()
    return fingerprint


def is_finished(file: Path) -> bool:
    """Whether the extraction of an exported store was finished.

    Raises:
        StoreError: the file is damaged or not an export.
    """
    with ForeignFile(file.absolute()) as kept:
        return _about(kept)["finished"]


def _write_about(out: h5py.File, store: FeatureStore) -> None:
    """Writes the metadata, for `import_` and, as attributes, for people; values other than strings are JSON."""
    attributes = store.schema.to_attributes()
    about = _About(version=VERSION, fingerprint=store.fingerprint, finished=store.finished, attributes=attributes,
                   tables={name: facts for name, (_, facts) in store.tables.items()})  # fmt: skip
    out[ABOUT] = np.frombuffer(seal(dict(about)), np.uint8)
    lines = [seal(record.facts() | {"seconds": round(record.seconds, 3)}) for record in store.records]
    out[RECORDS] = np.frombuffer(b"\n".join(lines) or b"\n", np.uint8)
    facts = {
        "about": "refavs feature store; refavs-store import restores it", "fingerprint": store.fingerprint,
        "source": store.schema.source, "refavs_schema": json.dumps(attributes["refavs_schema"]),
    }  # fmt: skip
    for name, text in facts.items():
        data = text.encode() or b"\0"
        out.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))
    for name in ("seconds", "fps", "mask_size"):
        out.attrs[name] = attributes[name]


def _write_columns(out: h5py.File, store: FeatureStore) -> None:
    """The columns of the plain tables, and for each stream the keys of its rows and the rows of the clips or texts."""
    for table, (frame, _) in store.tables.items():
        columns, kinds = from_frame(frame)
        for name, column in columns.items():
            out[f"{table}/{name}"] = strings(column) if kinds[name] == "str" else column
    for table in store.schema.tables:
        own = [record for record in store.records if record.table == table]
        rows = {row: key for record in own for key, row in record.rows.items()}
        keys = [rows.get(row, "") for row in range(num_rows(own))]
        out[f"{table_path(table)}/key"] = strings(encode_strings(keys, f"keys of {table}"))
        if KEYS.get(table.split("/")[0], ("",))[0] in store.tables:
            out[f"{table_path(table)}/row"] = store.rows_of(table)


def _write_rows(out: h5py.File, store: FeatureStore, check: Callable[[], None], progress: Progress) -> None:
    total, done = sum(map(_num_rows, store.records)), 0
    for path, spec in store.specs.items():
        records = [record for record in store.records if record.table == spec.table]
        if not records:
            continue
        size = store.schema.tables[spec.table].rows_per_shard
        data = out.create_dataset(path, (num_rows(records), *spec.shape), spec.dtype, chunks=(1, *spec.shape))
        for axis, label in enumerate(("row", *spec.axes)):
            data.dims[axis].label = label
        for name, value in spec.number_attributes.items():
            data.attrs[name] = value
        if path in store.statistics:
            data.attrs["mean"], data.attrs["std"] = store.statistics[path]
        for record in records:
            name = shard_name(spec, record.index)
            shard = ShardReader(store.folder, name, spec, size, record.arrays[spec.name])
            keys = {row - record.index * size: key for key, row in record.rows.items()}
            for place in sorted(keys):
                try:
                    row = shard.read(place, "always").numpy()
                except StoreError as error:
                    raise StoreError(f"{path} of {keys[place]!r} in {store.folder.where(name)} is damaged: {error}; "
                                     "run refavs-store repair first") from error
                at = (record.index * size + place, *(0 for _ in spec.shape))
                data.id.write_direct_chunk(at, np.ascontiguousarray(row))
                check()
                done += 1
            progress(done, total, name)


def _about(kept: ForeignFile) -> _About:
    data = kept.small(ABOUT, "uint8").tobytes()
    with kept.refusing():
        found = read_json(data)["record"]
        version = found["version"]
        if version == VERSION:
            if seal(found) != data:
                raise ValueError(f"{ABOUT} does not match its checksum")
            return shaped(found, _About, "its description")
    raise StoreError(f"{kept.path} has exchange version {version!r}, this refavs reads {VERSION}; use the refavs that "
                     "wrote it")


def _fingerprint_in(path: Path) -> str | None:
    """Fingerprint of the store in a file; None if it is not a complete export."""
    try:
        with ForeignFile(path) as kept:
            return _about(kept)["fingerprint"]
    except StoreError:
        return None


def _records(kept: ForeignFile, schema: StoreSchema) -> list[CommitRecord]:
    """Reads the commit records and checks that the file is large enough for their rows."""
    found: dict[str, CommitRecord] = {}
    for line in filter(None, kept.small(RECORDS, "uint8").tobytes().splitlines()):
        told = read_json(line)["record"]
        file = record_name(str(told["table"]), int(told["index"]))
        found[file] = parse_record(line, file, schema, f"{file} in {kept.path}")
    keys = [(record.table, key) for record in found.values() for key in record.rows]
    num_bytes = sum(len(record.rows) * spec.row_bytes for record in found.values()
                    for spec in schema.tables[record.table].arrays)  # fmt: skip
    if len(set(keys)) != len(keys) or num_bytes > kept.num_bytes:
        raise ValueError(f"its records list {num_bytes} bytes of rows in a file of {kept.num_bytes}, or a key twice")
    return list(found.values())


def _read_table(kept: ForeignFile, folder: Folder, name: str, facts: dict[str, Any]) -> None:
    """Writes a plain table if its columns match the checksums in the file."""
    with kept.refusing():
        frame = {}
        for column in facts["columns"]:
            path, kind = f"{name}/{column['name']}", column["kind"]
            values = kept.small(path, "S" if kind == "str" else column["dtype"])
            frame[column["name"]] = [value.decode() for value in values.tolist()] if kind == "str" else values
        table = pd.DataFrame(frame, index=pd.RangeIndex(facts["num_rows"]))
    write_table(folder, name, table)
    found = read_table(folder, name)
    if found is None or found[1] != facts:
        raise StoreError(f"the table {name} in {kept.path} is damaged: it does not match its checksums; {AGAIN}")


def _read_shard(kept: ForeignFile, folder: Folder, schema: StoreSchema, record: CommitRecord) -> CommitRecord:
    """Writes the files of a shard from rows that match the record, and commits it."""
    table, arrays = schema.tables[record.table], {}
    for spec in table.arrays:
        data, row = kept.rows(spec.path, spec.shape, spec.dtype), np.empty(spec.shape, spec.dtype)
        keys = {row - record.index * table.rows_per_shard: key for key, row in record.rows.items()}
        shard = ShardFile(folder, shard_name(spec, record.index), table.rows_per_shard, spec.num_parts)
        try:
            for place in sorted(keys):
                kept.row(data, record.index * table.rows_per_shard + place, row)
                known = record.arrays[spec.name].rows[place]
                if crc32c(row) != known:
                    raise StoreError(f"{spec.path} of {keys[place]!r} in {kept.path} is damaged: its checksum is "
                                     f"{crc32c(row):08x}, its commit record says {known:08x}; {AGAIN}")
                shard.append(place, row)
            arrays[spec.name] = shard.finish()
            shard.publish()
        finally:
            shard.discard()
    made = replace(record, arrays=arrays)  # the padding between rows may differ
    write_record(folder, made)
    return made


def _there(folder: Folder, schema: StoreSchema, records: list[CommitRecord], path: Path) -> set[str]:
    """The records that an interrupted import already committed.

    Raises:
        StoreError: `folder` contains another store, or has rows that the file lacks.
    """
    if not folder.exists("zarr.json"):
        return set()
    known = {record.file: record for record in records}
    found = read_records(folder, schema) if (same := schema_at(folder) == schema) else []
    if not same or not all(one.file in known and _rows(one) == _rows(known[one.file]) for one in found):
        raise StoreError(f"{folder.location} contains another store than {path}; name a new folder")
    return {record.file for record in found}


def _rows(record: CommitRecord) -> tuple[Any, ...]:
    return record.rows, record.meta, {name: facts.rows for name, facts in record.arrays.items()}


def _num_rows(record: CommitRecord) -> int:
    """Total number of rows in all arrays."""
    return sum(len(facts.rows) for facts in record.arrays.values())

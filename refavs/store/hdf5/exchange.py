"""One HDF5 file for a whole store: for people who have no refavs, and back into a store without a loss.

Each array is a dataset of its own name and axes whose chunk is one row, uncompressed; `TABLE/key` names the rows (empty
where there is none), the columns and the expressions are datasets too. The group `refavs` keeps what `import_` needs
to make the same store again: the small files of the store with their checksums, and the order of the rows in a shard
where it is not that of their places. Memory holds one row, both ways.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from refavs.errors import StoreError
from refavs.files.partials import remove_left
from refavs.store.backends.base import Folder, open_folder, write_if_changed
from refavs.store.columns import GROUP, MOST_BYTES, encode_strings, read_column
from refavs.store.format.checksum import crc32c
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import StoreSchema, group_metadata, refuse_foreign, root_attributes
from refavs.store.format.shard import CRC_BYTES, ShardFile, ShardReader, shard_name
from refavs.store.hdf5.guarded_file import NewFile, strings
from refavs.store.hdf5.kept import ROOT, VERSION, KeptStore, is_small, order_name
from refavs.store.lease import Lease
from refavs.store.reader import FeatureStore

PROGRAM = "refavs-store"
Progress = Callable[[int, int, str], None]
_BLOCK_BYTES = 2**20
MOST_SMALL = MOST_BYTES + CRC_BYTES


def silent(done: int, total: int, note: str) -> None:
    """The progress that nobody wants to see."""


def export(location: str | Path, file: str | Path, progress: Progress = silent) -> str:
    """Writes the committed rows of a store and all that is known of them to one new HDF5 file.

    Args:
        progress: told the rows done, all rows, and the shard file they came from.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: a row is damaged, the store changes meanwhile, or the file is there and is not an export of the
            same content.
    """
    target = Path(file).absolute()
    store = FeatureStore(location)
    folder = open_folder(location)
    if target.exists():
        if KeptStore.fingerprint_of(target) != store.fingerprint:
            raise StoreError(f"{target} is there already and is no export of what {store.location} holds now; name "
                             "another file")
        remove_left(target)
        return store.fingerprint
    small = _small_files(folder, store.schema)
    with NewFile(target) as new:
        with h5py.File(new, "w", libver="v110") as out:
            crcs = _write_small(out, folder, small)
            _write_about(out, store)
            _write_columns(out, folder, store, small)
            _write_rows(out, folder, store, new.check, progress)
        new.check()
        now = [crc32c(folder.read(name, MOST_SMALL)) for name in small]
        if crcs != now or _small_files(folder, store.schema) != small:
            raise StoreError(f"{store.location} has changed while it was exported; run the same command again when "
                             "nothing writes it")
    return store.fingerprint


def import_(file: str | Path, location: str | Path, progress: Progress = silent) -> str:
    """Makes the store again that a file was exported from; an interrupted import goes on where it ended.

    Args:
        progress: told the rows done, all rows, and the shard file they went to.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: the file is damaged or no export, or another store is at `location`.
    """
    folder = open_folder(location)
    refuse_foreign(folder)
    with KeptStore(Path(file).absolute()) as kept:
        _refuse_other(folder, kept)
        with Lease(folder, PROGRAM) as lease:
            folder.sweep()
            if not folder.exists(ROOT):
                attributes = {name: value for name, value in kept.attributes.items() if name != "fingerprint"}
                folder.write(ROOT, group_metadata(attributes))  # the store says that it is not finished
            total, done = _num_rows(list(kept.records.values())), 0
            for name, record in kept.records.items():
                there = folder.exists(name)
                for path, facts in record.arrays.items():
                    if not there:
                        lease.check()
                        _read_shard(kept, folder, record, path)
                    done += len(facts.rows)
                    progress(done, total, shard_name(kept.schema.specs[path], record.index))
                if not there:
                    folder.write(name, kept.read(name))
            lease.check()
            # The records late: that of the expressions says that their columns are whole. Without the description of
            # their group, they are not there for a reader.
            for name in sorted(kept.names, key=lambda name: (name == GROUP, name.startswith("commits/"))):
                if name not in kept.records and name != ROOT:
                    write_if_changed(folder, name, kept.read(name))
            found = FeatureStore(folder.location).fingerprint
            if found != kept.fingerprint:
                raise StoreError(f"{kept.path} says that it holds store {kept.fingerprint}, its content is {found}; "
                                 "export the store again")
            lease.check()
            write_if_changed(folder, ROOT, kept.read(ROOT))
    return found


def is_finished(file: Path) -> bool:
    """Whether the extraction of the store in an export had come to its end.

    Raises:
        StoreError: the file is damaged or no export.
    """
    with KeptStore(file.absolute()) as kept:
        return kept.attributes.get("fingerprint") == kept.fingerprint


def _small_files(folder: Folder, schema: StoreSchema) -> list[str]:
    """Every file of the store but its shards, and those that belong to a run and not to its result."""
    try:
        names = folder.names()
    except OSError as error:
        raise StoreError(f"{folder.location} cannot be listed ({error.strerror or error}), which an export needs; copy "
                         "the store to a disk or a bucket first") from error
    return [name for name in names if is_small(name, schema)]


def _write_small(out: h5py.File, folder: Folder, names: list[str]) -> list[int]:
    """The small files one after the other, and where each ends; returns their checksums."""
    data = out.create_dataset("refavs/files/data", (0,), "uint8", chunks=(_BLOCK_BYTES,), maxshape=(None,))
    ends, crcs, block = [0], [], b""
    for name in names:
        one = folder.read(name, MOST_SMALL)
        ends.append(ends[-1] + len(one))
        crcs.append(crc32c(one))
        block += one
        if len(block) >= _BLOCK_BYTES or name == names[-1]:
            data.resize((ends[-1],))
            data[ends[-1] - len(block) :] = np.frombuffer(block, np.uint8)
            block = b""
    out["refavs/files/name"] = strings(encode_strings(names, "files of the store"))
    out["refavs/files/end"] = np.array(ends[1:], "int64")
    out["refavs/files/crc32c"] = np.array(crcs, "uint32")
    return crcs


def _write_about(out: h5py.File, store: FeatureStore) -> None:
    """What the file is, for `import_` and, as attributes, for people; texts are JSON where they are not plain."""
    about = json.dumps({"version": VERSION, "fingerprint": store.fingerprint}).encode()
    out["refavs/about"] = np.frombuffer(about, np.uint8)
    facts = {
        "about": "refavs feature store; refavs-store import makes the store again", "fingerprint": store.fingerprint,
        "source": store.schema.source, "encoders": json.dumps(store.encoders),
        "refavs_schema": json.dumps(store.attributes["refavs_schema"]),
    }  # fmt: skip
    for name, text in facts.items():
        _label(out, name, text)
    out.attrs["T"], out.attrs["input_size"] = store.num_frames, store.input_size


def _write_columns(out: h5py.File, folder: Folder, store: FeatureStore, names: list[str]) -> None:
    """The key of each row, and each column of the store as it is there, texts as strings."""
    for table in store.schema.tables:
        rows = {row: key for record in store.records if record.table == table for key, row in record.rows.items()}
        keys = [rows.get(row, "") for row in range(max(rows, default=-1) + 1)]
        out[f"{table}/key"] = strings(encode_strings(keys, f"keys of {table}"))
    for column in [name.removesuffix(f"/{ROOT}") for name in names if name.endswith(f"/{ROOT}")]:
        holds_arrays = any(f"{path}/".startswith(f"{column}/") for path in store.specs)
        if column.count("/") != 1 or holds_arrays or column.split("/")[1] == "key":
            continue
        values = read_column(folder, *column.split("/"))
        if values is None:
            raise StoreError(f"column {folder.where(column)} is damaged; run the same refavs-extract command again")
        out[column] = strings(values) if values.dtype == np.uint8 else values


def _write_rows(
    out: h5py.File, folder: Folder, store: FeatureStore, check: Callable[[], None], progress: Progress
) -> None:
    total, done = _num_rows(store.records), 0
    for path, spec in store.specs.items():
        records = [record for record in store.records if path in record.arrays]
        if not records:
            continue
        size = store.schema.tables[spec.table].rows_per_shard
        num_rows = max(row + 1 for record in store.records if record.table == spec.table
                       for row in record.rows.values())  # fmt: skip
        data = out.create_dataset(path, (num_rows, *spec.shape), spec.dtype, chunks=(1, *spec.shape))
        for axis, label in enumerate((spec.table.removesuffix("s"), *spec.axes)):
            data.dims[axis].label = label
        if path in store.statistics:
            data.attrs["mean"], data.attrs["std"] = store.statistics[path]
        for record in records:
            name = shard_name(spec, record.index)
            shard = ShardReader(folder, name, spec, size, record.arrays[path])
            if shard.order != sorted(shard.order):
                out[order_name(path, record.index)] = np.array(shard.order, "int64")
            keys = {row - record.index * size: key for key, row in record.rows.items()}
            for place in shard.order:
                try:
                    row = shard.read(place, "always").numpy()
                except StoreError as error:
                    raise StoreError(f"{path} of {keys[place]!r} in {folder.where(name)} is damaged: {error}; run "
                                     "refavs-store repair first") from error
                at = (record.index * size + place, *(0 for _ in spec.shape))
                data.id.write_direct_chunk(at, np.ascontiguousarray(row))
                check()
                done += 1
            progress(done, total, name)


def _read_shard(kept: KeptStore, folder: Folder, record: CommitRecord, path: str) -> None:
    """Writes one shard file from the rows of the HDF5 file, if these are what the commit record says."""
    spec, facts = kept.schema.specs[path], record.arrays[path]
    size = kept.schema.tables[spec.table].rows_per_shard
    shard = ShardFile(folder, shard_name(spec, record.index), size)
    keys = {row - record.index * size: key for key, row in record.rows.items()}
    try:
        row = np.empty(spec.shape, spec.dtype)
        for place in kept.order(record, path):
            kept.row(path, record.index * size + place, row)
            if crc32c(row) != facts.rows[place]:
                raise StoreError(f"{path} of {keys[place]!r} in {kept.path} is damaged: its checksum is "
                                 f"{crc32c(row):08x}, its commit record says {facts.rows[place]:08x}; export the store "
                                 "again, or copy the file again")
            shard.append(place, row)
        if shard.finish() != facts:
            raise StoreError(f"{path} in {kept.path} does not make the shard that its commit record speaks of; export "
                             "the store again")
        shard.publish()
    finally:
        shard.discard()


def _refuse_other(folder: Folder, kept: KeptStore) -> None:
    """Checks that what is at `folder`, if anything, is a part of the store in the file.

    Raises:
        StoreError: it is another store, or has rows that the file has not.
    """
    if not folder.exists(ROOT):
        return
    schema = StoreSchema.from_attributes(root_attributes(folder), f"store {folder.location}")
    there = [name for name in folder.names("commits") if kept.is_record(name)]
    known = all(name in kept.records and folder.read(name) == kept.read(name) for name in there)
    if schema != kept.schema or not known:
        raise StoreError(f"{folder.location} holds another store than {kept.path}; name a new folder")


def _num_rows(records: list[CommitRecord]) -> int:
    """Rows of all arrays together."""
    return sum(len(facts.rows) for record in records for facts in record.arrays.values())


def _label(at: Any, name: str, text: str) -> None:
    data = text.encode() or b"\0"
    at.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))

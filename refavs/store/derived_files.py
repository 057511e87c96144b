"""Files of a finished store for readers without this code; all are derived from its records and plain tables.

`StoreWriter.finalise` writes them, `verify` compares them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from refavs.config import digest
from refavs.store.columns import Table, column_files, from_frame
from refavs.store.format.array_spec import ArraySpec, table_path
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import LISTING, CommitRecord, seal
from refavs.store.format.schema import OBJECTS, StoreSchema
from refavs.store.format.zarr_metadata import array_metadata, group_metadata

# The table and column with the keys of a modality's streams.
KEYS = {"visual": ("clips", "frames"), "audio": ("clips", "sound"), "text": ("text", "key")}


def finished_files(
    schema: StoreSchema, records: Sequence[CommitRecord], tables: Mapping[str, Table]
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each file in writing order; the last one marks the store as complete.

    Args:
        schema: the store's schema.
        records: all commit records, by table and index.
        tables: the store's plain tables by name.
    """
    for name, table in schema.tables.items():
        own = [record for record in records if record.table == name]
        moments = merged_statistics(schema, own)
        yield from stream_groups(schema, name)
        for spec in table.arrays:
            told = {} if spec.path not in moments else {
                "statistics": dict(zip(("mean", "std"), (part.tolist() for part in moments[spec.path]), strict=True))
            }  # fmt: skip
            yield array_file(spec, table.rows_per_shard, num_rows(own), told)
        columns = _object_columns(own, tables) if name == OBJECTS else _row_column(name, own, tables)
        if columns is not None:
            yield from column_files(table_path(name), *from_frame(columns))
    root = group_metadata(schema.to_attributes() | {"fingerprint": store_fingerprint(schema, records, tables)})
    names = sorted(record.file for record in records)
    # Includes a copy of the root, because parts that the fingerprint omits, e.g. the source, are stored nowhere else.
    yield LISTING, seal({"names": names, "zarr.json": root.decode()})
    yield "zarr.json", root


def store_fingerprint(schema: StoreSchema, records: Sequence[CommitRecord], tables: Mapping[str, Table]) -> str:
    """Fingerprint of a store's content: schema, every row with its checksums, statistics, and the plain tables."""
    described = schema.to_attributes()
    told = [described[name] for name in ("refavs_schema", "seconds", "fps", "mask_size")]
    facts = [digest({**record.facts(), "failures": {}}) for record in records]
    return digest([told, facts, {name: record for name, (_, record) in tables.items()}])


def stream_groups(schema: StoreSchema, table: str) -> Iterator[tuple[str, bytes]]:
    """Descriptions of the group of a stream or of `objects`, with the fingerprint, and of its parent groups."""
    *names, last = table_path(table).split("/")
    for depth in range(1, len(names) + 1):
        yield f"{'/'.join(names[:depth])}/zarr.json", group_metadata()
    fingerprint = {} if table == OBJECTS else {"fingerprint": schema.streams[table].fingerprint}
    yield f"{'/'.join([*names, last])}/zarr.json", group_metadata(fingerprint)


def array_file(
    spec: ArraySpec, rows_per_shard: int, rows: int, attributes: Mapping[str, Any]
) -> tuple[str, bytes]:
    """Description of an array."""
    return f"{spec.path}/zarr.json", array_metadata(spec, rows_per_shard, rows, attributes)


def committed_rows(records: Iterable[CommitRecord]) -> dict[str, int]:
    """The row of every key in a table."""
    return {key: row for record in records for key, row in record.rows.items()}


def merged_statistics(
    schema: StoreSchema, records: Iterable[CommitRecord]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation per channel over all rows, by array path."""
    by_path: dict[str, list[ChannelSums]] = {}
    for record in records:
        specs = schema.tables[record.table].specs
        for name, sums in record.statistics.items():
            by_path.setdefault(specs[name].path, []).append(sums)
    return {path: reduce(ChannelSums.merge, parts).moments() for path, parts in by_path.items()}


def num_rows(records: Iterable[CommitRecord]) -> int:
    """Number of rows in the arrays of a table."""
    return max((row + 1 for record in records for row in record.rows.values()), default=0)


def rows_of_table(stream: str, records: Iterable[CommitRecord], tables: Mapping[str, Table]) -> np.ndarray:
    """The stream's row for each clip or text; -1 if it has none."""
    table, column = KEYS[stream.split("/")[0]]
    rows = committed_rows(records)
    return np.array([rows.get(key, -1) for key in tables[table][0][column]], "int64")


def _row_column(stream: str, records: Sequence[CommitRecord], tables: Mapping[str, Table]) -> pd.DataFrame | None:
    if KEYS[stream.split("/")[0]][0] not in tables:
        return None
    return pd.DataFrame({"row": rows_of_table(stream, records, tables)})


def _object_columns(records: Sequence[CommitRecord], tables: Mapping[str, Table]) -> pd.DataFrame:
    """The clip and fid of each object; -1 if the row is empty or the clip is not in the store."""
    ids = tables["clips"][0]["id"] if "clips" in tables else []
    clips = {name: place for place, name in enumerate(ids)}
    pairs = [("", "-1")] * num_rows(records)
    for key, row in committed_rows(records).items():
        clip, _, fid = key.rpartition("/")
        pairs[row] = clip, fid
    return pd.DataFrame({"clip": [clips.get(clip, -1) for clip, _ in pairs], "fid": [int(fid) for _, fid in pairs]},
                        dtype="int64")  # fmt: skip

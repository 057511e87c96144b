"""Files of a finished store that readers without this code want: all of them follow from its records and expressions.

`StoreWriter.finalise` writes them, `verify` compares them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import pandas as pd

from refavs.store.backends.base import Folder
from refavs.store.columns import column_files, decode_strings, from_frame, read_column
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import LISTING, CommitRecord, record_name, seal, store_fingerprint
from refavs.store.format.schema import ArraySpec, StoreSchema, array_metadata, group_metadata, object_key, text_key

# Starts of array paths that clips may share; column `<last part>_row` says where a clip's features lie.
SHARED = ("clips/visual", "clips/audio")


def finished_files(
    schema: StoreSchema, records: Sequence[CommitRecord], expressions: dict[str, Any] | None
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, in the order in which they are written; the last one says that all are there.

    Args:
        schema: of the store.
        records: all of them, by table and index.
        expressions: the record of the table of expressions.
    """
    clips = committed_rows([record for record in records if record.table == "clips"])
    for name, table in schema.tables.items():
        own = [record for record in records if record.table == name]
        totals = {path: sums.moments() for path, sums in merged_statistics(own).items()}
        for spec in table.arrays:
            moments = totals.get(spec.path)
            told = {} if moments is None else {
                "statistics": {"mean": moments[0].tolist(), "std": moments[1].tolist()}
            }  # fmt: skip
            yield from array_files(spec, table.rows_per_shard, num_rows(own), told)
        yield from column_files(name, *from_frame(_names(name, own, clips)))
    root = group_metadata(schema.to_attributes() | {"fingerprint": store_fingerprint(schema, records, expressions)})
    names = sorted(record_name(record.table, record.index) for record in records)
    # With a copy of the root: what the fingerprint leaves out of it, as where the clips came from, is nowhere else.
    yield LISTING, seal({"names": names, "zarr.json": root.decode()})
    yield "zarr.json", root


def array_files(
    spec: ArraySpec, rows_per_shard: int, rows: int, attributes: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Descriptions of an array and of the groups that it lies in."""
    names = spec.path.split("/")
    for depth in range(1, len(names)):
        yield f"{'/'.join(names[:depth])}/zarr.json", group_metadata()
    yield f"{spec.path}/zarr.json", array_metadata(spec, rows_per_shard, rows, attributes)


def committed_rows(records: Sequence[CommitRecord]) -> dict[str, int]:
    """Row of every key of a table; a clip whose features are another one's counts if that one is there."""
    rows = {key: row for record in records for key, row in record.rows.items()}
    lost = {key for record in records for key, owners in record.shares.items()
            if not rows.keys() >= set(owners.values())}  # fmt: skip
    return {key: row for key, row in rows.items() if key not in lost}


def merged_statistics(records: Iterable[CommitRecord]) -> dict[str, ChannelSums]:
    """Sums over all rows, by array path."""
    by_path: dict[str, list[ChannelSums]] = {}
    for record in records:
        for path, sums in record.statistics.items():
            by_path.setdefault(path, []).append(sums)
    return {path: reduce(ChannelSums.merge, parts) for path, parts in by_path.items()}


def keys_of_rows(folder: Folder, table: str) -> dict[int, str]:
    """Key of each row when the store was last finished, by the columns; empty where those are missing or damaged.

    So it is known what a commit record held that is lost.
    """
    names = {"clips": ("id",), "objects": ("clip", "fid"), "text": ("string",)}[table]
    columns = [column for name in names if (column := read_column(folder, table, name)) is not None]
    if len(columns) < len(names) or any(column.ndim != (2 if table != "objects" else 1) for column in columns):
        return {}
    if table == "objects":
        clips = keys_of_rows(folder, "clips")
        pairs = zip(*(column.tolist() for column in columns), strict=True)
        return {row: object_key(clips[clip], fid) for row, (clip, fid) in enumerate(pairs) if clip in clips}
    strings = decode_strings(columns[0])
    return {row: text_key(string) if table == "text" else string for row, string in enumerate(strings) if string}


def num_rows(records: Iterable[CommitRecord]) -> int:
    """Rows that the arrays of a table have."""
    return max((row + 1 for record in records for row in record.rows.values()), default=0)


def _names(table: str, records: Sequence[CommitRecord], clips: Mapping[str, int]) -> pd.DataFrame:
    """`clips/{id,visual_row,audio_row}`, `objects/{clip,fid}`, `text/string`; empty or -1 where a row is a hole."""
    keys, metas = [""] * num_rows(records), [{}] * num_rows(records)
    for record in records:
        for key, row in record.rows.items():
            keys[row], metas[row] = key, record.meta[key]
    if table == "clips":
        owners = {key: owners for record in records for key, owners in record.shares.items()}
        rows = {f"{start.split('/')[1]}_row": [clips.get(owners.get(key, {}).get(start, key), -1) for key in keys]
                for start in SHARED}  # fmt: skip
        return pd.DataFrame({"id": keys, **rows})
    if table == "objects":
        pairs = [key.rsplit("/", 1) if key else ["", "-1"] for key in keys]
        return pd.DataFrame({"clip": [clips.get(clip, -1) for clip, _ in pairs], "fid": [int(fid) for _, fid in pairs]})
    return pd.DataFrame({"string": [meta.get("text", "") for meta in metas]})

"""Plans the missing rows of a table as shards to compute.

A shard is written by one process in one go. The caller groups the keys: each group becomes one shard, with the smallest
index that no commit record uses. An interrupted run that passes the remaining groups again therefore gets the same
places. A key that fails leaves an empty row in its shard.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from refavs.store.columns import encode_strings
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import StoreSchema


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A shard to compute.

    Attributes:
        table: id of the stream, or `objects`.
        keys: the keys, in writing order.
        rows: row of each key.
    """

    table: str
    index: int
    keys: tuple[str, ...]
    rows: tuple[int, ...]


def plan_shards(
    schema: StoreSchema, table: str, records: Sequence[CommitRecord], groups: Sequence[Sequence[str]]
) -> list[ShardPlan | None]:
    """Plans a shard for the missing keys of each group; None for a group without missing keys.

    Args:
        records: commit records of the table.

    Raises:
        StoreError: a key is not valid Unicode.
        ValueError: a group is larger than a shard, or a key is in two groups.
    """
    size = schema.tables[table].rows_per_shard
    done = {key for record in records for key in record.rows}
    missing = [tuple(key for key in dict.fromkeys(group) if key not in done) for group in groups]
    every = [key for group in missing for key in group]
    encode_strings(every, f"keys of {table}")
    if len(set(every)) < len(every) or max(map(len, missing), default=0) > size:
        raise ValueError(f"groups of {table} of up to {max(map(len, missing))} keys, {len(every)} in all and "
                         f"{len(set(every))} different ones; a shard has {size} rows, a key belongs to one group")
    taken = {record.index for record in records}
    free = (index for index in itertools.count() if index not in taken)
    return [_shard(table, free, size, keys) if keys else None for keys in missing]


def _shard(table: str, free: Iterator[int], size: int, keys: tuple[str, ...]) -> ShardPlan:
    index = next(free)
    return ShardPlan(table=table, index=index, keys=keys, rows=tuple(range(index * size, index * size + len(keys))))

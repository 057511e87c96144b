"""What is missing in a store, as shards to compute.

A shard is written by one process in one go. Missing keys, sorted, fill the shard numbers that no commit record has
taken, so an interrupted run plans the same keys into the same places, and keys that come later open new shards. A key
that failed leaves a hole in its shard and is tried again in a shard of its own. Arrays that a committed shard lacks
(another level) are planned for the keys and the places it has.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from refavs.store.columns import encode_strings
from refavs.store.format.commits import CommitRecord, lacking
from refavs.store.format.schema import StoreSchema

Shares = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to compute.

    Attributes:
        keys: in the order in which they are written.
        rows: row of each key.
        arrays: paths of the arrays to write.
        shares: of keys with the same input as another one: that other key, by the start of the array paths that are
            not to be written for it.
        adds: the shard is committed already and lacks these arrays.
        mends: the shard is committed already and its files of these arrays are damaged; see `mender.ShardMender`.
    """

    table: str
    index: int
    keys: tuple[str, ...]
    rows: tuple[int, ...]
    arrays: tuple[str, ...]
    shares: dict[str, dict[str, str]] = field(default_factory=dict)
    adds: bool = False
    mends: bool = False

    def paths_of(self, key: str) -> tuple[str, ...]:
        """Arrays that have to be written for `key`."""
        starts = tuple(f"{start}/" for start in self.shares.get(key, {}))
        return tuple(path for path in self.arrays if not path.startswith(starts))


def plan_shards(
    schema: StoreSchema, table: str, records: Sequence[CommitRecord], keys: Iterable[str], shares: Shares
) -> list[ShardPlan]:
    """The shards that compute what is missing of `keys`.

    A committed shard that lacks arrays is planned only if `keys` has all that it needs.

    Raises:
        StoreError: a key is not valid Unicode.
    """
    wanted = set(keys)
    size = schema.tables[table].rows_per_shard
    added = [plan for record in records if (plan := _addition(schema, record)) and wanted.issuperset(plan.keys)]
    done = {key for record in records for key in record.rows}
    failed = {key for record in records for key in record.failures}
    missing = sorted(wanted - done)
    encode_strings(missing, f"keys of {table}")
    parts = [key for key in missing if key not in failed], [key for key in missing if key in failed]
    groups = [tuple(part[start : start + size]) for part in parts for start in range(0, len(part), size)]
    taken = {record.index for record in records}
    free = (index for index in itertools.count() if index not in taken)
    arrays = tuple(spec.path for spec in schema.tables[table].arrays)
    fresh = [
        ShardPlan(table=table, index=index, keys=group, rows=tuple(range(index * size, index * size + len(group))),
                  arrays=arrays, shares={key: dict(shares[key]) for key in group if shares.get(key)})
        for index, group in zip(free, groups, strict=False)
    ]  # fmt: skip
    return added + fresh


def _addition(schema: StoreSchema, record: CommitRecord) -> ShardPlan | None:
    paths = lacking(record, schema)
    keys = sorted({key for path in paths for key in record.own_rows(path)}, key=record.rows.__getitem__)
    if not keys:
        return None
    return ShardPlan(
        table=record.table, index=record.index, keys=tuple(keys), rows=tuple(record.rows[key] for key in keys),
        arrays=paths, shares={key: record.shares[key] for key in keys if key in record.shares}, adds=True,
    )  # fmt: skip

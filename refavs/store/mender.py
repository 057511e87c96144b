"""Mending shard files: rows that are still what their commit record says are kept bit for bit, the others replaced.

The damaged file stays until the new one is whole and takes its name. Where the computation is deterministic, the new
file is the lost one byte for byte and the commit record stays as it is; where it is not, the record is replaced by one
that speaks of the new rows, and the store has another fingerprint.
"""

import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np

from refavs.errors import StoreError
from refavs.store.backends.base import Folder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.checksum import crc32c
from refavs.store.format.commits import CommitRecord, read_record, record_name, write_record
from refavs.store.format.schema import ArraySpec, StoreSchema
from refavs.store.format.shard import ALIGNMENT_BYTES, CRC_BYTES, ShardFile, ShardReader, shard_name
from refavs.store.plan import ShardPlan
from refavs.store.shard_writer import ShardWriter


class Remains:
    """What is left of a committed shard file.

    Attributes:
        order: places of all rows, in the order in which the file held them.
        good: the places whose row is what the commit record says.
    """

    def __init__(self, folder: Folder, schema: StoreSchema, record: CommitRecord, path: str) -> None:
        spec, facts = schema.specs[path], record.arrays[path]
        self._spec, size = spec, schema.tables[spec.table].rows_per_shard
        name = shard_name(spec, record.index)
        self._offsets = _offsets(spec, sorted(facts.rows))
        # Where the index is damaged, rows may still lie where this code writes them.
        with contextlib.suppress(StoreError):
            self._offsets = ShardReader(folder, name, spec, size, facts).offsets
        self.order = sorted(self._offsets, key=self._offsets.__getitem__)
        try:
            self._blob = folder.open(name)
        except (FileNotFoundError, IsADirectoryError):
            self.good: set[int] = set()
            return
        self.good = {place for place, crc in facts.rows.items()
                     if self._whole(place) and crc32c(self.row(place)) == crc}  # fmt: skip

    @property
    def lost(self) -> set[int]:
        """Places of the rows that have to be computed again."""
        return set(self.order) - self.good

    def row(self, place: int) -> np.ndarray:
        """The bytes of a row."""
        start = self._offsets[place]
        return self._blob.read(start, start + self._spec.row_bytes)

    def _whole(self, place: int) -> bool:
        return self._offsets[place] + self._spec.row_bytes <= self._blob.num_bytes


class ShardMender(ShardWriter):
    """Writes the damaged files of a committed shard anew; `plan.arrays` are those, `plan.keys` have their lost rows.

    Rows of a key that turn out to be whole are kept, whatever is given for them. If a key fails, all stays as it is.
    """

    def __enter__(self) -> "ShardMender":
        super().__enter__()
        name = record_name(self.plan.table, self.plan.index)
        self._old = read_record(self._folder, name, self._schema)
        self._size = self._schema.tables[self.plan.table].rows_per_shard
        self._remains = {path: Remains(self._folder, self._schema, self._old, path) for path in self.plan.arrays}
        self._order = {path: deque(remains.order) for path, remains in self._remains.items()}
        self._waiting: dict[str, dict[int, np.ndarray]] = {path: {} for path in self.plan.arrays}
        for path, spec in self._specs.items():
            self._files[path] = ShardFile(self._folder, shard_name(spec, self.plan.index), self._size)
        return self

    def write(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
        """Takes the rows of `key`, at least one for each of `plan.paths_of(key)`; the record has its facts already.

        Raises:
            StoreError: a value is infinite or not a number.
            ValueError: an array of the plan is missing or of another kind.
        """
        self._claim(key)
        arrays = {path: arrays[path] for path in self.plan.paths_of(key) if path in arrays}
        self._checked(key, arrays)
        place = self._rows[key] - self.plan.index * self._size
        for path, row in arrays.items():
            if place not in self._remains[path].good:
                self._waiting[path][place] = row
            self._advance(path)
        self._meta[key] = {}

    def _advance(self, path: str) -> None:
        """Writes the rows whose turn has come."""
        order, remains, waiting = self._order[path], self._remains[path], self._waiting[path]
        while order and (order[0] in remains.good or order[0] in waiting):
            place = order.popleft()
            self._files[path].append(place, remains.row(place) if place in remains.good else waiting.pop(place))

    def _commit(self) -> None:
        if self._failures:
            return
        for path in self.plan.arrays:
            self._advance(path)
        left = [path for path, order in self._order.items() if order]
        if left:
            raise ValueError(f"rows of {left[0]} that are lost are not in the plan")
        facts = {path: file.finish() for path, file in self._files.items()}
        for file in self._files.values():
            file.publish()
        record = self._old
        if any(facts[path] != record.arrays[path] for path in facts):
            changed = {path for path in facts if facts[path].rows != record.arrays[path].rows}
            record = replace(record, arrays=record.arrays | facts)
            sums = {path: self._sums(record, spec) for path, spec in self._schema.specs.items()
                    if path in record.statistics and changed & {path, spec.valid}}  # fmt: skip
            record = replace(record, statistics=record.statistics | sums)
            write_record(self._folder, record)
        self.record = record

    def _sums(self, record: CommitRecord, spec: ArraySpec) -> ChannelSums:
        """Statistics of an array's rows in this shard."""
        def opened(path: str) -> ShardReader:
            known = self._schema.specs[path]
            return ShardReader(self._folder, shard_name(known, record.index), known, self._size, record.arrays[path])

        shard, valid = opened(spec.path), opened(spec.valid) if spec.valid else None
        parts = [
            ChannelSums.of(shard.read(place, "always").numpy(), spec.axes.index("c"),
                           None if valid is None else valid.read(place, "always").numpy())
            for place in sorted(record.arrays[spec.path].rows)
        ]  # fmt: skip
        return reduce(ChannelSums.merge, parts)


def mending_plan(
    folder: Folder, schema: StoreSchema, record: CommitRecord, paths: Sequence[str], batch_clips: int = 1
) -> ShardPlan:
    """The rows to compute anew so that `ShardMender` can mend the files of a shard at `paths`.

    Args:
        batch_clips: rows that were computed together, which are computed together again.
    """
    size = schema.tables[record.table].rows_per_shard
    needed = {*paths, *(schema.specs[path].valid for path in paths)}  # places that are not real may hold anything
    paths = [path for path in record.arrays if path in needed]
    groups = {place // batch_clips for path in paths for place in Remains(folder, schema, record, path).lost}
    keys = sorted((key for path in paths for key in record.own_rows(path)), key=record.rows.__getitem__)
    keys = [key for key in dict.fromkeys(keys) if (record.rows[key] - record.index * size) // batch_clips in groups]
    return ShardPlan(
        table=record.table, index=record.index, keys=tuple(keys), rows=tuple(record.rows[key] for key in keys),
        arrays=tuple(paths), shares={key: record.shares[key] for key in keys if key in record.shares}, mends=True,
    )  # fmt: skip


def _offsets(spec: ArraySpec, places: Sequence[int]) -> dict[int, int]:
    """Where `ShardFile` puts rows that come in this order."""
    step = -(-(spec.row_bytes + CRC_BYTES) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return {place: number * step for number, place in enumerate(places)}

"""Writes one shard of a table: the rows into one file per array, then the commit record."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from refavs.errors import StoreError
from refavs.store.backends.base import Folder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import CommitRecord, read_record, record_name, short_digest, write_record
from refavs.store.format.quantised import sums_of
from refavs.store.format.schema import StoreSchema
from refavs.store.format.shard import ShardFile, shard_name
from refavs.store.plan import ShardPlan


class ShardWriter:
    """Writes the rows of one shard, row by row; use it as a context manager.

    Attributes:
        record: the commit record after a clean exit; None if no key succeeded, in which case nothing is left behind.
    """

    def __init__(self, folder: Folder, schema: StoreSchema, plan: ShardPlan) -> None:
        self.plan = plan
        self.record: CommitRecord | None = None
        self._folder, self._table = folder, schema.tables[plan.table]
        self._schema, self._specs = schema, self._table.specs
        self._rows = dict(zip(plan.keys, plan.rows, strict=True))
        self._meta: dict[str, dict] = {}
        self._failures: dict[str, str] = {}
        self._statistics: dict[str, ChannelSums] = {}
        self._files: dict[str, ShardFile] = {}
        self._broken: BaseException | None = None

    def __enter__(self) -> "ShardWriter":
        self._started = time.monotonic()
        return self

    def write(self, key: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any] | None = None) -> None:
        """Appends the row of `key`. Rows are stored in the order of the calls, so keep the plan's order.

        Args:
            arrays: one row for each array of the table, by name.
            meta: plain facts to store with the key.

        Raises:
            StoreError: a value is not finite; nothing was written, so `fail` may be called next.
            ValueError: the arrays are not those of the table.
        """
        self._claim(key)
        sums = self._checked(key, arrays)
        num_places = self._table.rows_per_shard
        place = self._rows[key] - self.plan.index * num_places
        try:
            for name, spec in self._specs.items():
                if name not in self._files:
                    self._files[name] = ShardFile(self._folder, shard_name(spec, self.plan.index), num_places,
                                                  spec.num_parts)
                self._files[name].append(place, arrays[name])
        except BaseException as error:
            self._broken = error
            raise
        for name, total in sums.items():
            self._statistics[name] = self._statistics[name].merge(total) if name in self._statistics else total
        self._meta[key] = dict(meta or {})

    def fail(self, key: str, reason: str) -> None:
        """Records that `key` could not be computed; its row stays empty."""
        self._claim(key)
        self._failures[key] = reason

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            for file in self._files.values():
                file.discard()

    def _claim(self, key: str) -> None:
        if self._broken is not None:
            raise self._broken
        if key not in self._rows or key in self._meta or key in self._failures:
            raise ValueError(f"{key!r} is not in the plan of this shard, or was written or failed before")

    def _checked(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, ChannelSums]:
        if set(arrays) != set(self._specs):
            raise ValueError(f"row {key!r} has arrays {sorted(arrays)}, {self.plan.table} has {sorted(self._specs)}")
        for name, spec in self._specs.items():
            if arrays[name].shape != spec.shape or arrays[name].dtype != spec.dtype:
                raise ValueError(f"{spec.path} of {key!r} is {arrays[name].dtype} {arrays[name].shape}, the store has "
                                 f"{spec.dtype} {spec.shape}")
        sums = {}
        for name, spec in self._specs.items():
            finite = spec.scale is None or np.isfinite(arrays[spec.scale]).all()
            if spec.statistics and finite:
                sums[name] = sums_of(spec, arrays)
                finite = sums[name].finite
            if not finite:
                raise StoreError(f"{spec.path} of {key!r} holds values that are infinite or not a number; look at "
                                 "that input, or use a wider precision")
        return sums

    def _commit(self) -> None:
        if self._broken is not None:
            raise self._broken
        left = [key for key in self._rows if key not in self._meta and key not in self._failures]
        if left:
            raise ValueError(f"{len(left)} keys of the shard were neither written nor failed: {left[:3]}")
        if not self._meta:
            return
        if not self._folder.exists("zarr.json"):
            raise StoreError(f"the store is no longer at {self._folder.location}: it was moved or removed during the "
                             "run; run the same refavs-extract command again with its new place")
        name = record_name(self.plan.table, self.plan.index)
        if self._folder.exists(name):  # written by a process that was considered dead
            old = read_record(self._folder, name, self._schema)
            if {*old.rows, *old.failures} != set(self._rows):
                raise StoreError(f"{self._folder.where(name)} has other keys than this run planned: another run wrote "
                                 "it; run the same refavs-extract command again")
            self.record = old
            return
        record = CommitRecord(
            table=self.plan.table, index=self.plan.index, rows={key: self._rows[key] for key in self._meta},
            meta=self._meta, arrays={name: file.finish() for name, file in self._files.items()},
            fingerprint=short_digest(self._table.fingerprint), statistics=self._statistics, failures=self._failures,
            seconds=time.monotonic() - self._started,
        )  # fmt: skip
        published: list[ShardFile] = []
        try:
            for file in self._files.values():
                file.publish()
                published.append(file)
            write_record(self._folder, record)
        except FileNotFoundError:
            raise  # another run swept the temporary files, and files of these names may now be its own
        except BaseException:
            if not self._folder.exists(name):
                for file in published:
                    self._folder.remove(file.name)
            raise
        self.record = record

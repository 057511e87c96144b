"""Writing one shard of a table: its rows into a file per array, then the commit record."""

import time
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from refavs.errors import StoreError
from refavs.store.backends.base import Folder
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import CommitRecord, encoder_digests, read_record, record_name, write_record
from refavs.store.format.schema import StoreSchema, text_key
from refavs.store.format.shard import ShardFile, shard_name
from refavs.store.plan import ShardPlan


class ShardWriter:
    """Writes the rows of one shard, row by row; use it as a context manager.

    Attributes:
        record: the commit record after a clean exit; None where no key succeeded, or where a key failed in a shard
            that only gains arrays, which both leave nothing behind.
    """

    def __init__(self, folder: Folder, schema: StoreSchema, plan: ShardPlan) -> None:
        self.plan = plan
        self.record: CommitRecord | None = None
        self._folder, self._schema = folder, schema
        self._specs = {spec.path: spec for spec in schema.tables[plan.table].arrays if spec.path in plan.arrays}
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
        """Appends the row of `key`; the bytes of the shard follow the order of the calls, so keep the plan's.

        Args:
            arrays: one row for each of `plan.paths_of(key)`, by path.
            meta: plain facts to keep of the key; those of a text must have its string as `text`. A shard that only
                gains arrays keeps those it has.

        Raises:
            StoreError: a value is infinite or not a number; nothing of the row was written, so `fail` can follow.
            ValueError: the arrays are not the plan's.
        """
        self._claim(key)
        meta = dict(meta or {})
        if self.plan.table == "text" and text_key(meta.get("text", "")) != key:
            raise ValueError(f"the row of text {key} must have the string it is the key of as meta['text']")
        sums = self._checked(key, arrays)
        num_places = self._schema.tables[self.plan.table].rows_per_shard
        place = self._rows[key] - self.plan.index * num_places
        try:
            for path in self.plan.paths_of(key):
                if path not in self._files:
                    name = shard_name(self._specs[path], self.plan.index)
                    self._files[path] = ShardFile(self._folder, name, num_places)
                self._files[path].append(place, arrays[path])
        except BaseException as error:
            self._broken = error
            raise
        for path, total in sums.items():
            self._statistics[path] = self._statistics[path].merge(total) if path in self._statistics else total
        self._meta[key] = meta

    def fail(self, key: str, reason: str) -> None:
        """Notes that `key` could not be computed; its row stays a hole."""
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
        paths = self.plan.paths_of(key)
        if set(arrays) != set(paths):
            raise ValueError(f"row {key!r} has arrays {sorted(arrays)}, the plan has {sorted(paths)}")
        for path in paths:
            spec = self._specs[path]
            if arrays[path].shape != spec.shape or arrays[path].dtype != spec.dtype:
                raise ValueError(f"{path} of {key!r} is {arrays[path].dtype} {arrays[path].shape}, the store has "
                                 f"{spec.dtype} {spec.shape}")
        sums = {}
        for path in paths:
            spec = self._specs[path]
            if spec.statistics:
                valid = arrays[spec.valid] if spec.valid else None
                sums[path] = ChannelSums.of(arrays[path], spec.axes.index("c"), valid)
                if not sums[path].finite:
                    raise StoreError(f"{path} of {key!r} holds values that are infinite or not a number; look at that "
                                     "input, or use a wider precision")
        return sums

    def _commit(self) -> None:
        if self._broken is not None:
            raise self._broken
        left = [key for key in self._rows if key not in self._meta and key not in self._failures]
        if left:
            raise ValueError(f"{len(left)} keys of the shard were neither written nor failed: {left[:3]}")
        if not self._meta or (self.plan.adds and self._failures):
            return
        if not self._folder.exists("zarr.json"):
            raise StoreError(f"the store is not at {self._folder.location} any more: it was moved or removed in "
                             "mid-run; run the same refavs-extract command again with the place where it is now")
        name = record_name(self.plan.table, self.plan.index)
        facts = {path: file.finish() for path, file in self._files.items()}
        old = read_record(self._folder, name, self._schema) if self._folder.exists(name) else None
        if old is None and self.plan.adds:
            raise StoreError(f"{self._folder.where(name)} is gone, to which this run adds arrays; run the same "
                             "refavs-extract command again")
        if old is not None:
            self._refuse_other_keys(old)
            if set(facts) <= set(old.arrays):  # a process that was thought dead has written them; they are the same
                self.record = old
                return
        record = self._record(old, facts)
        published: list[ShardFile] = []
        try:
            for file in self._files.values():
                file.publish()
                published.append(file)
            write_record(self._folder, record)
        except FileNotFoundError:
            raise  # another run has swept the temporary files, so what has their names now may be its own
        except BaseException:
            if not self._folder.exists(name):
                for file in published:
                    self._folder.remove(file.name)
            raise
        self.record = record

    def _record(self, old: CommitRecord | None, arrays: dict) -> CommitRecord:
        """What is committed: this shard, or the one that is there with the arrays it gains."""
        seconds = time.monotonic() - self._started
        if old is not None:
            every = old.arrays | arrays
            return replace(old, arrays=every, statistics=old.statistics | self._statistics,
                           encoders=encoder_digests(self._schema, every), seconds=old.seconds + seconds)  # fmt: skip
        return CommitRecord(
            table=self.plan.table, index=self.plan.index, rows={key: self._rows[key] for key in self._meta},
            meta=self._meta, arrays=arrays, encoders=encoder_digests(self._schema, arrays),
            statistics=self._statistics, failures=self._failures, seconds=seconds,
            shares={key: owners for key, owners in self.plan.shares.items() if key in self._meta},
        )  # fmt: skip

    def _refuse_other_keys(self, record: CommitRecord) -> None:
        known = {*record.rows, *record.failures}
        if not (known >= set(self._rows) if self.plan.adds else known == set(self._rows)):
            raise StoreError(f"{self._folder.where(record_name(record.table, record.index))} holds other keys than "
                             "this run planned: another one has written it; run the same refavs-extract command again")

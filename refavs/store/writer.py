"""Writing a store: plan the missing shards, write each whole, commit it.

A shard is written by one process in one go and is never changed afterwards. Missing keys, sorted, fill the shard
numbers that no commit record has taken, so an interrupted run plans the same keys into the same places, and keys that
come later open new shards. A key that failed leaves a hole in its shard and is tried again in a shard of its own.
"""

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from refavs.config import digest
from refavs.errors import StoreError
from refavs.store import columns
from refavs.store.commits import (
    CommitRecord,
    encoder_digests,
    read_record,
    read_records,
    record_path,
    store_fingerprint,
    write_record,
)
from refavs.store.files import sweep, write_if_changed
from refavs.store.schema import (
    ArraySpec,
    StoreSchema,
    TableSchema,
    array_metadata,
    group_metadata,
    refuse_foreign,
    root_attributes,
    text_key,
)
from refavs.store.shard import ShardFile, shard_path
from refavs.store.statistics import ChannelSums

EXPRESSION_COLUMNS = ("uid", "vid", "clip", "object", "text", "split", "fid", "grade", "dimension")
OTHER_STORE = "name another store, or remove this one and extract anew"


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One shard to compute: which keys belong to which rows."""

    table: str
    index: int
    keys: tuple[str, ...]
    rows: tuple[int, ...]


class StoreWriter:
    """Plans, writes and finishes a store; `open` in the process that plans, `attach` in those that write shards."""

    def __init__(self, path: Path, schema: StoreSchema) -> None:
        self.path, self.schema = path, schema

    @classmethod
    def open(
        cls, path: str | Path, *, encoders: Mapping[str, dict], source: str, num_frames: int, input_size: int,
        specs: Mapping[str, Sequence[ArraySpec]], rows_per_shard: Mapping[str, int],
    ) -> "StoreWriter":  # fmt: skip
        """Creates the store, or opens the one that is there and removes what interrupted writers left.

        An existing store keeps its own `source` and `rows_per_shard`, which do not change what its rows hold.

        Raises:
            StoreError: the folder holds something else, or a store of other encoders, arrays or sizes.
        """
        path = Path(path).absolute()
        wanted = StoreSchema.from_attributes(
            StoreSchema(
                encoders=dict(encoders), source=source, num_frames=num_frames, input_size=input_size,
                tables={name: TableSchema(rows_per_shard=rows_per_shard[name], arrays=tuple(arrays))
                        for name, arrays in specs.items()},
            ).to_attributes(), "the new store",
        )  # fmt: skip
        refuse_foreign(path)
        if (path / "zarr.json").is_file():
            schema = StoreSchema.from_attributes(root_attributes(path), f"store {path}")
            refuse_other(path, schema, wanted)
            wanted = schema
            sweep(path)
        else:
            if path.is_dir():
                sweep(path)
            write_if_changed(path / "zarr.json", group_metadata(wanted.to_attributes()))
        writer = cls(path, wanted)
        writer._describe_arrays()
        return writer

    @classmethod
    def attach(cls, path: str | Path) -> "StoreWriter":
        """Opens an existing store for `shard`, changing nothing."""
        path = Path(path).absolute()
        return cls(path, StoreSchema.from_attributes(root_attributes(path), f"store {path}"))

    def committed(self, table: str) -> dict[str, int]:
        """Row of every committed key."""
        return {key: row for record in read_records(self.path, self.schema, table) for key, row in record.rows.items()}

    def noted(self, table: str) -> dict[str, dict]:
        """What was noted of every committed key, e.g. that a clip is silent."""
        records = read_records(self.path, self.schema, table)
        return {key: facts for record in records for key, facts in record.meta.items()}

    def plan(self, table: str, keys: Iterable[str]) -> list[ShardPlan]:
        """Shards that compute those of `keys` that are not committed, and room for them in the arrays.

        Raises:
            StoreError: a key is not valid Unicode.
        """
        records = read_records(self.path, self.schema, table)
        done = {key for record in records for key in record.rows}
        failed = {key for record in records for key in record.failures}
        missing = sorted(set(keys) - done)
        columns.encode_strings(missing, f"keys of {table}")
        size = self.schema.tables[table].rows_per_shard
        parts = [key for key in missing if key not in failed], [key for key in missing if key in failed]
        groups = [tuple(part[start : start + size]) for part in parts for start in range(0, len(part), size)]
        taken = {record.index for record in records}
        free = (index for index in itertools.count() if index not in taken)
        plans = [
            ShardPlan(table=table, index=index, keys=group, rows=tuple(range(index * size, index * size + len(group))))
            for index, group in zip(free, groups, strict=False)
        ]
        if plans:
            # Without a fingerprint until `finalise`, so that the store says it is not finished.
            write_if_changed(self.path / "zarr.json", group_metadata(self.schema.to_attributes()))
            rows = max(_num_rows(records), *(plan.rows[-1] + 1 for plan in plans), 0)
            self._describe_table(table, rows, {})
        return plans

    def shard(self, plan: ShardPlan) -> "ShardWriter":
        """A context in which the rows of `plan` are written; leaving it without an error commits them."""
        return ShardWriter(self.path, self.schema, plan)

    def write_expressions(self, table: pd.DataFrame) -> None:
        """Replaces the table of expressions, one row each, unless it is the same already.

        Args:
            table: columns `EXPRESSION_COLUMNS`, where clip, object (-1 for none) and text are committed rows; further
                columns are kept.

        Raises:
            StoreError: a column is missing, or a row does not exist.
        """
        missing = [name for name in EXPRESSION_COLUMNS if name not in table.columns]
        if missing:
            raise StoreError(f"the expressions lack {', '.join(missing)}; needed: {', '.join(EXPRESSION_COLUMNS)}")
        for column, name in (("clip", "clips"), ("object", "objects"), ("text", "text")):
            rows = set(self.committed(name).values()) if name in self.schema.tables else set()
            unknown = sorted(set(table[column].tolist()) - rows - ({-1} if column == "object" else set()))
            if unknown:
                raise StoreError(f"the expressions name row {unknown[0]} of {name}, which is not committed; leave out "
                                 "the expressions of clips that failed")
        columns.write_expressions(self.path, table)

    def finalise(self) -> str:
        """Writes what readers without this code want (row names, statistics, lengths); returns the fingerprint."""
        for name in self.schema.tables:
            records = read_records(self.path, self.schema, name)
            sums = merged_statistics(records)
            attributes = {}
            for path, total in sums.items():
                mean, std = total.moments()
                attributes[path] = {"statistics": {"mean": mean.tolist(), "std": std.tolist()}}
            self._describe_table(name, _num_rows(records), attributes)
            self._write_names(name, records)
        expressions = columns.read_expressions(self.path)
        every = read_records(self.path, self.schema)
        fingerprint = store_fingerprint(self.schema, every, expressions and expressions[1])
        root = self.schema.to_attributes() | {"fingerprint": fingerprint}
        write_if_changed(self.path / "zarr.json", group_metadata(root))
        return fingerprint

    def _write_names(self, table: str, records: list[CommitRecord]) -> None:
        """`clips/id`, `objects/{clip,fid}` and `text/string`, empty where a row is a hole."""
        keys, metas = [""] * _num_rows(records), [{}] * _num_rows(records)
        for record in records:
            for key, row in record.rows.items():
                keys[row], metas[row] = key, record.meta[key]
        if table == "clips":
            frame = {"id": keys}
        elif table == "objects":
            pairs = [key.rsplit("/", 1) if key else ["", "-1"] for key in keys]
            clips = self.committed("clips") if "clips" in self.schema.tables else {}
            frame = {"clip": [clips.get(clip, -1) for clip, _ in pairs], "fid": [int(fid) for _, fid in pairs]}
        else:
            frame = {"string": [meta.get("text", "") for meta in metas]}
        columns.write_columns(self.path / table, *columns.from_frame(pd.DataFrame(frame)))

    def _describe_arrays(self) -> None:
        for table in self.schema.tables.values():
            for spec in table.arrays:
                if not (self.path / spec.path / "zarr.json").is_file():
                    self._describe(spec, 0, {})

    def _describe_table(self, table: str, num_rows: int, attributes: Mapping[str, dict]) -> None:
        for spec in self.schema.tables[table].arrays:
            self._describe(spec, num_rows, attributes.get(spec.path, {}))

    def _describe(self, spec: ArraySpec, num_rows: int, attributes: dict[str, Any]) -> None:
        folder = self.path / spec.path
        for group in reversed(folder.relative_to(self.path).parents):
            if group != Path("."):
                write_if_changed(self.path / group / "zarr.json", group_metadata())
        size = self.schema.tables[spec.table].rows_per_shard
        write_if_changed(folder / "zarr.json", array_metadata(spec, size, num_rows, attributes))


class ShardWriter:
    """Writes the rows of one shard, row by row; use it as a context manager.

    Attributes:
        record: the commit record after a clean exit; None where no key succeeded, which leaves nothing behind.
    """

    def __init__(self, root: Path, schema: StoreSchema, plan: ShardPlan) -> None:
        self.plan = plan
        self.record: CommitRecord | None = None
        self._root, self._schema = root, schema
        self._specs = {spec.path: spec for spec in schema.tables[plan.table].arrays}
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
            arrays: one row for each array of the table, by path.
            meta: plain facts to keep of the key; those of a text must have its string as `text`.

        Raises:
            StoreError: a value is infinite or not a number; nothing of the row was written, so `fail` can follow.
            ValueError: the arrays are not the table's.
        """
        self._claim(key)
        meta = dict(meta or {})
        if self.plan.table == "text" and text_key(meta.get("text", "")) != key:
            raise ValueError(f"the row of text {key} must have the string it is the key of as meta['text']")
        sums = self._checked(key, arrays)
        place = self._rows[key] - self.plan.index * self._schema.tables[self.plan.table].rows_per_shard
        try:
            for path, spec in self._specs.items():
                if path not in self._files:
                    self._files[path] = ShardFile(shard_path(self._root, spec, self.plan.index), self._num_places)
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

    @property
    def _num_places(self) -> int:
        return self._schema.tables[self.plan.table].rows_per_shard

    def _claim(self, key: str) -> None:
        if self._broken is not None:
            raise self._broken
        if key not in self._rows or key in self._meta or key in self._failures:
            raise ValueError(f"{key!r} is not in the plan of this shard, or was written or failed before")

    def _checked(self, key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, ChannelSums]:
        if set(arrays) != set(self._specs):
            raise ValueError(f"row {key!r} has arrays {sorted(arrays)}, the table has {sorted(self._specs)}")
        for path, spec in self._specs.items():
            if arrays[path].shape != spec.shape or arrays[path].dtype != spec.dtype:
                raise ValueError(f"{path} of {key!r} is {arrays[path].dtype} {arrays[path].shape}, the store has "
                                 f"{spec.dtype} {spec.shape}")
        sums = {}
        for path, spec in self._specs.items():
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
        if not self._meta:
            return
        target = record_path(self._root, self.plan.table, self.plan.index)
        facts = {path: file.finish() for path, file in self._files.items()}
        if target.is_file():  # a process that was thought dead has committed this shard; its rows are the same
            self.record = read_record(target, self._schema)
            if {*self.record.rows, *self.record.failures} != set(self._rows):
                raise StoreError(f"{target} holds other keys than this run planned: another one has written it; "
                                 "run the same refavs-extract command again")
            return
        record = CommitRecord(
            table=self.plan.table, index=self.plan.index, rows={key: self._rows[key] for key in self._meta},
            meta=self._meta, arrays=facts, encoders=encoder_digests(self._schema), statistics=self._statistics,
            failures=self._failures, seconds=time.monotonic() - self._started,
        )  # fmt: skip
        try:
            for file in self._files.values():
                file.publish()
            write_record(self._root, record)
        except BaseException:
            if not target.is_file():
                for file in self._files.values():
                    file.path.unlink(missing_ok=True)
            raise
        self.record = record


def merged_statistics(records: Iterable[CommitRecord]) -> dict[str, ChannelSums]:
    """Sums over all rows, by array path."""
    by_path: dict[str, list[ChannelSums]] = {}
    for record in records:
        for path, sums in record.statistics.items():
            by_path.setdefault(path, []).append(sums)
    return {path: reduce(ChannelSums.merge, parts) for path, parts in by_path.items()}


def refuse_other(path: Path, found: StoreSchema, wanted: StoreSchema) -> None:
    """Checks that a run that wants one schema may write into a store that has another.

    Raises:
        StoreError: the encoders, arrays or sizes differ; both are named.
    """
    streams = sorted(set(found.encoders) | set(wanted.encoders))
    for stream in streams:
        old, new = found.encoders.get(stream), wanted.encoders.get(stream)
        if old != new:
            raise StoreError(f"store {path} holds {stream} {_named(old, new)}, this run makes {_named(new, old)}; "
                             f"{OTHER_STORE}")
    if found.layout_digest() != wanted.layout_digest():
        raise StoreError(f"store {path} has layout {_layout(found, wanted)}, this run makes {_layout(wanted, found)}; "
                         f"{OTHER_STORE}")


def _named(fingerprint: dict | None, other: dict | None) -> str:
    """A fingerprint by name and digest, with the facts in which it differs from the other one."""
    if fingerprint is None:
        return "nothing"
    facts = [f"{key}={fingerprint.get(key)}" for key in sorted({*fingerprint, *(other or {})})
             if other is not None and fingerprint.get(key) != other.get(key)]  # fmt: skip
    name = f"{fingerprint.get('name', 'encoder')}@{digest(fingerprint)[:8]}"
    return f"{name} ({', '.join(facts)})" if facts else name


def _layout(schema: StoreSchema, other: StoreSchema) -> str:
    facts = [f"{path} {spec.dtype} {spec.shape}" for path, spec in schema.specs.items()
             if other.specs.get(path) != spec]  # fmt: skip
    sizes = f"{schema.num_frames} frames of {schema.input_size} px"
    return f"{schema.layout_digest()[:8]} ({', '.join([sizes, *facts])})"


def _num_rows(records: Iterable[CommitRecord]) -> int:
    return max((row + 1 for record in records for row in record.rows.values()), default=0)

"""Rewrites a store: without some clips, or in whole shards. Rows are copied as they are stored.

An interrupted copy is completed by the same call. The store's fingerprint covers its shards and changes. A copy that
leaves nothing out keeps the places of clips, texts and objects, and so the keys of trials.
"""

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from refavs.config import digest, nearest
from refavs.errors import ConfigError, StoreError
from refavs.store.backends.base import LocalFolder
from refavs.store.contents import TAGS
from refavs.store.folders import open_folder
from refavs.store.format.schema import OBJECTS, StoreSchema
from refavs.store.plan import ShardPlan
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter

MARK = "rewrite.txt"  # in a copy that is not complete
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """The planned content of a copy.

    Attributes:
        source: fingerprint of the original.
        whole: whether nothing is left out.
        schema: of the copy.
        keys: of each table, in the order of their rows.
        clips, texts, expressions: the plain tables without what is left out; expressions still refer to rows of the
            original.
    """

    source: str
    whole: bool
    schema: StoreSchema
    keys: dict[str, list[str]]
    clips: pd.DataFrame
    texts: pd.DataFrame | None
    expressions: pd.DataFrame | None

    @property
    def mark(self) -> bytes:
        """Identifies the copy, so that only the same one is completed."""
        return digest([self.source, self.schema.to_attributes(), self.keys, self.clips["id"].tolist()]).encode()

    def num_shards(self, store: FeatureStore) -> dict[str, int]:
        """Shards of each table; expressions refer to the rows of objects, which move only if some are left out."""
        size = {name: table.rows_per_shard for name, table in self.schema.tables.items()}
        found = {name: -(-len(keys) // size[name]) for name, keys in self.keys.items()}
        return {**found, OBJECTS: shards_before(store)[OBJECTS]} if self.whole else found


def planned(store: FeatureStore, leave_out: Collection[str] = (), clips_per_shard: int | None = None) -> Rewriting:
    """Plans a copy; reads no features.

    Args:
        leave_out: ids of clips.
        clips_per_shard: for the streams of clips; None keeps theirs.

    Raises:
        ConfigError: the store has no such clip, or no other one.
        StoreError: the store is not finished.
    """
    if not store.finished:
        raise StoreError(f"the extraction into {store.location} is not finished; run the same refavs-extract command "
                         "again")  # fmt: skip
    old = StoreWriter.attach(store.location)
    tables = {name: old.table(name) for name in ("clips", "text", "expressions")}
    clips, texts, expressions = tables["clips"], tables["text"], tables["expressions"]
    assert clips is not None
    for name in leave_out:
        if name not in set(clips["id"]):
            raise ConfigError(f"store {store.location} has no clip {name!r}; {nearest(name, clips['id'].tolist())}")
    gone = clips["id"].isin(list(leave_out))
    if gone.all():
        raise ConfigError(f"{store.location} would have no clip left; remove the folder instead")
    if expressions is not None:
        expressions = expressions[~expressions["clip"].map(gone.to_numpy().__getitem__).astype(bool)]
        if texts is not None and gone.any():
            texts = texts.iloc[sorted(set(expressions["text"]))]
    kept = clips[~gone]
    wanted = {
        "visual": set(kept["frames"]), "audio": set(kept["sound"]),
        "text": set() if texts is None else set(texts["key"]), OBJECTS: set(kept["id"]),
    }  # fmt: skip
    keys = {
        name: [key for key, _ in sorted(old.committed(name).items(), key=lambda item: item[1])
               if (key.rpartition("/")[0] if name == OBJECTS else key) in wanted[name.split("/")[0]]]
        for name in old.schema.tables
    }  # fmt: skip
    streams = {
        name: stream if clips_per_shard is None or name.startswith("text/")
        else replace(stream, rows_per_shard=clips_per_shard) for name, stream in old.schema.streams.items()
    }  # fmt: skip
    return Rewriting(
        source=store.fingerprint, whole=not gone.any(), schema=replace(old.schema, streams=streams), keys=keys,
        clips=kept, texts=texts, expressions=expressions,
    )


def copied(store: FeatureStore, plan: Rewriting, out: str, progress: Progress) -> str:
    """Writes the copy, or completes it; returns its fingerprint.

    Args:
        progress: called after each row with its table.

    Raises:
        StoreError: a row of the original is damaged, or `out` is another store.
    """
    if not is_same(out, plan):
        raise StoreError(f"{out} holds another store; name a new place, or remove it")
    schema = plan.schema
    writer = StoreWriter.open(out, schema)
    writer.folder.write(MARK, plan.mark)
    for table, keys in plan.keys.items():
        size, specs = schema.tables[table].rows_per_shard, schema.tables[table].arrays
        rows = {key: row for record in store.records if record.table == table for key, row in record.rows.items()}
        notes = {key: facts for record in store.records if record.table == table for key, facts in record.meta.items()}
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        same = _same_places(store, writer) if table == OBJECTS and plan.whole else None
        for shard_plan in writer.plan(table, groups) if same is None else same:
            if shard_plan is not None:
                with writer.shard(shard_plan) as shard:
                    for key in shard_plan.keys:
                        arrays = {spec.name: store.read(spec.path, rows[key]).numpy() for spec in specs}
                        shard.write(key, arrays, notes.get(key))
                        progress(table)
    _copy_tables(store, plan, writer)
    for name in store.folder.names(TAGS):
        writer.folder.write(name, store.folder.read(name))
    fingerprint = writer.finalise()
    writer.folder.remove(MARK)
    return fingerprint


def is_same(out: str, plan: Rewriting) -> bool:
    """Whether there is no store at `out`, or this copy of an interrupted call."""
    folder = open_folder(out)
    return not folder.exists("zarr.json") or (folder.exists(MARK) and folder.read(MARK) == plan.mark)


def _same_places(store: FeatureStore, writer: StoreWriter) -> list[ShardPlan]:
    """The missing shards of objects with the rows that they have in the original."""
    done = {record.index for record in writer.records(OBJECTS)}
    found = []
    for record in store.records:
        if record.table == OBJECTS and record.index not in done:
            keys = sorted(record.rows, key=lambda key: record.rows[key])
            rows = tuple(record.rows[key] for key in keys)
            found.append(ShardPlan(table=OBJECTS, index=record.index, keys=tuple(keys), rows=rows))
    return found


def _copy_tables(store: FeatureStore, plan: Rewriting, writer: StoreWriter) -> None:
    clips = writer.write_clips(plan.clips)
    texts = {} if plan.texts is None else writer.write_texts(plan.texts)
    if plan.expressions is None:
        return
    old = StoreWriter.attach(store.location)
    before, of_texts = old.table("clips"), old.table("text")
    assert before is not None and of_texts is not None
    key_of = {row: key for key, row in old.committed(OBJECTS).items()}
    objects = writer.committed(OBJECTS)
    writer.write_expressions(plan.expressions.assign(
        clip=[clips[before["id"].iloc[place]] for place in plan.expressions["clip"]],
        text=[texts[of_texts["key"].iloc[place]] for place in plan.expressions["text"]],
        object=[-1 if row < 0 else objects[key_of[row]] for row in plan.expressions["object"]],
    ).reset_index(drop=True))  # fmt: skip


def exchange(location: str, copy: Path) -> None:
    """Puts a complete copy in the place of a local store, and removes the original.

    Between the two renames there is no store at `location`; `mend` completes an exchange that was interrupted there.
    """
    place = Path(location)
    os.rename(place, _aside(place))
    os.rename(copy, place)
    shutil.rmtree(_aside(place))


def mend(location: str) -> None:
    """Completes an exchange of local stores that was interrupted."""
    place = Path(location)
    if "://" not in location and _aside(place).is_dir():
        if not place.exists() and (copy := copy_of(location)).is_dir():
            os.rename(copy, place)
        if place.exists():
            shutil.rmtree(_aside(place))


def copy_of(location: str) -> Path:
    """Where the copy of a local store is made, on the same disk.

    Raises:
        ConfigError: the store is not local.
    """
    if "://" in location or not isinstance(open_folder(location), LocalFolder):
        raise ConfigError(f"{location} is not a folder here; name a place for the new store by --out")
    place = Path(location).absolute()
    return place.with_name(f".{place.name}.rewrite")


def _aside(place: Path) -> Path:
    place = place.absolute()
    return place.with_name(f".{place.name}.before")


def shards_before(store: FeatureStore) -> dict[str, int]:
    """Shards of each table of a store."""
    found = dict.fromkeys(store.schema.tables, 0)
    for record in store.records:
        found[record.table] += 1
    return found


def is_needless(store: FeatureStore, plan: Rewriting) -> bool:
    """Whether the copy would equal the store."""
    same = plan.schema == store.schema
    full = shards_before(store) == plan.num_shards(store)
    rows = {name: sum(len(record.rows) for record in store.records if record.table == name) for name in plan.keys}
    return same and full and rows == {name: len(keys) for name, keys in plan.keys.items()}

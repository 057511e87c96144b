"""Plans an extraction: the units that a source needs in a store, and the jobs that compute missing ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool

from extract.encoders.streams import StreamSet
from extract.media.clip import frame_size
from extract.pipeline.content import Content
from refavs.choices import MaskRule
from refavs.data.layouts import Clip, Object, Source
from refavs.data.layouts.protocol import Mask
from refavs.data.masks import read_masks
from refavs.errors import DatasetError
from refavs.steps import Steps
from refavs.store.format.schema import OBJECTS, object_key, text_key
from refavs.store.plan import ShardPlan
from refavs.store.writer import StoreWriter

Kind = Literal["clips", "text", "objects"]
# Clips take longest, so they go first and the short rest fills the gaps at the end.
ORDER: tuple[Kind, ...] = ("clips", "text", "objects")
Plan = Callable[[str, Sequence[Sequence[str]]], Sequence[ShardPlan | None]]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Masks:
    """One object, the clip whose frames its masks belong to, and the rule by which they are read."""

    object: Object
    clip: Clip
    rule: MaskRule = "auto"

    def read(self, steps: Steps, side: int | None) -> Bool[np.ndarray, "t h w"]:
        """The masks, `side` pixels high and wide, or at the size of their files; empty in steps without one.

        Raises:
            DatasetError: a file is missing, cannot be read, or may be meant in two ways; or a null has an object.
        """
        masks, own = self.of(steps), self.size() if side is None else (side, side)
        found = np.zeros((len(steps), *own), np.bool_)
        if masks:
            found[list(masks)] = read_masks(
                list(masks.values()), own, own if side is None else frame_size(self.clip), self.rule, self.object.root
            )
        if self.object.null and found.any():
            raise DatasetError(f"object {self.object.fid} of clip {self.object.clip_id!r} refers to nothing, and its "
                               f"masks ({next(iter(masks.values()))}, ...) mark one; remove them, or rename the clip")
        return found

    def size(self) -> tuple[int, int]:
        """Height and width of the frames, or else of the first mask; (1, 1) without any.

        Raises:
            DatasetError: that file is missing or cannot be read.
        """
        masks = [self.object.masks[place] for place in sorted(self.object.masks)[:1]]
        found = frame_size(self.clip)
        if found is not None or not masks:
            return found or (1, 1)
        _, height, width = read_masks(masks, rule=self.rule, root=self.object.root).shape
        return height, width

    def of(self, steps: Steps) -> dict[int, Mask]:
        """The masks of the labelled steps; a mask whose time is that of no step is left out."""
        masks = self.object.masks
        return {step: masks[place] for step, place in enumerate(steps.places(self.clip.fps))
                if place is not None and place in masks}  # fmt: skip

    def paths(self, steps: Steps) -> list[Path]:
        """The masks that are files."""
        return [mask for mask in self.of(steps).values() if isinstance(mask, Path)]

    def labelled(self, steps: Steps) -> Bool[np.ndarray, " t"]:
        """The labelled steps, of a null all; none after the end of the clip."""
        found = np.zeros(len(steps), np.bool_)
        found[range(len(steps)) if self.object.null else list(self.of(steps))] = True
        if self.clip.frames:
            found[len(self.clip.pictures(steps)) :] = False
        return found


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One clip, object or text.

    Attributes:
        name: id of the clip, key of the object, or the text; names it in messages.
        keys: its key in each table, a stream or `objects`, in which it has a row.
    """

    name: str
    item: Clip | Masks | str
    keys: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some units to compute, and one shard of each table to write; small enough to be sent to any node."""

    kind: Kind
    units: tuple[Unit, ...]
    shards: tuple[ShardPlan, ...]

    @property
    def names(self) -> list[str]:
        """The units by name."""
        return [unit.name for unit in self.units]


def wanted_units(
    source: Source, streams: StreamSet, contents: Mapping[str, Content], mask_rule: MaskRule = "auto"
) -> dict[Kind, list[Unit]]:
    """All units that a source needs in a store.

    Args:
        contents: content keys of the clips that can be read; the others are left out.
    """
    of_clips = {id: id.split("/")[0] for id in streams.of("visual", "audio")}
    return {
        "clips": [
            Unit(name=clip.id, item=clip,
                 keys={id: contents[clip.id].key(modality) for id, modality in of_clips.items()})
            for clip in source.clips if clip.id in contents
        ],
        "text": [
            Unit(name=text, item=text, keys=dict.fromkeys(streams.of("text"), text_key(text)))
            for text in dict.fromkeys(source.expressions["text"])
        ],
        "objects": object_units(source, mask_rule),
    }  # fmt: skip


def object_units(source: Source, mask_rule: MaskRule) -> list[Unit]:
    """The objects of a source."""
    clips = {clip.id: clip for clip in source.clips}
    items = {object_key(one.clip_id, one.fid): Masks(object=one, clip=clips[one.clip_id], rule=mask_rule)
             for one in source.objects}  # fmt: skip
    return [Unit(name=key, item=item, keys={OBJECTS: key}) for key, item in items.items()]


def plan_jobs(
    writer: StoreWriter, wanted: Mapping[Kind, Sequence[Unit]], plan: Plan | None = None, refill: bool = False
) -> list[Job]:
    """The jobs that compute what is missing, in the order in which to start them.

    A job has as many units as the smallest of its shards has rows. It writes a row where a key occurs first, in the
    order of the units, so that an interrupted run continues with the same places. Keys that failed before are in jobs
    of their own, at the end.

    Args:
        plan: finds the shards; None makes room for them in the store.
        refill: group all units as for an empty store, so that shards that were removed get the rows that they had,
            instead of the units that miss something, which fills as few shards as possible.
    """
    return [job for kind in ORDER for job in _jobs(writer, kind, wanted[kind], plan or writer.plan, refill)]


def _jobs(writer: StoreWriter, kind: Kind, units: Sequence[Unit], plan: Plan, refill: bool) -> Iterator[Job]:
    tables = list(units[0].keys) if units else []
    if not tables:
        return
    # The keys of each table that are not in a job yet.
    unclaimed = {table: {unit.keys[table] for unit in units} for table in tables}
    missing = {table: set(writer.missing(table, list(keys))) for table, keys in unclaimed.items()}
    failed = {table: writer.failed(table).keys() for table in tables}
    claimed = []  # each with the keys that occur first in it
    for unit in units:
        keys = {table: key for table, key in unit.keys.items() if key in unclaimed[table]}
        for table, key in keys.items():
            unclaimed[table].discard(key)
        claimed.append(replace(unit, keys=keys))

    def lacking(units: Sequence[Unit], again: bool) -> list[Unit]:
        return [replace(unit, keys=keys) for unit in units if (keys := {
            table: key for table, key in unit.keys.items() if key in missing[table] and (key in failed[table]) == again
        })]  # fmt: skip

    size = min(writer.schema.tables[table].rows_per_shard for table in tables)
    fresh = ([lacking(group, False) for group in _chunks([unit for unit in claimed if unit.keys], size)] if refill
             else _chunks(lacking(claimed, False), size))  # fmt: skip
    groups = [group for group in (*fresh, *_chunks(lacking(claimed, True), size)) if group]
    plans = [plan(table, [[unit.keys[table] for unit in group if table in unit.keys] for group in groups])
             for table in tables]  # fmt: skip
    for group, *shards in zip(groups, *plans, strict=True):
        yield Job(kind=kind, units=tuple(group), shards=tuple(shard for shard in shards if shard is not None))


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

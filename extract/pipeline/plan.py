"""What there is to extract from a source, and what of it is missing in a store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from extract.encoders.presets import Encoders, Preset
from extract.media.clip import frame_size
from extract.pipeline.dedup import AUDIO_INPUT, INPUTS, VISUAL_INPUT, digests_of, shared_inputs
from refavs.choices import MaskRule
from refavs.data.layouts import Clip, Object, Source
from refavs.data.layouts.protocol import Mask
from refavs.data.masks import read_masks
from refavs.errors import DatasetError, StoreError
from refavs.store.format.commits import REMEDY, record_name
from refavs.store.format.schema import ArraySpec, object_key, text_key
from refavs.store.plan import ShardPlan, Shares
from refavs.store.writer import StoreWriter

# Clips take longest, so they go first and the short rest fills the gaps at the end.
ORDER = ("clips", "text", "objects")
MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Masks:
    """One object, the clip whose frames its masks belong to, and the rule by which they are read."""

    object: Object
    clip: Clip
    rule: MaskRule = "auto"

    def read(self, num_frames: int, size: int) -> Bool[np.ndarray, "t h w"]:
        """The masks, `size` pixels high and wide; empty in seconds without one.

        Raises:
            DatasetError: a file is missing, cannot be read, or may be meant in two ways; or a null has an object.
        """
        found = np.zeros((num_frames, size, size), np.bool_)
        masks = self.of(num_frames)
        if masks:
            found[list(masks)] = read_masks(
                list(masks.values()), (size, size), frame_size(self.clip), self.rule, self.object.root
            )
        if self.object.null and found.any():
            raise DatasetError(f"object {self.object.fid} of clip {self.object.clip_id!r} refers to nothing, and its "
                               f"masks ({next(iter(masks.values()))}, ...) mark one; remove them, or rename the clip")
        return found

    def of(self, num_frames: int) -> dict[int, Mask]:
        """Where the masks of the first seconds are, as far as these are labelled."""
        return {second: mask for second, mask in sorted(self.object.masks.items()) if second < num_frames}

    def paths(self, num_frames: int) -> list[Path]:
        """Those of them that are files."""
        return [mask for mask in self.of(num_frames).values() if isinstance(mask, Path)]


Item = Clip | Masks | str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to compute; small enough to be sent to any node."""

    shard: ShardPlan
    items: tuple[Item, ...]


def wanted_items(source: Source, mask_rule: MaskRule = "auto") -> dict[str, dict[str, Item]]:
    """Everything a source needs in a store, by table and key."""
    clips = {clip.id: clip for clip in source.clips}
    objects = {
        object_key(one.clip_id, one.fid): Masks(object=one, clip=clips[one.clip_id], rule=mask_rule)
        for one in source.objects
    }
    texts = {text_key(text): text for text in source.expressions["text"]}
    return {"clips": dict(clips), "objects": dict(objects), "text": dict(texts)}


def array_specs(preset: Preset, encoders: Encoders) -> dict[str, list[ArraySpec]]:
    """The arrays of each table."""
    size, frames = preset.input_size, preset.num_frames
    masks = ArraySpec(path="objects/mask", shape=(frames, size, -(-size // 8)), dtype="uint8", axes=("t", "h", "bytes"))
    return {
        "clips": [*encoders.visual.specs(), *encoders.audio.specs()],
        "objects": [masks],
        "text": list(encoders.text.specs()),
    }


def shares_of(writer: StoreWriter, clips: Iterable[Clip]) -> dict[str, dict[str, str]]:
    """Clips that the store lacks and whose features are those of another clip; see `shared_inputs`."""
    return shared_inputs(clips, writer.schema.num_frames, writer.noted("clips"), writer.shared("clips"))


def plan_jobs(
    writer: StoreWriter, wanted: Mapping[str, Mapping[str, Item]], shares: Shares | None = None
) -> list[Job]:
    """The missing shards, in the order in which to start them.

    Args:
        writer: the store, held by this process.
        wanted: items by table and key.
        shares: of clips, as `shares_of` finds them.
    """
    return [
        Job(shard=shard, items=tuple(wanted[table][key] for key in shard.keys))
        for table in ORDER for shard in writer.plan(table, wanted[table], shares if table == "clips" else None)
    ]


def refuse_replaced(writer: StoreWriter, clips: Iterable[Clip]) -> None:
    """Checks that the clips a store has already were made from the same files as those of their ids now.

    Clips whose files are gone, or that were stored without a digest of them, are taken as they are. A clip that others
    of the store wait for, to share its features, must have the files that made them alike.

    Raises:
        StoreError: other files; the first clips are named.
    """
    noted = writer.noted("clips")
    known = {key: {name: facts[name] for name in (VISUAL_INPUT, AUDIO_INPUT)}
             for key, facts in noted.items() if VISUAL_INPUT in facts}  # fmt: skip
    awaited = {owner: (key, start, record_name(record.table, record.index))
               for record in writer.records("clips") for key, owners in record.shares.items() if key in known
               for start, owner in owners.items() if owner not in known}  # fmt: skip
    wanted = known.keys() | awaited.keys()
    found = digests_of([clip for clip in clips if clip.id in wanted], writer.schema.num_frames)
    for owner in sorted(found.keys() & awaited.keys()):
        key, start, file = awaited[owner]
        if any(found[owner][name] != known[key][name] for name in INPUTS[start]):
            raise StoreError(f"clip {key!r} of store {writer.location} was to share the features of {owner!r}, whose "
                             f"files are others by now; as to {writer.folder.where(file)}: {REMEDY}")
    replaced = [key for key, digests in found.items() if key in known and digests != known[key]]
    if replaced:
        more = f" and {len(replaced) - MOST_NAMED} more" if len(replaced) > MOST_NAMED else ""
        raise StoreError(f"store {writer.location} holds features of other files under the same id for "
                         f"{', '.join(map(repr, replaced[:MOST_NAMED]))}{more}; name another STORE, or rename those "
                         "clips")


def expressions_table(source: Source, rows: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """The source's expressions with the rows of what they speak of; those of clips or objects that failed left out.

    Args:
        source: where the expressions come from.
        rows: row of every committed key, by table.
    """
    table = source.expressions.copy()
    keys = [object_key(clip, fid) for clip, fid in zip(table["clip_id"], table["fid"], strict=True)]
    table["clip"] = [float(rows["clips"].get(clip, np.nan)) for clip in table["clip_id"]]
    table["object"] = [-1.0 if fid < 0 else float(rows["objects"].get(key, np.nan))
                       for key, fid in zip(keys, table["fid"], strict=True)]  # fmt: skip
    table["text"] = [float(rows["text"].get(text_key(text), np.nan)) for text in table["text"]]
    table = table.dropna(subset=["clip", "object", "text"]).drop(columns="clip_id")
    return table.astype({"clip": "int64", "object": "int64", "text": "int64"}).reset_index(drop=True)

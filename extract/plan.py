"""What there is to extract from a source, what of it is missing in a store, and what the rest would cost."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from extract.media import SAMPLE_RATE_HZ, input_digest, read_media
from extract.presets import Encoders, Preset
from refavs.data.bench import Clip, Source
from refavs.errors import DatasetError, StoreError
from refavs.store.schema import ArraySpec, object_key, text_key
from refavs.store.writer import ShardPlan, StoreWriter

# Clips take longest, so they go first and the short rest fills the gaps at the end.
ORDER = ("clips", "text", "objects")
MOST_NAMED = 5
START_S = 12.0  # Ray, and imports and weights in each worker


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Where the masks of one object lie, and the clip whose frames they belong to."""

    folder: Path
    clip: Clip


Item = Clip | Masks | str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to compute; small enough to be sent to any node."""

    shard: ShardPlan
    items: tuple[Item, ...]


def wanted_items(source: Source) -> dict[str, dict[str, Item]]:
    """Everything a source needs in a store, by table and key."""
    clips = {clip.id: clip for clip in source.clips}
    objects = {
        object_key(row["clip_id"], row["fid"]): Masks(folder=row["folder"], clip=clips[row["clip_id"]])
        for row in source.objects.to_dict("records")
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


def plan_jobs(writer: StoreWriter, wanted: Mapping[str, Mapping[str, Item]]) -> list[Job]:
    """The missing shards, in the order in which to start them."""
    return [
        Job(shard=shard, items=tuple(wanted[table][key] for key in shard.keys))
        for table in ORDER for shard in writer.plan(table, wanted[table])
    ]


def refuse_replaced(writer: StoreWriter, clips: Iterable[Clip]) -> None:
    """Checks that the clips a store has already were made from the same files as those of their ids now.

    Clips whose files are gone, or that were stored without a digest of them, are taken as they are.

    Raises:
        StoreError: other files; the first clips are named.
    """
    known = {key: facts["input"] for key, facts in writer.noted("clips").items() if "input" in facts}
    replaced = [clip.id for clip in clips if clip.id in known and _changed(clip, known[clip.id], writer)]
    if replaced:
        more = f" and {len(replaced) - MOST_NAMED} more" if len(replaced) > MOST_NAMED else ""
        raise StoreError(f"store {writer.location} holds features of other files under the same id for "
                         f"{', '.join(map(repr, replaced[:MOST_NAMED]))}{more}; name another STORE, or rename those "
                         "clips")


def _changed(clip: Clip, known: str, writer: StoreWriter) -> bool:
    try:
        return input_digest(clip, writer.schema.num_frames) != known
    except DatasetError:
        return False


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


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would do, for `--dry-run`."""

    missing: dict[str, int]
    shards: dict[str, int]
    num_bytes: int
    seconds: float


def estimate(
    preset: Preset, encoders: Encoders, specs: Mapping[str, list[ArraySpec]], missing: Mapping[str, Mapping[str, Item]],
    num_workers: int,
) -> Estimate:
    """Counts what is missing, and times the encoders on one clip and one text of this machine."""
    counts = {table: len(items) for table, items in missing.items()}
    shards = {table: math.ceil(count / preset.rows_per_shard[table]) for table, count in counts.items()}
    num_bytes = sum(counts[table] * spec.row_bytes for table in counts for spec in specs[table])
    work_s = 0.0
    if any(counts.values()):
        per_clip_s, per_text_s = _calibrate(preset, encoders, missing["clips"].values())
        work_s = START_S + (counts["clips"] * per_clip_s + counts["text"] * per_text_s) / num_workers
    return Estimate(missing=counts, shards=shards, num_bytes=num_bytes, seconds=work_s)


def _calibrate(preset: Preset, encoders: Encoders, clips: Iterable[Item]) -> tuple[float, float]:
    frame = np.zeros((1, preset.input_size, preset.input_size, 3), np.uint8)
    sound = np.zeros(preset.num_frames * SAMPLE_RATE_HZ, np.float32)
    visual_s = _seconds(lambda: encoders.visual.encode([frame], encoders.visual.levels)[0]) * preset.num_frames
    audio_s = _seconds(lambda: encoders.audio.encode(sound))
    text_s = _seconds(lambda: encoders.text.encode("the object"))
    return visual_s + audio_s + _decoding_s(preset, clips), text_s


def _seconds(call: Callable[[], object]) -> float:
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _decoding_s(preset: Preset, clips: Iterable[Item]) -> float:
    for clip in clips:
        if isinstance(clip, Clip):
            started = time.perf_counter()
            try:
                read_media(clip, preset.num_frames, preset.input_size)
            except DatasetError:
                continue
            return time.perf_counter() - started
    return 0.0

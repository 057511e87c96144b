"""Stores of noise for the benchmarks of training and sweeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from refavs.store import FeatureStore, StoreSchema, StoreWriter, StreamSpec, object_key, text_key
from refavs.store.format.schema import OBJECTS

SENTENCE = "the object making a sound before the man sings"
PER_CLIP = 4  # expressions
LENGTH = 8  # tokens of each text


def write_store(
    root: str | Path, streams: Mapping[str, StreamSpec], splits: Sequence[str], *, seconds: int = 10,
    mask_size: int = 384, per_clip: int = PER_CLIP, masks: bool = True,
) -> FeatureStore:  # fmt: skip
    """A clip for each of `splits`, with an object that stays where it is and `per_clip` expressions."""
    writer = StoreWriter.open(root, StoreSchema(
        streams=streams, source="benchmark", seconds=seconds, fps=1.0, mask_size=mask_size, objects_per_shard=64,
    ))  # fmt: skip
    rng = np.random.default_rng(0)
    clips = [f"clip{number:05d}" for number in range(len(splits))]
    sentences = [f"{SENTENCE} {k}" for k in range(per_clip)]
    texts = {text_key(sentence): sentence for sentence in sentences}
    objects = [object_key(clip, 1) for clip in clips] if masks else []
    for table in writer.schema.tables:
        keys = objects if table == OBJECTS else list(texts) if table.startswith("text/") else clips
        write_rows(writer, table, keys, rng)
    writer.write_clips(pd.DataFrame({"id": clips, "frames": clips, "sound": clips, "seconds": seconds}))
    writer.write_texts(pd.DataFrame({"key": list(texts), "text": sentences}))
    rows = writer.committed(OBJECTS)
    writer.write_expressions(pd.DataFrame([
        {"uid": f"{clip}_{k}", "vid": clip, "clip": place, "fid": 1, "split": split, "text": k, "grade": "easy",
         "object": rows.get(object_key(clip, 1), -1), "dimension": "semantic"}
        for place, (clip, split) in enumerate(zip(clips, splits, strict=True)) for k in range(per_clip)
    ]))  # fmt: skip
    writer.finalise()
    return FeatureStore(root)


def write_rows(writer: StoreWriter, table: str, keys: Sequence[str], rng: np.random.Generator) -> None:
    """Noise for each key of a stream; of the objects a mask in the middle, labelled in every second."""
    spec = writer.schema.tables[table]
    groups = [keys[start : start + spec.rows_per_shard] for start in range(0, len(keys), spec.rows_per_shard)]
    for plan in filter(None, writer.plan(table, groups)):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, {one.name: noise(rng, one.shape, one.dtype) for one in spec.arrays})


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Features, a packed mask with an object in the middle, or that the first places are valid."""
    if dtype == "bool":
        return np.arange(shape[0]) < max(LENGTH, 10)
    if dtype != "uint8":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    packed = np.zeros(shape, np.uint8)
    packed[:, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 255
    return packed

"""A store of synthetic features in which each cue is one channel, so that a head learns it in seconds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from refavs.choices import Role
from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec, object_key, pack_mask, text_key

SECONDS, SIZE, CHANNELS, LENGTH = 3, 32, 8, 4
MAPS = {"mask_features": 8, "s8": 4, "s16": 2, "s32": 1}
TEXTS = {"the left one": "spatial", "the right one": "spatial", "the sounding one": "acoustic"}
VISUAL, AUDIO, TEXT = "visual/made-up/pixel_decoder", "audio/vggish", "text/roberta"
STREAMS = {
    VISUAL: StreamSpec(
        fingerprint={"name": "made-up", "weights": "0" * 64}, rows_per_shard=4,
        arrays=tuple(
            ArraySpec(name=name, shape=(SECONDS, CHANNELS, side, side), dtype="float16", axes=("t", "c", "h", "w"),
                      statistics=True)
            for name, side in MAPS.items()
        ),
    ),
    AUDIO: StreamSpec(
        fingerprint={"name": "made-up", "weights": "random:0"}, rows_per_shard=4,
        arrays=(ArraySpec(name="features", shape=(SECONDS, 4), dtype="float32", axes=("t", "c"), statistics=True),),
    ),
    TEXT: StreamSpec(
        fingerprint={"name": "made-up", "weights": "0" * 64}, rows_per_shard=8,
        arrays=(
            ArraySpec(name="features", shape=(LENGTH, CHANNELS), dtype="float32", axes=("l", "c"), statistics=True,
                      valid="valid"),
            ArraySpec(name="valid", shape=(LENGTH,), dtype="bool", axes=("l",)),
        ),
    ),
}  # fmt: skip
CLIPS = {"train": 6, "val": 2, "test_s": 2, "test_u": 2, "test_n": 2}


def make_store(
    path: Path, clips: Mapping[str, int] = CLIPS, seed: int = 0, noise: int = 0,
    roles: Mapping[str, Role] | None = None, unlabelled: bool | None = None,
) -> FeatureStore:  # fmt: skip
    """Clips with a left and a right object, one of which sounds; clips of test_n are silent and refer to nothing.

    Args:
        noise: another number gives other features of the same expressions and masks.
        roles: of the splits, as a layout gives them.
        unlabelled: where given, the last second of every object has no label, and all of the first clip of each split;
            what the masks hold there.
    """
    rng = np.random.default_rng(seed)
    writer = StoreWriter.open(path, StoreSchema(
        streams=STREAMS, source="nowhere", seconds=SECONDS, fps=1.0, mask_size=SIZE, objects_per_shard=8,
        splits=roles,
    ))  # fmt: skip
    names = [(f"{'null_' if split == 'test_n' else ''}{split}{index}", split)
             for split, count in clips.items() for index in range(count)]  # fmt: skip
    ids = sorted(name for name, _ in names)
    sides = {name: int(rng.integers(2)) for name, _ in names}
    masks = {object_key(name, fid): mask_of(name, fid, rng) for name, _ in names for fid in (0, 1)}
    rng = np.random.default_rng([seed, noise]) if noise else rng
    features = {name: clip_features(name, sides[name], masks, rng) for name in ids}
    rows = {stream: {name: features[name].get(stream, features[name][AUDIO]) for name in ids}
            for stream in STREAMS if stream != TEXT}  # fmt: skip
    labelled = {key: np.ones(SECONDS, bool) for key in sorted(masks)}
    if unlabelled is not None:
        for key, known in labelled.items():
            known[0 if "0/" in key else -1 :] = False
            masks[key][~known] = unlabelled
    rows["objects"] = {key: {"mask": pack_mask(masks[key]), "labelled": known} for key, known in labelled.items()}
    rows[TEXT] = {text_key(text): text_features(text) for text in sorted(TEXTS, key=text_key)}
    for table, arrays in rows.items():
        write_rows(writer, table, arrays)
    places = writer.write_clips(pd.DataFrame({"id": ids, "frames": ids, "sound": ids, "seconds": SECONDS}))
    texts = writer.write_texts(pd.DataFrame({"key": [text_key(text) for text in TEXTS], "text": list(TEXTS)}))
    writer.write_expressions(expressions_of(names, sides, places, writer.committed("objects"), texts))
    writer.finalise()
    return FeatureStore(path)


def write_rows(writer: StoreWriter, table: str, rows: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes the arrays of each key of a stream, or of the objects."""
    keys, size = list(rows), writer.schema.tables[table].rows_per_shard
    for plan in writer.plan(table, [keys[start : start + size] for start in range(0, len(keys), size)]):
        if plan is not None:
            with writer.shard(plan) as shard:
                for key in plan.keys:
                    shard.write(key, rows[key])


def text_features(text: str) -> dict[str, np.ndarray]:
    """One channel says which text it is."""
    features = np.zeros((LENGTH, CHANNELS), np.float32)
    features[:3, list(TEXTS).index(text)] = 1
    return {"features": features, "valid": np.arange(LENGTH) < 3}


def mask_of(name: str, fid: int, rng: np.random.Generator) -> np.ndarray:
    """A square in the left (fid 0) or the right half; clips of test_n have an empty one."""
    mask = np.zeros((SECONDS, SIZE, SIZE), bool)
    if not name.startswith("null_"):
        top, left = rng.integers(4, 16), 16 * fid + rng.integers(1, 5)
        mask[:, top : top + 10, left : left + 10] = True
    return mask


def clip_features(
    name: str, side: int, masks: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, dict[str, np.ndarray]]:
    """Even channels of a map show the left object, odd ones the right; the sound's first says which of them sounds."""
    arrays = {}
    for level, size in MAPS.items():
        maps = 0.05 * rng.standard_normal((SECONDS, CHANNELS, size, size))
        for fid in (0, 1):
            pooled = masks[object_key(name, fid)].reshape(SECONDS, size, SIZE // size, size, SIZE // size)
            maps[:, fid::2] += pooled.mean(axis=(2, 4))[:, None]
        arrays[level] = maps.astype(np.float16)
    audio = 0.1 * rng.standard_normal((SECONDS, 4)).astype(np.float32)
    audio[:, 0] += 0 if name.startswith("null_") else 2 * side - 1
    return {VISUAL: arrays, AUDIO: {"features": audio}}


def expressions_of(
    names: list[tuple[str, str]], sides: Mapping[str, int], clips: Mapping[str, int], objects: Mapping[str, int],
    texts: Mapping[str, int],
) -> pd.DataFrame:  # fmt: skip
    """Three expressions for each clip."""
    rows = []
    for name, split in names:
        for index, (text, dimension) in enumerate(TEXTS.items()):
            fid = sides[name] if index == 2 else index
            rows.append({
                "uid": f"{name}_thing_{index}", "vid": name, "clip": clips[name],
                "object": objects[object_key(name, fid)], "text": texts[text_key(text)],
                "split": split, "fid": fid, "grade": "easy", "dimension": dimension,
            })  # fmt: skip
    return pd.DataFrame(rows)

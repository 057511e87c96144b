"""A store of made-up features in which each cue is one channel, so that a head learns it in seconds."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from refavs.choices import Role
from refavs.store import ArraySpec, FeatureStore, StoreWriter, object_key, pack_mask, text_key

NUM_FRAMES, SIZE, CHANNELS, LENGTH = 3, 32, 8, 4
MAPS = {"mask_features": 8, "s8": 4, "s16": 2, "s32": 1}
TEXTS = {"the left one": "spatial", "the right one": "spatial", "the sounding one": "acoustic"}
ENCODERS = {"visual": {"name": "made-up", "weights": "0" * 64}, "audio": {"name": "made-up", "weights": "random:0"}}
SPECS = {
    "clips": [
        *(
            ArraySpec(path=f"clips/visual/pixel_decoder/{name}", shape=(NUM_FRAMES, CHANNELS, side, side),
                      dtype="float16", axes=("t", "c", "h", "w"), statistics=True)
            for name, side in MAPS.items()
        ),
        ArraySpec(path="clips/audio/vggish", shape=(NUM_FRAMES, 4), dtype="float32", axes=("t", "c"), statistics=True),
    ],
    "objects": [
        ArraySpec(path="objects/mask", shape=(NUM_FRAMES, SIZE, SIZE // 8), dtype="uint8", axes=("t", "h", "w"))
    ],
    "text": [
        ArraySpec(path="text/roberta/features", shape=(LENGTH, CHANNELS), dtype="float32", axes=("l", "c"),
                  statistics=True, valid="text/roberta/valid"),
        ArraySpec(path="text/roberta/valid", shape=(LENGTH,), dtype="bool", axes=("l",)),
    ],
}  # fmt: skip
CLIPS = {"train": 6, "val": 2, "test_s": 2, "test_u": 2, "test_n": 2}


def make_store(
    path: Path, clips: Mapping[str, int] = CLIPS, seed: int = 0, noise: int = 0,
    roles: Mapping[str, Role] | None = None,
) -> FeatureStore:  # fmt: skip
    """Clips with a left and a right object, one of which sounds; clips of test_n are silent and refer to nothing.

    Args:
        noise: another number gives other features of the same expressions and masks.
        roles: of the splits, as a layout gives them.
    """
    rng = np.random.default_rng(seed)
    writer = StoreWriter.open(
        path, encoders=ENCODERS, source="nowhere", num_frames=NUM_FRAMES, input_size=SIZE, specs=SPECS,
        rows_per_shard={"clips": 4, "objects": 8, "text": 8}, splits=roles,
    )  # fmt: skip
    names = [(f"{'null_' if split == 'test_n' else ''}{split}{index}", split)
             for split, count in clips.items() for index in range(count)]  # fmt: skip
    sides = {name: int(rng.integers(2)) for name, _ in names}
    masks = {object_key(name, fid): mask_of(name, fid, rng) for name, _ in names for fid in (0, 1)}
    rng = np.random.default_rng([seed, noise]) if noise else rng
    for plan in writer.plan("clips", [name for name, _ in names]):
        with writer.shard(plan) as shard:
            for name in plan.keys:
                shard.write(name, clip_features(name, sides[name], masks, rng), {})
    for plan in writer.plan("objects", masks):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, {"objects/mask": pack_mask(masks[key])}, {})
    for plan in writer.plan("text", [text_key(text) for text in TEXTS]):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                text = next(text for text in TEXTS if text_key(text) == key)
                features = np.zeros((LENGTH, CHANNELS), np.float32)
                features[:3, list(TEXTS).index(text)] = 1
                valid = np.arange(LENGTH) < 3
                shard.write(key, {"text/roberta/features": features, "text/roberta/valid": valid}, {"text": text})
    writer.write_expressions(expressions_of(writer, names, sides))
    writer.finalise()
    return FeatureStore(path)


def mask_of(name: str, fid: int, rng: np.random.Generator) -> np.ndarray:
    """A square in the left (fid 0) or the right half; clips of test_n have an empty one."""
    mask = np.zeros((NUM_FRAMES, SIZE, SIZE), bool)
    if not name.startswith("null_"):
        top, left = rng.integers(4, 16), 16 * fid + rng.integers(1, 5)
        mask[:, top : top + 10, left : left + 10] = True
    return mask


def clip_features(
    name: str, side: int, masks: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Even channels of a map show the left object, odd ones the right; the sound's first says which of them sounds."""
    arrays = {}
    for level, size in MAPS.items():
        maps = 0.05 * rng.standard_normal((NUM_FRAMES, CHANNELS, size, size))
        for fid in (0, 1):
            pooled = masks[object_key(name, fid)].reshape(NUM_FRAMES, size, SIZE // size, size, SIZE // size)
            maps[:, fid::2] += pooled.mean(axis=(2, 4))[:, None]
        arrays[f"clips/visual/pixel_decoder/{level}"] = maps.astype(np.float16)
    audio = 0.1 * rng.standard_normal((NUM_FRAMES, 4)).astype(np.float32)
    audio[:, 0] += 0 if name.startswith("null_") else 2 * side - 1
    return {**arrays, "clips/audio/vggish": audio}


def expressions_of(
    writer: StoreWriter, names: list[tuple[str, str]], sides: Mapping[str, int]
) -> pd.DataFrame:
    """Three expressions for each clip."""
    clips, objects, texts = (writer.committed(table) for table in ("clips", "objects", "text"))
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

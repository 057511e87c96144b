"""Builds a store of a few tiny rows whose values follow from their keys, for the tests of the store and its readers."""

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refavs.store import ArraySpec, StoreWriter, object_key, text_key

MAPS = "clips/visual/pixel_decoder/mask_features"
COARSE = "clips/visual/pixel_decoder/s8"
BACKBONE = "clips/visual/backbone/res2"
AUDIO = "clips/audio/vggish"
SPECS = {
    "clips": [
        ArraySpec(path=MAPS, shape=(3, 4, 5, 6), dtype="float16", axes=("t", "c", "h", "w"), statistics=True),
        ArraySpec(path=COARSE, shape=(3, 4, 2, 3), dtype="float16", axes=("t", "c", "h", "w"), statistics=True),
        ArraySpec(path=AUDIO, shape=(3, 7), dtype="float32", axes=("t", "c"), statistics=True),
    ],
    "objects": [ArraySpec(path="objects/mask", shape=(3, 11, 2), dtype="uint8", axes=("t", "h", "w"))],
    "text": [
        ArraySpec(path="text/roberta/features", shape=(5, 6), dtype="float32", axes=("l", "c"), statistics=True,
                  valid="text/roberta/valid"),
        ArraySpec(path="text/roberta/valid", shape=(5,), dtype="bool", axes=("l",)),
    ],
}  # fmt: skip
ENCODERS = {
    "visual": {"name": "swin", "weights": "a1" * 32, "input_size": 11},
    "audio": {"name": "vggish", "weights": "b2" * 32},
    "text": {"name": "roberta", "weights": "c3" * 32},
}
TEXTS = ("the disc that sounds", "the ring é", "the first star")
CLIPS = ("a", "b", "c", "d", "e")
SPLITS = ("train", "val", "test_s", "test_u", "test_n")


def open_writer(root: Path, **changes: Any) -> StoreWriter:
    """The writer of the small store, with some arguments changed."""
    arguments: dict[str, Any] = {
        "encoders": ENCODERS, "source": "small", "num_frames": 3, "input_size": 11, "specs": SPECS,
        "rows_per_shard": {"clips": 2, "objects": 3, "text": 4},
    }  # fmt: skip
    return StoreWriter.open(root, **(arguments | changes))


def row_of(key: str, specs: Iterable[ArraySpec]) -> dict[str, np.ndarray]:
    """The arrays of a key."""
    row = {}
    for spec in specs:
        rng = np.random.default_rng(zlib.crc32(f"{spec.path} {key}".encode()))
        values = rng.random(spec.shape) > 0.3 if spec.dtype == "bool" else rng.normal(size=spec.shape) * 20
        row[spec.path] = (abs(values) if spec.dtype == "uint8" else values).astype(spec.dtype)
    return row


def facts_of(clip: str) -> dict[str, Any]:
    """What is noted of a clip."""
    return {"silent": clip == "b", "repeated_from_s": 6 if clip in ("a", "c") else None, "num_frames": 3}


def write_rows(
    writer: StoreWriter, table: str, keys: Sequence[str], failing: Sequence[str] = (), texts: Sequence[str] = TEXTS
) -> None:
    """Writes what is missing of `keys`; the `failing` ones fail."""
    strings = {text_key(text): text for text in texts}
    for plan in writer.plan(table, keys):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key in failing:
                    shard.fail(key, "made to fail")
                    continue
                meta = {"text": strings[key]} if table == "text" else facts_of(key) if table == "clips" else {}
                shard.write(key, row_of(key, writer.schema.tables[table].arrays), meta)


def expressions(writer: StoreWriter, clips: Sequence[str] = CLIPS) -> pd.DataFrame:
    """Two expressions of each committed clip, one of them about another text."""
    rows, objects, texts = (writer.committed(table) for table in ("clips", "objects", "text"))
    return pd.DataFrame([
        {"uid": f"{clip}_{k}", "vid": f"v{clip}", "clip": rows[clip], "object": objects[object_key(clip, 1)],
         "text": texts[text_key(TEXTS[(place + k) % len(TEXTS)])], "split": SPLITS[place % len(SPLITS)], "fid": 1,
         "grade": "easy", "dimension": ("semantic", "acoustic")[k]}
        for place, clip in enumerate(clips) if clip in rows for k in range(2)
    ])  # fmt: skip


def write_store(root: Path, clips: Sequence[str] = CLIPS, failing: Sequence[str] = (), **changes: Any) -> StoreWriter:
    """A finished store."""
    writer = open_writer(root, **changes)
    write_rows(writer, "text", [text_key(text) for text in TEXTS])
    write_rows(writer, "clips", clips, failing)
    write_rows(writer, "objects", [object_key(clip, 1) for clip in clips])
    writer.write_expressions(expressions(writer, clips))
    writer.finalise()
    return writer


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a store, with the seconds taken out of its commit records."""
    import json

    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.parent.name == "commits" and path.suffix == ".json" and path.name != "expressions.json":
                record = json.loads(data)["record"]
                data = json.dumps({**record, "seconds": 0}, sort_keys=True).encode()
            found[path.relative_to(root).as_posix()] = data
    return found

"""Builds a store of a few tiny rows whose values follow from their keys, for the tests of the store and its readers."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec, object_key, text_key

VISUAL, BACKBONE_STREAM = "visual/swin/pixel_decoder", "visual/swin/backbone"
SOUND, TEXT = "audio/vggish", "text/roberta"
MAPS = "clips/visual/swin/pixel_decoder/mask_features"
COARSE = "clips/visual/swin/pixel_decoder/s8"
BACKBONE = "clips/visual/swin/backbone/res2"
AUDIO = "clips/audio/vggish/features"
FEATURES, VALID = "text/roberta/features", "text/roberta/valid"
STREAMS = {
    VISUAL: StreamSpec(
        fingerprint={"name": "swin", "weights": "a1" * 32, "input_size": 11}, rows_per_shard=2,
        arrays=(
            ArraySpec(name="mask_features", shape=(3, 4, 5, 6), dtype="float16", axes=("t", "c", "h", "w"),
                      statistics=True),
            ArraySpec(name="s8", shape=(3, 4, 2, 3), dtype="float16", axes=("t", "c", "h", "w"), statistics=True),
        ),
    ),
    SOUND: StreamSpec(
        fingerprint={"name": "vggish", "weights": "b2" * 32}, rows_per_shard=2,
        arrays=(ArraySpec(name="features", shape=(3, 7), dtype="float32", axes=("t", "c"), statistics=True),),
    ),
    TEXT: StreamSpec(
        fingerprint={"name": "roberta", "weights": "c3" * 32}, rows_per_shard=4,
        arrays=(
            ArraySpec(name="features", shape=(5, 6), dtype="float32", axes=("l", "c"), statistics=True, valid="valid"),
            ArraySpec(name="valid", shape=(5,), dtype="bool", axes=("l",)),
        ),
    ),
}  # fmt: skip
LEVEL = StreamSpec(
    fingerprint={"name": "swin", "weights": "a1" * 32, "input_size": 11}, rows_per_shard=2,
    arrays=(ArraySpec(name="res2", shape=(3, 2, 5, 6), dtype="float16", axes=("t", "c", "h", "w"), statistics=True),),
)  # fmt: skip
TEXTS = ("the disc that sounds", "the ring é", "the first star")
CLIPS = ("a", "b", "c", "d", "e")
SPLITS = ("train", "val", "test_s", "test_u", "test_n")


def open_writer(root: str | Path, **changes: Any) -> StoreWriter:
    """The writer of the small store, with some arguments changed."""
    arguments: dict[str, Any] = {
        "streams": STREAMS, "source": "small", "seconds": 3, "fps": 1.0, "mask_size": 11, "objects_per_shard": 3,
    }  # fmt: skip
    return StoreWriter.open(root, StoreSchema(**(arguments | changes)))


def row_of(key: str, specs: Iterable[ArraySpec]) -> dict[str, np.ndarray]:
    """The arrays of a key, by name."""
    row = {}
    for spec in specs:
        rng = np.random.default_rng(zlib.crc32(f"{spec.name} {key}".encode()))
        values = rng.random(spec.shape) > 0.3 if spec.dtype == "bool" else rng.normal(size=spec.shape) * 20
        row[spec.name] = (abs(values) if spec.dtype == "uint8" else values).astype(spec.dtype)
    return row


def content_key(stream: str, clip: str) -> str:
    """The key of a clip in a visual or audio stream."""
    return f"{'frames' if stream.startswith('visual/') else 'sound'} of {clip}"


def facts_of(clip: str) -> dict[str, Any]:
    """What is noted of a clip."""
    return {"silent": clip == "b", "repeated_from_s": 6 if clip in ("a", "c") else None}


def groups_of(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    """The keys in groups of a shard each."""
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def write_rows(writer: StoreWriter, table: str, keys: Sequence[str], failing: Sequence[str] = ()) -> None:
    """Writes what is missing of `keys`, sorted, those that failed before on their own; the `failing` ones fail."""
    failed, spec = writer.failed(table), writer.schema.tables[table]
    missing = sorted(writer.missing(table, keys))
    parts = [[key for key in missing if (key in failed) == again] for again in (False, True)]
    for plan in writer.plan(table, [group for part in parts for group in groups_of(part, spec.rows_per_shard)]):
        assert plan is not None
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key in failing:
                    shard.fail(key, "made to fail")
                else:
                    shard.write(key, row_of(key, spec.arrays), {"noted": key})


def add_clips(writer: StoreWriter, clips: Sequence[str], failing: Sequence[str] = ()) -> None:
    """Writes the frames and sounds of clips, and the clips; of the `failing` ones the frames fail."""
    for stream in writer.schema.streams:
        if stream != TEXT:
            failed = [content_key("visual/", clip) for clip in failing]
            write_rows(writer, stream, [content_key(stream, clip) for clip in clips], failed)
    writer.write_clips(clip_table(clips))


def clip_table(clips: Sequence[str]) -> pd.DataFrame:
    """The plain table of clips."""
    return pd.DataFrame([
        {"id": clip, "frames": content_key("visual/", clip), "sound": content_key("audio/", clip), "seconds": 3,
         **facts_of(clip)}
        for clip in clips
    ])  # fmt: skip


def expressions(writer: StoreWriter, clips: Sequence[str] = CLIPS) -> pd.DataFrame:
    """Two expressions of each clip whose frames and sound are there, one of them about another text."""
    table, texts = writer.table("clips"), writer.table("text")
    assert table is not None and texts is not None
    places = {name: place for place, name in enumerate(table["id"])}
    keys = {key: place for place, key in enumerate(texts["key"])}
    objects = writer.committed("objects")
    done = {stream: writer.committed(stream) for stream in writer.schema.streams if stream != TEXT}
    there = [
        clip for clip in clips
        if all(content_key(stream, clip) in rows for stream, rows in done.items())
    ]  # fmt: skip
    return pd.DataFrame([
        {"uid": f"{clip}_{k}", "vid": f"v{clip}", "clip": places[clip], "object": objects[object_key(clip, 1)],
         "text": keys[text_key(TEXTS[(place + k) % len(TEXTS)])], "split": SPLITS[place % len(SPLITS)], "fid": 1,
         "grade": "easy", "dimension": ("semantic", "acoustic")[k]}
        for place, clip in enumerate(clips) if clip in there for k in range(2)
    ])  # fmt: skip


def write_store(
    root: str | Path, clips: Sequence[str] = CLIPS, failing: Sequence[str] = (), **changes: Any
) -> StoreWriter:
    """A finished store; of the `failing` clips the frames fail."""
    writer = open_writer(root, **changes)
    write_content(writer, clips, failing)
    writer.write_expressions(expressions(writer, clips))
    writer.finalise()
    return writer


def write_content(writer: StoreWriter, clips: Sequence[str] = CLIPS, failing: Sequence[str] = ()) -> None:
    """Everything but the expressions."""
    write_rows(writer, TEXT, [text_key(text) for text in TEXTS])
    write_rows(writer, "objects", [object_key(clip, 1) for clip in clips])
    add_clips(writer, clips, failing)
    writer.write_texts(pd.DataFrame({"key": [text_key(text) for text in TEXTS], "text": TEXTS}))


def write_shared(root: Path, streams: Mapping[str, StreamSpec] = STREAMS, failing: Sequence[str] = ()) -> None:
    """A finished store in which b has the frames of a, and d the frames and sound; `failing` are keys that fail."""
    writer = open_writer(root, streams=streams)
    clips = clip_table(CLIPS)
    clips.loc[[1, 3], "frames"], clips.loc[3, "sound"] = clips["frames"][0], clips["sound"][0]
    for stream in streams.keys() - {TEXT}:
        write_rows(writer, stream, clips["frames" if stream.startswith("visual/") else "sound"].tolist(), failing)
    write_rows(writer, TEXT, [text_key(text) for text in TEXTS])
    write_rows(writer, "objects", [object_key(clip, 1) for clip in CLIPS])
    writer.write_clips(clips)
    writer.write_texts(pd.DataFrame({"key": [text_key(text) for text in TEXTS], "text": TEXTS}))
    writer.write_expressions(expressions(writer, ["a", "c", "e"]))
    writer.finalise()


def assert_whole(root: str | Path) -> None:
    """Every committed row is what it should be, and nothing is damaged."""
    from refavs.store.verify import verify

    store = FeatureStore(root)
    for (table, row), (_, key) in store._places.items():
        specs = store.schema.tables[table].arrays
        for name, expected in row_of(key, specs).items():
            path = next(spec.path for spec in specs if spec.name == name)
            np.testing.assert_array_equal(store.read(path, row).numpy(), expected)
    assert not verify(root).damage


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder, of stores with the seconds taken out of its commit records."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data, name = path.read_bytes(), path.relative_to(root).as_posix()
            if "commits" in path.parts and path.stem.isdigit():
                data = json.dumps({**json.loads(data)["record"], "seconds": 0}, sort_keys=True).encode()
            found[name] = data
    return found

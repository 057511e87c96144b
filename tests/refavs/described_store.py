"""A store that has the arrays of some sizes and no rows."""

from pathlib import Path

from refavs.model.feature_sizes import FeatureSizes
from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec

SECONDS, TOKENS = 3, 5


def described_store(root: Path, *levels: FeatureSizes) -> FeatureStore:
    """Each of `levels` is a level of the visual encoder; sound and text are those of the first."""
    arrays: dict[str, list[ArraySpec]] = {}
    for sizes in levels:
        for size in sizes.maps:
            shape = SECONDS, size.channels, size.height, size.width
            spec = ArraySpec(name=size.name, shape=shape, dtype="float16", axes=("t", "c", "h", "w"))
            arrays.setdefault(stream_of(size.path), []).append(spec)
    sound, text = levels[0].audio, levels[0].text
    arrays[stream_of(sound.path)] = [
        ArraySpec(name="features", shape=(SECONDS, sound.channels), dtype="float32", axes=("t", "c"))
    ]
    arrays[stream_of(text.path)] = [
        ArraySpec(name="features", shape=(TOKENS, text.channels), dtype="float32", axes=("l", "c"))
    ]
    streams = {stream: StreamSpec(fingerprint={}, arrays=tuple(specs), rows_per_shard=1)
               for stream, specs in arrays.items()}  # fmt: skip
    StoreWriter.open(root, StoreSchema(
        streams=streams, source="", seconds=SECONDS, fps=1.0, mask_size=8, objects_per_shard=1,
    ))  # fmt: skip
    return FeatureStore(root)


def stream_of(path: str) -> str:
    """Id of the stream that has an array."""
    return path.removeprefix("clips/").rpartition("/")[0]

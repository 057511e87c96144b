"""A store of noise with maps as large as real ones, so that a small head mostly waits for data."""

from pathlib import Path

from refavs.store import ArraySpec, FeatureStore, StreamSpec
from tests.benchmarks.train_store import write_store

SECONDS, SIZE, TOKENS = 10, 384, 16
SIDES = {"mask_features": 96, "s8": 48, "s16": 24, "s32": 12}
NOISE = {"name": "noise", "weights": "random:0"}


def wide_streams(channels: int, sides: dict[str, int] = SIDES) -> dict[str, StreamSpec]:
    """Maps of so many channels, sound of 128 and text of 768."""
    maps = tuple(
        ArraySpec(name=name, shape=(SECONDS, channels, side, side), dtype="float16", axes=("t", "c", "h", "w"),
                  statistics=True)
        for name, side in sides.items()
    )  # fmt: skip
    sound = ArraySpec(name="features", shape=(SECONDS, 128), dtype="float32", axes=("t", "c"), statistics=True)
    text = (
        ArraySpec(name="features", shape=(TOKENS, 768), dtype="float32", axes=("l", "c"), statistics=True,
                  valid="valid"),
        ArraySpec(name="valid", shape=(TOKENS,), dtype="bool", axes=("l",)),
    )  # fmt: skip
    return {
        "visual/noise/pixel_decoder": StreamSpec(fingerprint=NOISE, arrays=maps, rows_per_shard=4),
        "audio/noise": StreamSpec(fingerprint=NOISE, arrays=(sound,), rows_per_shard=4),
        "text/noise": StreamSpec(fingerprint=NOISE, arrays=text, rows_per_shard=64),
    }


def write_wide_store(root: Path, channels: int, num_clips: int) -> FeatureStore:
    """Clips of 10 seconds at 384 pixels, each with an object and four expressions; the last two are val and test_s."""
    return write_store(root, wide_streams(channels), [*["train"] * (num_clips - 2), "val", "test_s"],
                       seconds=SECONDS, mask_size=SIZE)  # fmt: skip

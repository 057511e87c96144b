"""A store of noise with maps as large as real ones, so that a small head mostly waits for data."""

from pathlib import Path

import numpy as np
import pandas as pd

from refavs.store import ArraySpec, FeatureStore, StoreWriter, object_key, text_key
from tests.benchmarks.train_store import noise

NUM_FRAMES, SIZE, LENGTH = 10, 384, 16
SIDES = {"mask_features": 96, "s8": 48, "s16": 24, "s32": 12}
SENTENCES = [f"the object that sounds {number}" for number in range(4)]


def write_wide_store(root: Path, channels: int, num_clips: int) -> FeatureStore:
    """Clips of 10 seconds at 384 pixels, each with an object and four expressions; the last two are val and test_s."""
    specs = {
        "clips": [
            *(
                ArraySpec(path=f"clips/visual/pixel_decoder/{name}", shape=(NUM_FRAMES, channels, side, side),
                          dtype="float16", axes=("t", "c", "h", "w"), statistics=True)
                for name, side in SIDES.items()
            ),
            ArraySpec(path="clips/audio/vggish", shape=(NUM_FRAMES, 128), dtype="float32", axes=("t", "c"),
                      statistics=True),
        ],
        "objects": [ArraySpec(path="objects/mask", shape=(NUM_FRAMES, SIZE, SIZE // 8), dtype="uint8",
                              axes=("t", "h", "w"))],
        "text": [
            ArraySpec(path="text/roberta/features", shape=(LENGTH, 768), dtype="float32", axes=("l", "c"),
                      statistics=True, valid="text/roberta/valid"),
            ArraySpec(path="text/roberta/valid", shape=(LENGTH,), dtype="bool", axes=("l",)),
        ],
    }  # fmt: skip
    writer = StoreWriter.open(
        root, encoders={"visual": {"name": "noise", "weights": "random:0"}}, source="benchmark", num_frames=NUM_FRAMES,
        input_size=SIZE, specs=specs, rows_per_shard={"clips": 4, "objects": 64, "text": 64},
    )
    rng = np.random.default_rng(0)
    clips = [f"clip{number}" for number in range(num_clips)]
    words = {text_key(sentence): sentence for sentence in SENTENCES}
    keys = {"clips": clips, "objects": [object_key(clip, 1) for clip in clips], "text": list(words)}
    for name, rows in keys.items():
        for plan in writer.plan(name, rows):
            with writer.shard(plan) as shard:
                for key in plan.keys:
                    arrays = {
                        spec.path: np.ones(spec.shape, bool) if spec.dtype == "bool"
                        else noise(rng, spec.shape, spec.dtype)
                        for spec in specs[name]
                    }  # fmt: skip
                    shard.write(key, arrays, {"text": words[key]} if name == "text" else {})
    committed = {name: writer.committed(name) for name in keys}
    splits = [*["train"] * (num_clips - 2), "val", "test_s"]
    writer.write_expressions(pd.DataFrame([
        {"uid": f"{clip}_{number}", "vid": clip, "clip": committed["clips"][clip], "fid": 1, "split": split,
         "object": committed["objects"][object_key(clip, 1)], "text": committed["text"][text_key(sentence)],
         "grade": "easy", "dimension": "semantic"}
        for clip, split in zip(clips, splits, strict=True) for number, sentence in enumerate(SENTENCES)
    ]))  # fmt: skip
    writer.finalise()
    return FeatureStore(root)

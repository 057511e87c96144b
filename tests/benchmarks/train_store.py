"""A store of noise with the sizes of a preset, for `bench_train.py`."""

from pathlib import Path

import numpy as np
import pandas as pd

from extract.encoders.presets import Encoders, Preset
from extract.pipeline.plan import array_specs
from refavs.store import FeatureStore, StoreWriter, object_key, text_key

SENTENCE = "the object making a sound before the man sings"
PER_CLIP = 4  # expressions


def write_store(root: Path, preset: Preset, encoders: Encoders, num_clips: int) -> FeatureStore:
    """A store of noise: each clip has an object that moves, and four expressions."""
    writer = StoreWriter.open(
        root, encoders=encoders.fingerprints(), source="benchmark", num_frames=preset.num_frames,
        input_size=preset.input_size, specs=array_specs(preset, encoders), rows_per_shard=preset.rows_per_shard,
    )
    rng = np.random.default_rng(0)
    clips, sentences = [f"clip{number}" for number in range(num_clips)], [f"{SENTENCE} {k}" for k in range(PER_CLIP)]
    words = {text_key(sentence): sentence for sentence in sentences}
    keys = {"clips": clips, "objects": [object_key(clip, 1) for clip in clips], "text": list(words)}
    for name, rows in keys.items():
        for plan in writer.plan(name, rows):
            with writer.shard(plan) as shard:
                for key in plan.keys:
                    if name == "text":
                        (features,) = encoders.text.encode([encoders.text.prepare(words[key])])
                        shard.write(key, features, {"text": words[key]})
                        continue
                    specs = writer.schema.tables[name].arrays
                    shard.write(key, {spec.path: noise(rng, spec.shape, spec.dtype) for spec in specs}, {})
    committed = {name: writer.committed(name) for name in keys}
    writer.write_expressions(pd.DataFrame([
        {"uid": f"{clip}_{k}", "vid": clip, "clip": committed["clips"][clip], "fid": 1, "split": "train",
         "object": committed["objects"][object_key(clip, 1)], "text": committed["text"][text_key(sentence)],
         "grade": "easy", "dimension": "semantic"}
        for clip in clips for k, sentence in enumerate(sentences)
    ]))  # fmt: skip
    writer.finalise()
    return FeatureStore(root)


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Features, or a packed mask with an object in the middle."""
    if dtype != "uint8":
        return rng.standard_normal(shape, np.float32).astype(dtype)
    packed = np.zeros(shape, np.uint8)
    packed[:, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 255
    return packed

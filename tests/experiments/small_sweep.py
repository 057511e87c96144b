"""Builds a sweep's folder like refavs-sweep does: trials with statistics of small predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.grid.config import TrialConfig
from refavs.config import digest, flat
from refavs.metrics import Recorder, write_statistics

STORE = "fingerprint-of-tests"
NUM_FRAMES, HEIGHT, WIDTH = 3, 12, 16
CLIPS = {"val": 1, "test_s": 5, "test_u": 4, "test_n": 2}
KINDS = (
    ("dog", "1", "semantic", "The brown dog"),
    ("cat", "2", "spatial", "The cat to the left of the dog"),
    ("bee", "5", "acoustic+temporal", "The thing that makes a sound before all of the others and then again is silent"),
)


def make_table(splits: Mapping[str, int] = CLIPS) -> pd.DataFrame:
    """Three expressions a clip, in the columns of a store's table."""
    clips = [(f"{split}{index}", split) for split, count in splits.items() for index in range(count)]
    return pd.DataFrame([
        {"uid": f"{clip}_{name}_{place}", "clip_id": clip, "fid": place, "split": split, "grade": grade,
         "dimension": dimension, "text": text}
        for clip, split in clips for place, (name, grade, dimension, text) in enumerate(KINDS)
    ])  # fmt: skip


TABLE = make_table()


def make_masks(table: pd.DataFrame = TABLE) -> np.ndarray:
    """A box in each frame but the first; none for expressions of test_n."""
    rng = np.random.default_rng(0)
    masks = np.zeros((len(table), NUM_FRAMES, HEIGHT, WIDTH), bool)
    for place, split in enumerate(table["split"]):
        top, left = rng.integers(0, 6), rng.integers(0, 8)
        if split != "test_n":
            masks[place, 1:, top : top + 5, left : left + 7] = True
    return masks


def make_probs(quality: float, seed: int, table: pd.DataFrame = TABLE) -> np.ndarray:
    """Probabilities that know as much of the masks as `quality` says, in [0, 1]."""
    rng = np.random.default_rng([seed, int(1000 * quality)])
    masks = make_masks(table)
    noise = rng.random(masks.shape)
    return (quality * (0.9 * masks + 0.05) + (1 - quality) * noise).astype(np.float32)


def write_trial(
    sweep: Path, name: str, seed: int = 0, quality: float | None = 0.7, state: str = "finished", store: str = STORE,
    table: pd.DataFrame = TABLE, batches: Sequence[int] = (), **config: Any,
) -> Path:  # fmt: skip
    """A trial's folder; without a quality there are no statistics, and `config` are dotted settings with `__`.

    Args:
        batches: sizes of the batches in which the statistics are counted.
    """
    settings = {**flat(TrialConfig()), **{key.replace("__", "."): value for key, value in config.items()}, "seed": seed}
    key = digest([name, settings, store])
    folder = sweep / "trials" / key[:16]
    folder.mkdir(parents=True)
    facts = {"key": key, "name": name, "seed": seed, "store": store, "config": settings}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "status.json").write_text(json.dumps({"state": state}))
    records = [{"epoch": epoch, "metrics": {"train/loss": 1 / epoch, "val/J": epoch / 10}} for epoch in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if state == "finished":
        (folder / "result.json").write_text(json.dumps({"epoch": 2, "metrics": {"test_s/J": 0.5}}))
    if quality is not None:
        recorder, probs, masks = Recorder(table=table, store=store), make_probs(quality, seed, table), make_masks(table)
        parts = np.split(np.arange(len(table)), np.cumsum(batches)) if batches else [np.arange(len(table))]
        for rows in filter(len, parts):
            recorder.add(rows.tolist(), torch.from_numpy(probs[rows]), torch.from_numpy(masks[rows]))
        write_statistics(folder / "statistics.parquet", recorder.statistics())
    return folder


def write_facts(sweep: Path, **facts: Any) -> None:
    """The files of the sweep itself; `facts` replace those of `sweep.json`."""
    sweep.mkdir(parents=True, exist_ok=True)
    known = {"id": "of-tests", "grid": sweep.name, "store": f"/data/{sweep.name}-store", "fingerprint": STORE,
             "random_features": False, "encoders": {"text": "roberta", "audio": "vggish", "visual": "swin"}}
    (sweep / "sweep.json").write_text(json.dumps({**known, **facts}))
    controls = {"all background": {"test_s": {"J": 0.1, "F": 0.0}, "test_n": {"S": 0.0}}}
    text = {"store": known["fingerprint"] if "fingerprint" not in facts else facts["fingerprint"], "controls": {},
            "protocols": {protocol: controls for protocol in ("canonical", "released")}}  # fmt: skip
    (sweep / "controls.json").write_text(json.dumps(text))

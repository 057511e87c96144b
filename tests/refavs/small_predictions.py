"""Predictions that know a little of their masks, of eight expressions on four clips."""

from collections.abc import Iterable, Sequence

import pandas as pd
import torch
from torch.nn import functional

from refavs.metrics import Recorder, Statistics

NUM_FRAMES, HEIGHT, WIDTH = 4, 40, 48
_NAMES = ("cat", "dog", "cat", "bee", "cat", "dog", "null", "null")
_SPLITS = ("test_s", "test_s", "test_s", "test_s", "test_u", "test_u", "test_n", "test_n")
TABLE = pd.DataFrame({
    "uid": [f"v{i // 2}_{i}_{name}_{i}" for i, name in enumerate(_NAMES)],
    "clip_id": [f"v{i // 2}" for i in range(len(_NAMES))],
    "fid": [1, 2, 1, 1, 1, 2, 0, 0],
    "split": _SPLITS,
    "grade": "",
    "dimension": ["spatial", "acoustic"] * 4,
    "text": ["The left one", "The one that sounds first"] * 4,
})  # fmt: skip


def make_predictions(num_expressions: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks (b t h w); every third expression has no object, and the first frame of each."""
    maker = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, num_expressions * NUM_FRAMES, 1, 6, 7, generator=maker)
    smooth = [functional.interpolate(part, size=(HEIGHT, WIDTH), mode="bilinear")[:, 0] for part in coarse]
    masks = (smooth[0] > 0.4).reshape(num_expressions, NUM_FRAMES, HEIGHT, WIDTH)
    probs = (3 * smooth[0] + 2 * smooth[1] - 2).sigmoid().reshape(masks.shape)
    masks[:, 0] = False
    masks[2::3] = False
    probs[1, 2] = 0.01
    return probs, masks


PROBS, MASKS = make_predictions(len(TABLE))


def record(batches: Iterable[Sequence[int]], store: str = "of-tests") -> Statistics:
    """The statistics of these expressions, batch by batch."""
    recorder = Recorder(table=TABLE, store=store)
    for rows in batches:
        recorder.add(list(rows), PROBS[list(rows)], MASKS[list(rows)])
    return recorder.statistics()

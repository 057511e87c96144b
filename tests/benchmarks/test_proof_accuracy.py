"""The share of seconds with the right object, counted by hand."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from refavs.metrics import Statistics

sys.path.insert(0, str(Path(__file__).parent))
from proof_accuracy import share_right


def test_only_decided_seconds_of_its_split_with_the_object_in_view_count() -> None:
    target, pred, hits = np.full((3, 4, 10), 8, dtype=np.uint32)
    target[0, 9] = 0  # out of view: the seconds 4 and 7 are left
    hits[0, 7] = 5  # 5 of 11: wrong
    hits[0, :4] = 0  # before anything is decided
    hits[1] = 0  # of another split
    pred[2, 4] = hits[2, 4] = 4  # exactly half: wrong, as 0.5 is not above 0.5
    expressions = pd.DataFrame({
        "split": ["test_s", "test_u", "test_s", "test_s"],
        "dimension": ["acoustic", "acoustic", "spatial+temporal", "acoustic+temporal"],
    })  # fmt: skip
    frames = {"target": target, "pred_50": pred, "hits_50": hits}
    both = Statistics(expressions=expressions, frames=frames, facts={})
    assert share_right([both.select(np.array([0, 1])), both.select(np.array([2, 3]))]) == {
        "acoustic": 0.5, "spatial+temporal": 2 / 3, "acoustic+temporal": 1.0,
    }  # fmt: skip

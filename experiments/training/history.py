"""The records of a trial's epochs: the best epoch, early stopping, and their file."""

import json
import math
from pathlib import Path
from typing import Any

from refavs.choices import SCORE
from refavs.files.atomic import write_atomically


def stalled(history: list[dict[str, Any]], patience: int) -> bool:
    """Whether val J has not improved in the last `patience` epochs; always False for a patience of 0."""
    return patience > 0 and len(history) >= best_epoch(history) + patience > patience


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Number of the first epoch with the highest val J; 0 without epochs."""
    scores = [record["metrics"].get(SCORE, -math.inf) for record in history]
    return scores.index(max(scores)) + 1 if scores else 0


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Writes one JSON line per epoch, atomically."""
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in history).encode())

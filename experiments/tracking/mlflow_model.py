"""A trained head as MLflow's python function, for `mlflow.pyfunc.load_model("models:/NAME@champion")`.

MLflow imports this module because a checkpoint's MLmodel names it; nothing is pickled. refavs must be installed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refavs.data.rle import encoded
from refavs.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

LOADER = "experiments.tracking.mlflow_model"
# Settings that `load_model(..., model_config={...})` may replace.
SETTINGS: dict[str, Any] = {"weights_dir": "", "device": "auto", "frames_per_second": 0.0, "memory": "all"}
VIDEO, EXPRESSION, MASKS, PROBABILITY = "video", "expression", "masks", "object_probability"


def _load_pyfunc(path: str, settings: Mapping[str, Any] | None = None) -> "MaskPredictor":
    """Loads the checkpoint in a folder; MLflow calls it."""
    import refavs

    told = {**SETTINGS, **(settings or {})}
    segmenter = refavs.load(path, weights_dir=told["weights_dir"] or None, device=told["device"])
    return MaskPredictor(segmenter, float(told["frames_per_second"]) or segmenter.fps, told["memory"])


class MaskPredictor:
    """Predicts masks for rows of a video and an expression.

    Args:
        segmenter: what `refavs.load` returns.
        memory: see `Segmenter.segment_video`.
    """

    def __init__(self, segmenter: Any, frames_per_second: float, memory: Any) -> None:
        self.segmenter, self.rate, self.memory = segmenter, frames_per_second, memory

    def predict(self, rows: "pd.DataFrame", params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Segments the object of each row's expression in the row's video.

        Args:
            rows: with the columns `video`, the path of a file, and `expression`.
            params: not used; MLflow passes it.

        Returns:
            The rows with two more columns: `masks`, COCO's run lengths of each sampled frame, and `object_probability`,
            the highest probability of a pixel in each of them.

        Raises:
            ConfigError: a column is missing.
            DatasetError: a video cannot be read.
        """
        from extract.media.film_stream import FilmStream, Span

        if lacking := {VIDEO, EXPRESSION} - set(rows.columns):
            raise ConfigError(f"the rows have no column {' and '.join(sorted(lacking))}; accepted: a DataFrame with "
                              f"the columns {VIDEO} and {EXPRESSION}")  # fmt: skip
        masks: list[dict[int, Any]] = [{} for _ in range(len(rows))]
        probabilities: list[dict[int, float]] = [{} for _ in range(len(rows))]
        places_of: dict[str, list[int]] = {}
        for place, video in enumerate(rows[VIDEO]):
            places_of.setdefault(str(video), []).append(place)
        for video, places in places_of.items():  # a video is decoded and encoded once for all its expressions
            film = FilmStream(Path(video).absolute(), Span(rate=self.rate))
            texts = rows[EXPRESSION].iloc[places].tolist()
            for found in self.segmenter.segment_video(film, texts, memory=self.memory):
                row = places[found.expression]
                masks[row].update(zip(found.steps.tolist(), map(encoded, found.masks), strict=True))
                probabilities[row].update(zip(found.steps.tolist(), found.object_probability.tolist(), strict=True))
        return rows.assign(**{
            MASKS: [_in_order(one) for one in masks],
            PROBABILITY: [np.round(_in_order(one), 6).tolist() for one in probabilities],
        })


def _in_order(by_step: Mapping[int, Any]) -> list[Any]:
    return [by_step[step] for step in sorted(by_step)]

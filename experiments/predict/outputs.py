"""The folder of one video's predictions: masks as PNG and as run lengths, overlay videos, and a summary."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.predict.overlay_video import Overlay, write_overlay_videos
from experiments.predict.segmenter import Segmenter, Stretch
from experiments.predict.stages import Stages
from experiments.predict.stored_features import StoredFeatures
from experiments.records.record_types import write_json
from extract.media.film_stream import FilmStream
from refavs.data.rle import decoded, encoded
from refavs.files.staged import is_half_written, staged

SEAL, OVERLAY, MASKS = "prediction.json", "overlay.mp4", "masks.jsonl"
Advance = Callable[[int], None]


class MaskFiles:
    """The masks of one expression: `<number>.png`, and a line for each picture in `masks.jsonl`.

    Attributes:
        areas_px: of each mask.
        object_probability: of each picture.
    """

    def __init__(self, folder: Path, rate: float, start_s: float) -> None:
        folder.mkdir()
        self.folder, self._rate, self._start_s = folder, rate, start_s
        self.areas_px: list[int] = []
        self.object_probability: list[float] = []
        self._waiting: dict[int, dict[str, Any]] = {}

    def add(self, found: Stretch) -> None:
        """Writes some masks. With several pictures per second they do not come in the order of time."""
        for step, mask, probability in zip(found.steps.tolist(), found.masks, found.object_probability, strict=True):
            Image.fromarray(mask).convert("L").save(self.folder / f"{step}.png", compress_level=1)
            self._waiting[step] = {
                "time_s": round(self._start_s + step / self._rate, 6), "area_px": int(mask.sum()),
                "object_probability": round(float(probability), 6), "segmentation": encoded(mask),
            }  # fmt: skip
        with (self.folder / MASKS).open("a") as file:
            while (line := self._waiting.pop(len(self.areas_px), None)) is not None:
                self.areas_px.append(line["area_px"])
                self.object_probability.append(line["object_probability"])
                file.write(json.dumps(line) + "\n")

    def masks(self) -> Iterator[np.ndarray]:
        """The masks in the order of time."""
        with (self.folder / MASKS).open() as file:
            for line in file:
                yield decoded(json.loads(line)["segmentation"])


def write_predictions(
    out: Path, segmenter: Segmenter, film: FilmStream, expressions: Sequence[str], request: dict[str, Any],
    advance: Advance, *, overlays: bool = True, stored: StoredFeatures | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Writes the predictions for a video into a folder, all or none; returns the content of prediction.json.

    Args:
        request: what was asked for; `finished` compares it with that of a later call.
        advance: called with the number of pictures done since the last call.
        stored: see `Segmenter.segment_video`.
    """
    stages = Stages()
    with staged(out, SEAL, _names_of) as folder:
        files = [MaskFiles(folder / str(number), film.span.rate, film.span.start_s)
                 for number in range(1, len(expressions) + 1)]  # fmt: skip
        for found in segmenter.segment_video(film, expressions, memory=request["memory"], stages=stages,
                                             stored=stored):  # fmt: skip
            with stages("mask files"):
                files[found.expression].add(found)
            advance(len(found.steps))
        if overlays:
            with stages("overlays"):
                write_overlay_videos(
                    film, [Overlay(each.folder / OVERLAY, text, each.masks())
                           for text, each in zip(expressions, files, strict=True)],
                    advance,
                )  # fmt: skip
        told = {
            "request": request, "num_frames": film.num_steps, "size": list(film.size), "silent": film.silent,
            "notes": list(film.notes), "stages_s": {name: round(s, 3) for name, s in stages.wall_s.items()},
            "s_per_frame": round(sum(stages.wall_s.values()) / film.num_steps, 4),
            "predictions": [
                {"expression": text, "folder": each.folder.name, "truncated": segmenter.run.is_cut(text),
                 "absent": not any(each.areas_px), "object_probability": each.object_probability,
                 "areas_px": each.areas_px}
                for text, each in zip(expressions, files, strict=True)
            ],
        }  # fmt: skip
        write_json(folder / SEAL, told)
    return told


def finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The content of prediction.json if the same was predicted before, else None."""
    try:
        told = json.loads((out / SEAL).read_text("utf-8"))
        same = told["request"] == json.loads(json.dumps(request))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told if same and all((out / name).is_file() for name in _names_of(out / SEAL)) else None


def is_ours(out: Path) -> bool:
    """Whether a folder can be written to: absent, empty, or made by this command."""
    ours = (out / SEAL).is_file() or is_half_written(out)
    return ours or not out.exists() or (out.is_dir() and not any(out.iterdir()))


def _names_of(seal: Path) -> Iterator[str]:
    """The files that a prediction.json lists; none if it is not one of ours."""
    try:
        told = json.loads(seal.read_text("utf-8"))
        places = [(str(int(one["folder"])), len(one["areas_px"])) for one in told["predictions"]]
        names = [MASKS, *[OVERLAY] * bool(told["request"]["overlays"])]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for folder, num_frames in places:
        yield from (f"{folder}/{name}" for name in (*names, *(f"{step}.png" for step in range(num_frames))))

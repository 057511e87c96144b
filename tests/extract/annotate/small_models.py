"""Small relatives of the models with random weights, saved as the hub has them, and stand-ins that do as told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.annotate.models import Detection, Detector, Frame, Maps, ScoredMask, Track, Tracker
from extract.annotate.records import Box
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise
from tests.support.small_networks import WRITERS

DETECTOR, TRACKER = "grounding-dino-tiny", "sam2.1-hiera-tiny"
WORDS = ("acoustic", "guitar", "man", "red", "circle", "dog")


def write_grounding_dino(root: Path) -> Any:
    """A Grounding DINO with a vocabulary of a few words, whose special ones have BERT's numbers."""
    ensure_torchvision()
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    swin = {"model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
            "window_size": 4, "out_indices": [2, 3, 4]}  # fmt: skip
    bert = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 1100, "max_position_embeddings": 256}  # fmt: skip
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=8,
    )).eval()  # fmt: skip
    randomise(model, 0)
    folder = root / DETECTOR
    model.save_pretrained(folder)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = iter([*WORDS, *letters, *(f"##{letter}" for letter in letters)])
    lines = [special.get(number) or (number > 103 and next(words, None)) or f"[unused{number}]"
             for number in range(1100)]  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(lines))
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "GroundingDinoImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 96},
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }))  # fmt: skip
    return model


def write_models(root: Path) -> Path:
    """Both models in one folder of weights."""
    write_grounding_dino(root)
    WRITERS[TRACKER](root)
    return root


@dataclass
class TellingDetector(Detector):
    """Finds what it was told, by clip, second and name.

    Attributes:
        told: boxes with their scores.
        asked: clip, second and names of each call.
    """

    told: Mapping[tuple[str, int, str], Sequence[tuple[Box, float]]]
    asked: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    name: str = "telling"

    def revision(self) -> str:
        return "told"

    def detect(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        self.asked.append((frame.clip, frame.second, tuple(names)))
        return [Detection(name=name, box=box, score=score, label=name)
                for name in names for box, score in self.told.get((frame.clip, frame.second, name), ())]  # fmt: skip


@dataclass
class BoxTracker(Tracker):
    """Fills boxes, and repeats the mask of the pivot in each second of its scene but those of `absent`.

    Attributes:
        absent: seconds in which no object shows.
        calls: seconds, prompts and pivots of each call of `track`.
    """

    absent: tuple[int, ...] = ()
    calls: list[tuple[list[int], dict[int, list[int]], dict[int, int]]] = field(default_factory=list)
    name: str = "boxes"

    def revision(self) -> str:
        return "drawn"

    def candidates(self, frame: Frame, boxes: Sequence[Box]) -> list[tuple[ScoredMask, ...]]:
        return [tuple(ScoredMask(mask=_filled(frame, box, border), iou_score=score)
                      for border, score in ((4, 0.3), (0, 0.9), (2, 0.5))) for box in boxes]  # fmt: skip

    def track(
        self, frames: Sequence[Frame], prompts: Mapping[int, Mapping[int, np.ndarray]], pivots: Mapping[int, int],
        maps: Maps | None = None,
    ) -> dict[int, Track]:  # fmt: skip
        seconds = [frame.second for frame in frames]
        self.calls.append((seconds, {fid: sorted(known) for fid, known in prompts.items()}, dict(pivots)))
        shows = np.array([second not in self.absent for second in seconds])
        return {fid: Track(masks=np.stack([known[pivots[fid]] & show for show in shows]),
                           presence=shows.astype(np.float32)) for fid, known in prompts.items()}  # fmt: skip


def _filled(frame: Frame, box: Box, border: int) -> np.ndarray:
    mask = np.zeros(frame.pixels.shape[:2], bool)
    x0, y0, x1, y1 = (round(value) for value in box)
    mask[y0 + border : y1 - border, x0 + border : x1 - border] = True
    return mask

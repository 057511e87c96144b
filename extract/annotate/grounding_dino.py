"""Grounding DINO: finds what a frame shows of some names."""

import itertools
from collections.abc import Collection, Iterable, Sequence
from difflib import SequenceMatcher
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image

from extract.annotate.models import Detection, Detector, Frame
from extract.encoders.hub_folder import CONFIG, PREPROCESSOR, HubFolder
from extract.encoders.networks import frozen, of_transformers
from extract.encoders.protocol import EncoderSetup
from extract.encoders.tokens import read_tokenizer, tokenizer_files, word_pieces
from extract.encoders.weights import WeightPart
from extract.pipeline.estimate import seconds_of
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision

UNUSED = (r".*position_ids", r".*relative_position_index")
CLS, SEP, STOP = 101, 102, 1012  # word pieces of BERT that the network knows by number
USUAL_SIZE = (750, 1333)  # of a frame of 16:9 as the network takes it
MOST_NAMES = 16  # in one pass; the network reads 256 word pieces
LEAST_SHARED = 3  # letters that a label and a name must share
# The published backbones, where they differ from Swin-T.
BACKBONES: dict[str, dict[str, Any]] = {
    "grounding-dino-tiny": {},
    "grounding-dino-base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
                            "image_size": 384},
}  # fmt: skip


class GroundingDino(Detector):
    """Grounding DINO of one size.

    Args:
        name: on the hub.
        setup: source of the weights, and the device.
        threshold: least score of a box.
        text_threshold: least score of a word that belongs to its label.
    """

    def __init__(self, name: str, setup: EncoderSetup, threshold: float, text_threshold: float) -> None:
        self.name, self._setup = name, setup
        self._threshold, self._text_threshold = threshold, text_threshold
        self._published = {"backbone_config": {"model_type": "swin", "out_indices": [2, 3, 4], **BACKBONES[name]}}
        self.files = HubFolder(repository=f"IDEA-Research/{name}", source=setup.weights)

    def revision(self) -> str:
        """The stamp of the weights."""
        return self.files.stamp()

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights, the sizes, the preprocessing and the tokenizer."""
        tokenizer = WeightPart(name=f"{self.name}, tokenizer", fetch=self.files.fetch, load=lambda: self._processor,
                               find=lambda: tokenizer_files(self.files, ("vocab.txt",))[0])  # fmt: skip
        return [*self.files.parts(self.name, lambda: self.network, CONFIG, PREPROCESSOR), tokenizer]

    @cached_property
    def network(self) -> Any:
        """The network in float32."""
        kind = of_transformers("grounding_dino.configuration_grounding_dino.GroundingDinoConfig")
        config = self.files.config(kind, self._published)
        kind = of_transformers("grounding_dino.modeling_grounding_dino.GroundingDinoForObjectDetection")
        return frozen(self.files.network(kind, config, UNUSED), self._setup.device, torch.float32)

    @cached_property
    def _processor(self) -> Any:
        """Preprocessing of pictures and names."""
        ensure_torchvision()
        from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
            GroundingDinoImageProcessorPil,
        )
        from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor
        from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

        words = read_tokenizer(tokenizer_files(self.files, ("vocab.txt",)), word_pieces)
        try:
            pictures = GroundingDinoImageProcessorPil.from_dict(self.files.settings({}, PREPROCESSOR))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{PREPROCESSOR} of {self.files.repository} cannot be used ({error}); fetch the files "
                               f"again by {self.files.fetch}") from error  # fmt: skip
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]",
                                            cls_token="[CLS]", sep_token="[SEP]")  # fmt: skip
        return GroundingDinoProcessor(pictures, tokenizer)

    def rehearse(self, computes: Collection[str]) -> dict[str, float]:
        """Of the network, for a wide frame and some words."""
        ids = torch.tensor([[CLS, *[STOP + 1] * 8, STOP, SEP]], device=self._setup.device)
        pixels = torch.zeros(1, 3, *USUAL_SIZE, device=self._setup.device)
        with torch.no_grad():
            return {"frame": seconds_of(lambda: self.network(pixel_values=pixels, input_ids=ids))}

    def detect(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        """All boxes above the threshold whose labels match a name."""
        parts = (names[first : first + MOST_NAMES] for first in range(0, len(names), MOST_NAMES))
        return list(itertools.chain.from_iterable(self._detected(frame, part) for part in parts))

    @torch.no_grad()
    def _detected(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        asked = {_as_label(name): name for name in names}
        inputs = self._processor(images=Image.fromarray(frame.pixels), text=[list(asked)], return_tensors="pt")
        outputs = self.network(**inputs.to(self._setup.device))
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], self._threshold, self._text_threshold, [frame.pixels.shape[:2]]
        )
        detections = []
        values = (found["scores"].tolist(), found["boxes"].tolist(), found["text_labels"])
        for score, box, label in zip(*values, strict=False):  # without a box there is one label, an empty one
            name = matched(label, asked)
            if name is not None:
                x0, y0, x1, y1 = box
                detections.append(Detection(name=asked[name], box=(x0, y0, x1, y1), score=score, label=label))
        return detections


def _as_label(name: str) -> str:
    """A name as the network reads it: a full stop ends a label."""
    return " ".join(name.lower().replace(".", " ").split())


def matched(label: str, names: Iterable[str]) -> str | None:
    """The name that shares most with a label, which may be a part of a name; None if no name shares enough.

    Of several the one that the label covers best.
    """
    if label in (known := list(names)):
        return label

    def shared(name: str) -> tuple[int, float]:
        match = SequenceMatcher(None, label, name, autojunk=False).find_longest_match()
        return match.size, match.size / len(name)

    best = max(known, key=shared)
    return best if shared(best)[0] >= min(LEAST_SHARED, len(best)) else None


tiny, base = (partial(GroundingDino, name) for name in BACKBONES)

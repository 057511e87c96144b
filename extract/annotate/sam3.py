"""SAM 3 as detector: every instance of a name, for those who may download its weights."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from extract.annotate.models import Detection, Detector, Frame
from extract.encoders.hub_folder import CONFIG, HubFolder
from extract.encoders.networks import frozen, of_transformers
from extract.encoders.protocol import EncoderSetup
from extract.encoders.tokens import clip_bpe, read_tokenizer, tokenizer_files
from extract.encoders.weights import WeightPart
from extract.pipeline.estimate import seconds_of

UNUSED = (r"tracker_model\..*", r"tracker_neck\..*")
MOST_WORD_PIECES = 32
TOKENIZER = ("vocab.json", "merges.txt")


class Sam3(Detector):
    """SAM 3's model for images; its video model's checkpoint holds it.

    Args:
        setup: source of the weights, and the device.
        threshold: least score of a box.
        text_threshold: not used; each name is asked for alone.
    """

    name = "sam3"

    def __init__(self, setup: EncoderSetup, threshold: float, text_threshold: float = 0.0) -> None:
        self._setup, self._threshold = setup, threshold
        self.files = HubFolder(repository="facebook/sam3", source=setup.weights, gated=True)

    def revision(self) -> str:
        """The stamp of the weights."""
        return self.files.stamp()

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights, the sizes and the tokenizer."""
        tokenizer = WeightPart(name="sam3, tokenizer", fetch=self.files.fetch, load=lambda: self._tokenizer,
                               find=lambda: tokenizer_files(self.files, TOKENIZER)[0])  # fmt: skip
        return [*self.files.parts("sam3", lambda: self.network, CONFIG), tokenizer]

    @cached_property
    def network(self) -> Any:
        """The network in float32."""
        kind = of_transformers("sam3.configuration_sam3.Sam3Config")

        def described(found: Mapping[str, Any]) -> Any:
            own = found["detector_config"] if found["model_type"] == "sam3_video" else found
            if own["model_type"] != kind.model_type:
                raise ValueError(f"it describes a {own['model_type']!r}, no 'sam3' or 'sam3_video'")
            return kind.from_dict({**own})

        sizes: dict[str, Any] = {**self.files.tower({"model_type": kind.model_type}, described)}
        config = kind.from_dict(sizes)
        network = self.files.network(of_transformers("sam3.modeling_sam3.Sam3Model"), config, UNUSED)
        return frozen(network, self._setup.device, torch.float32)

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(tokenizer_files(self.files, TOKENIZER), clip_bpe)

    @cached_property
    def _pictures(self) -> Any:
        from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

        side = self.network.config.image_size
        return Sam3ImageProcessor(size={"height": side, "width": side})

    @torch.no_grad()
    def detect(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        """All instances of each name; the frame is encoded once."""
        network, device = self.network, self._setup.device
        pixels = self._pictures(Image.fromarray(frame.pixels), return_tensors="pt")["pixel_values"].to(device)
        encoded, detections = network.get_vision_features(pixels), []
        for name in names:
            outputs = network(vision_embeds=encoded, **self._words(name))
            (found,) = self._pictures.post_process_instance_segmentation(
                outputs, self._threshold, target_sizes=[frame.pixels.shape[:2]]
            )
            for score, (x0, y0, x1, y1) in zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True):
                detections.append(Detection(name=name, box=(x0, y0, x1, y1), score=score, label=name))
        return detections

    def rehearse(self, computes: Collection[str]) -> dict[str, float]:
        """Of the network, for a frame and one name."""
        side = self.network.config.image_size
        pixels = torch.zeros(1, 3, side, side, device=self._setup.device)
        ids = torch.zeros(1, MOST_WORD_PIECES, dtype=torch.long, device=self._setup.device)
        with torch.no_grad():
            return {"frame": seconds_of(lambda: self.network(pixel_values=pixels, input_ids=ids))}

    def _words(self, name: str) -> dict[str, torch.Tensor]:
        """The word pieces of a name, filled up with the last of them."""
        ids = self._tokenizer.encode(name.lower()).ids
        ids = [*ids[: MOST_WORD_PIECES - 1], ids[-1]] if len(ids) > MOST_WORD_PIECES else ids
        num_empty = MOST_WORD_PIECES - len(ids)
        return {
            name: torch.tensor([values], device=self._setup.device) for name, values in
            (("input_ids", ids + ids[-1:] * num_empty), ("attention_mask", [1] * len(ids) + [0] * num_empty))
        }  # fmt: skip

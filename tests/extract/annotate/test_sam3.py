"""SAM 3 as detector: its checkpoints load, its boxes are those of transformers, and its licence is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extract.annotate.models import Frame
from extract.annotate.sam3 import Sam3
from extract.encoders.protocol import EncoderSetup
from extract.encoders.weights import NotFetched, WeightSource
from refavs.errors import WeightsError
from refavs.machine.torchvision_shim import ensure_torchvision
from tests.extract.hf_weights import randomise

pytestmark = pytest.mark.long
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small model for images in the hub's layout."""
    ensure_torchvision()
    from transformers import Sam3Config, Sam3Model

    root = tmp_path_factory.mktemp("weights")
    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "image_size": 112, "window_size": 4, "global_attn_indexes": [1],
                "pretrain_image_size": 112}  # fmt: skip
    small = {"hidden_size": 32, "num_attention_heads": 2}
    parts = {**small, "intermediate_size": 32, "num_layers": 1}
    config = Sam3Config(
        vision_config={"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 32,
                       "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
        text_config={"model_type": "clip_text_model", "vocab_size": 60, "hidden_size": 16, "intermediate_size": 16,
                     "projection_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "max_position_embeddings": 32, "eos_token_id": 1, "bos_token_id": 0},
        geometry_encoder_config=parts, detr_encoder_config=parts, detr_decoder_config={**parts, "num_queries": 6},
        mask_decoder_config=small,
    )  # fmt: skip
    model = Sam3Model(config).eval()
    randomise(model, 0)
    folder = root / "sam3"
    model.save_pretrained(folder)
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return root, model


@pytest.fixture(scope="module")
def frame() -> Frame:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    return Frame(clip="a", second=0, pixels=pixels)


def detector(root: Path, threshold: float = 0.0, **options: Any) -> Sam3:
    return Sam3(EncoderSetup(weights=WeightSource(folder=root, **options)), threshold)


@torch.no_grad()
def test_boxes_and_scores_are_those_of_transformers(saved: tuple[Path, Any], frame: Frame) -> None:
    from transformers.models.clip.tokenization_clip import CLIPTokenizer
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor
    from transformers.models.sam3.processing_sam3 import Sam3Processor

    root, model = saved
    files = (str(root / "sam3" / "vocab.json"), str(root / "sam3" / "merges.txt"))
    pictures = Sam3ImageProcessor(size={"height": 112, "width": 112})
    processor = Sam3Processor(pictures, CLIPTokenizer(vocab=files[0], merges=files[1]))
    found = detector(root).detect(frame, ["dog", "cat"])
    for name in ("dog", "cat"):
        inputs = processor(images=Image.fromarray(frame.pixels), text=name, return_tensors="pt")
        outputs = model(**{key: inputs[key] for key in ("pixel_values", "input_ids", "attention_mask")})
        (expected,) = processor.post_process_instance_segmentation(outputs, 0.0, target_sizes=[(48, 80)])
        ours = [each for each in found if each.name == name]
        np.testing.assert_allclose([each.score for each in ours], expected["scores"].numpy(), atol=1e-5)
        np.testing.assert_allclose([each.box for each in ours], expected["boxes"].numpy(), atol=1e-3)
        assert len(ours) == 6
    assert detector(root, 1.0).detect(frame, ["dog"]) == []


def test_the_checkpoint_of_the_video_model_holds_it(saved: tuple[Path, Any], frame: Frame, tmp_path: Path) -> None:
    whole, folder = saved[0] / "sam3", tmp_path / "sam3"
    folder.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((whole / name).read_bytes())
    config = json.loads((whole / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    state = {f"detector_model.{name}": value for name, value in load_file(whole / "model.safetensors").items()}
    state["tracker_model.no_memory_embedding"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    assert detector(tmp_path).detect(frame, ["dog"]) == detector(saved[0]).detect(frame, ["dog"])


def test_another_network_is_refused(saved: tuple[Path, Any], frame: Frame, tmp_path: Path) -> None:
    (tmp_path / "sam3").mkdir()
    (tmp_path / "sam3" / "model.safetensors").write_bytes(b"")
    (tmp_path / "sam3" / "config.json").write_text('{"model_type": "sam2"}')
    with pytest.raises(WeightsError, match="it describes a 'sam2', no 'sam3'"):
        detector(tmp_path).detect(frame, ["dog"])


def test_the_licence_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    gated = Sam3(EncoderSetup(weights=WeightSource(fetch=False)), 0.25)
    with pytest.raises(NotFetched, match=r"needs a token \(accept the licence at hf.co/facebook/sam3, then hf auth"):
        gated.revision()
    assert all("hf auth login" in part.fetch for part in gated.weight_parts())

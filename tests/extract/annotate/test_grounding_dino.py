"""Grounding DINO, against transformers' own preprocessing, network and labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from extract.annotate.grounding_dino import GroundingDino, matched, tiny
from extract.annotate.models import Frame
from extract.encoders.protocol import EncoderSetup
from extract.encoders.weights import OtherArchitecture, WeightSource
from refavs.errors import WeightsError
from tests.extract.annotate.small_models import DETECTOR, write_grounding_dino

NAMES = ["Acoustic Guitar", "man", "red circle"]


@pytest.mark.parametrize(("label", "name"), [
    ("acoustic guitar", "acoustic guitar"), ("acoustic", "acoustic guitar"), ("bass guitar", "bass guitar"),
    ("bass", "bass guitar"), ("##tic", "acoustic guitar"), ("a man", "man"), ("", None), ("zz", None),
    ("man dog", "man"), ("ox", "ox"), ("acoustic guitar. [SEP]", "acoustic guitar"), ("woman", "woman"),
])  # fmt: skip
def test_a_label_is_the_name_that_it_shares_most_with(label: str, name: str | None) -> None:
    assert matched(label, ["acoustic guitar", "man", "woman", "dog", "ox", "bass guitar"]) == name


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("weights")
    return root, write_grounding_dino(root)


def detector(root: Path, threshold: float = 0.25) -> GroundingDino:
    return tiny(EncoderSetup(weights=WeightSource(folder=root)), threshold, 0.25)


@pytest.fixture(scope="module")
def frame() -> Frame:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    return Frame(clip="a", second=0, pixels=pixels)


@pytest.mark.long
@torch.no_grad()
def test_boxes_scores_and_labels_are_those_of_transformers(weights: tuple[Path, Any], frame: Frame) -> None:
    from transformers.models.bert.tokenization_bert import BertTokenizer
    from transformers.models.grounding_dino.image_processing_grounding_dino import GroundingDinoImageProcessor
    from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

    root, model = weights
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    processor = GroundingDinoProcessor(pictures, BertTokenizer(vocab=str(root / DETECTOR / "vocab.txt")))
    inputs = processor(images=Image.fromarray(frame.pixels), text=[NAMES], return_tensors="pt")
    (expected,) = processor.post_process_grounded_object_detection(
        model(**inputs), inputs["input_ids"], 0.25, 0.25, [frame.pixels.shape[:2]]
    )
    found = detector(root).detect(frame, NAMES)
    assert [each.label for each in found] == expected["text_labels"] and len(found) > 3
    np.testing.assert_allclose([each.score for each in found], expected["scores"].numpy(), atol=0.02)
    np.testing.assert_allclose([each.box for each in found], expected["boxes"].numpy(), atol=1.0)
    assert {each.name for each in found} <= set(NAMES), "names as given, not as the network reads them"


@pytest.mark.long
def test_many_names_take_several_passes(weights: tuple[Path, Any], frame: Frame) -> None:
    found = detector(weights[0], 0.0)
    asked: list[int] = []
    inner = found.network.forward

    def count(*arguments: Any, **options: Any) -> Any:
        asked.append(options["input_ids"].shape[1])
        return inner(*arguments, **options)

    found.network.forward = count
    found.detect(frame, [f"dog {letter}" for letter in "abcdefghijklmnopqrst"])
    assert len(asked) == 2 and asked[0] > asked[1]


@pytest.mark.long
def test_nothing_lies_above_a_threshold_of_one(weights: tuple[Path, Any], frame: Frame) -> None:
    assert detector(weights[0], 1.0).detect(frame, NAMES) == []


def test_missing_files_are_told_as_by_the_encoders(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights-dir .* has none of grounding-dino-tiny/model.safetensors"):
        detector(tmp_path).revision()


@pytest.mark.long
def test_damaged_files_are_named(weights: tuple[Path, Any], frame: Frame, tmp_path: Path) -> None:
    write_grounding_dino(tmp_path)
    folder = tmp_path / DETECTOR
    settings = folder / "preprocessor_config.json"
    whole = settings.read_text()
    settings.write_text(json.dumps({"size": "large"}))
    with pytest.raises(WeightsError, match=r"preprocessor_config.json of IDEA-Research/grounding-dino-tiny cannot be"):
        detector(tmp_path).detect(frame, NAMES)
    settings.write_text(whole)
    state = load_file(folder / "model.safetensors")
    del state["model.level_embed"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(OtherArchitecture, match=r"the file lacks model.level_embed; fetch the files again by hf downl"):
        detector(tmp_path).detect(frame, NAMES)
    (folder / "vocab.txt").unlink()
    with pytest.raises(WeightsError, match=r"none of grounding-dino-tiny/tokenizer.json, grounding-dino-tiny/vocab"):
        detector(tmp_path).detect(frame, NAMES)


@pytest.mark.long
def test_a_rehearsal_takes_weights_of_zero(weights: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("extract.annotate.grounding_dino.USUAL_SIZE", (64, 96))
    source = WeightSource(kind="random", seed=None, folder=weights[0])
    blank = tiny(EncoderSetup(weights=source), 0.25, 0.25)
    assert blank.rehearse(("frame",))["frame"] > 0

"""Every encoder gives the outputs of its reference class, from files as the hub has them."""

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.samples import sampled

MODALITIES = [name for name in ("text", "audio", "visual") if importlib.util.find_spec(f"tests.extract.parity.{name}")]
CASES: dict[str, Callable[[Path], float]] = {
    name: run
    for modality in MODALITIES
    for name, run in importlib.import_module(f"tests.extract.parity.{modality}").CASES.items()
}
TOLERANCE = 1e-5  # of the largest value, in fp32


# Sizes of a family differ by numbers alone, and a timm network is named by whoever wants it.
OTHERS = re.compile(r"-(base|large|xl|huge|medium|small|base-plus)\b|vit[bl]16|b5$|timm:swin|vggish")
SMALLEST = ("roberta-base", "bert-base-uncased", "flan-t5-small", "clip-text-base-patch32", "clip-vit-base-patch32",
            "dinov2-small", "dinov2-with-registers-small", "sam-vit-base", "whisper-large-v3")  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", sampled(CASES, lambda name: name in SMALLEST or not OTHERS.search(name)))
def test_encoder_equals_its_reference(name: str, tmp_path: Path) -> None:
    assert CASES[name](tmp_path) <= TOLERANCE

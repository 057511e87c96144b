"""Every encoder gives the outputs of its reference class, from files as the hub has them."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

MODALITIES = [name for name in ("text", "audio", "visual") if importlib.util.find_spec(f"tests.extract.parity.{name}")]
CASES: dict[str, Callable[[Path], float]] = {
    name: run
    for modality in MODALITIES
    for name, run in importlib.import_module(f"tests.extract.parity.{modality}").CASES.items()
}
TOLERANCE = 1e-5  # of the largest value, in fp32


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_encoder_equals_its_reference(name: str, tmp_path: Path) -> None:
    assert CASES[name](tmp_path) <= TOLERANCE

"""Shared fixtures; shapes written in annotations of `refavs` are checked at run time in every test."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("refavs", "beartype.beartype")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder with the benchmark's metadata and the golden metrics, which the repository does not carry."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: the real metadata and golden values are not part of the repository")
    return SHARED

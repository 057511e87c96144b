"""Shared fixtures; shapes written in annotations of `refavs` are checked at run time in every test."""

import os
from pathlib import Path

# Before torch is imported: two processes of tests with two threads each wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and the commands that they start keep out of the user's cache."""
    os.environ["REFAVS_CACHE"] = str(tmp_path_factory.mktemp("cache"))

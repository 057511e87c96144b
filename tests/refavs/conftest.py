"""A small finished store for the tests of the store and its readers."""

import shutil
from pathlib import Path

import pytest

from tests.refavs import small_store as small


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store that no test changes."""
    root = tmp_path_factory.mktemp("built") / "s"
    small.write_store(root)
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A finished store of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "s"))

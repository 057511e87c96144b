"""A small finished store for the tests of the store and its readers."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refavs import small_store as small


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Neither a killed process nor a full disk loses what fsync guards, and it is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


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

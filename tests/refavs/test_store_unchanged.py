"""Whoever reads a store finds out that another one has taken its place; a store that grows stays the same one."""

import shutil
from pathlib import Path

import pytest

from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.unchanged import refuse_exchanged
from tests.refavs import small_store as small


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of the same clips and sizes whose values differ."""
    folder = tmp_path_factory.mktemp("stores")
    small.write_store(folder / "mine")
    with pytest.MonkeyPatch.context() as patch:
        right = small.row_of
        patch.setattr(small, "row_of", lambda key, specs: right(f"other {key}", specs))
        small.write_store(folder / "other")
    return folder / "mine", folder / "other"


def exchange(root: Path, other: Path) -> None:
    """Puts a copy of `other` in the place of the store at `root`."""
    root.rename(root.with_name("away"))
    shutil.copytree(other, root)


def test_untouched_store_is_the_one_that_was_opened(stores: tuple[Path, Path]) -> None:
    store = FeatureStore(stores[0])
    refuse_exchanged(store, store.fingerprint)


def test_store_exchanged_after_it_was_opened_is_refused(stores: tuple[Path, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(stores[0], tmp_path / "s"))
    store = FeatureStore(root)
    exchange(root, stores[1])
    with pytest.raises(StoreError, match=r"no longer the one that was opened there .*replaced.*put the store back"):
        refuse_exchanged(store, store.fingerprint)


@pytest.mark.parametrize("before", [False, True])
def test_exchanged_store_whose_extraction_did_not_finish_is_refused(
    stores: tuple[Path, Path], tmp_path: Path, before: bool
) -> None:
    root, other = (Path(shutil.copytree(path, tmp_path / name)) for path, name in zip(stores, "so", strict=True))
    unfinished = (other / "zarr.json", root / "zarr.json") if before else (other / "zarr.json",)
    for file in unfinished:
        small.open_writer(file.parent).plan(small.VISUAL, [["z"]])
    store = FeatureStore(root)
    exchange(root, other)
    with pytest.raises(StoreError, match="no longer the one that was opened"):
        refuse_exchanged(store)


def test_store_exchanged_before_it_was_opened_is_refused_by_its_fingerprint(stores: tuple[Path, Path]) -> None:
    planned = FeatureStore(stores[0]).fingerprint
    with pytest.raises(StoreError, match=rf"is {FeatureStore(stores[1]).fingerprint}, this work was planned with"):
        refuse_exchanged(FeatureStore(stores[1]), planned)


def test_store_that_is_gone_is_refused(stores: tuple[Path, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(stores[0], tmp_path / "s"))
    store = FeatureStore(root)
    root.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="no feature store at"):
        refuse_exchanged(store)


def test_store_that_grows_is_the_same_one(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", small.CLIPS[:3])
    store = FeatureStore(tmp_path / "s")
    writer = small.open_writer(tmp_path / "s")
    small.add_clips(writer, small.CLIPS)
    refuse_exchanged(store, store.fingerprint)
    small.write_content(writer)
    writer.write_expressions(small.expressions(writer))
    writer.finalise()
    refuse_exchanged(store, store.fingerprint)


def test_store_without_a_stream_is_the_same_one_for_who_does_not_read_it(tmp_path: Path) -> None:
    small.write_store(tmp_path / "s", streams=small.STREAMS | {"audio/clap": small.STREAMS[small.SOUND]})
    vggish, clap = (FeatureStore(tmp_path / "s", {"audio": name}) for name in ("vggish", "clap"))
    writer = small.open_writer(tmp_path / "s")
    assert writer.drop("audio/clap") == ["audio/clap"]
    writer.finalise()
    refuse_exchanged(vggish)
    with pytest.raises(StoreError, match="no longer the one that was opened there"):
        refuse_exchanged(clap)

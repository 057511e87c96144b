"""What is damaged is dropped, and an extraction that runs again makes the same store of what is left."""

from pathlib import Path

import pytest

from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.columns import table_record
from refavs.store.format.commits import record_name
from refavs.store.repair import drop_damaged, restore_root
from refavs.store.verify import verify
from tests.refavs import small_store as small

FAILING = ("d",)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, of which one clip failed; no test changes it."""
    root = tmp_path_factory.mktemp("built") / "s"
    small.write_store(root, failing=FAILING)
    return root


def mended(built: Path, root: Path) -> list[str]:
    """Drops what is damaged, computes what is missing, and compares the store with what it was."""
    dropped = drop_damaged(LocalFolder(root), verify(root).damage)
    small.write_store(root, failing=FAILING)
    assert small.files_of(root) == small.files_of(built) and not verify(root).damage
    return dropped


@pytest.mark.parametrize(
    ("file", "dropped"),
    [
        (f"{small.MAPS}/c.0.0.0.0.0", [record_name(small.VISUAL, 0)]),
        (f"{small.COARSE}/c.1.0.0.0.0", [record_name(small.VISUAL, 1)]),
        (f"{small.AUDIO}/c.2.0.0", [record_name(small.SOUND, 2)]),
        (f"{small.VALID}/c.0.0", [record_name(small.TEXT, 0)]),
        ("objects/labelled/c.1.0", [record_name("objects", 1), table_record("expressions")]),
        ("expressions/uid/c.0.0", [table_record("expressions")]),
        ("clips/id/c.0.0", [table_record("clips"), table_record("expressions")]),
        (record_name(small.SOUND, 1), [record_name(small.SOUND, 1)]),
        (table_record("text"), [table_record("text"), table_record("expressions")]),
        (f"clips/{small.VISUAL}/row/c.0", []),
        (f"{small.MAPS}/zarr.json", []),
        ("commits/listing.json", []),
    ],
)
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_damaged_file_comes_back_byte_for_byte(
    built: Path, root: Path, file: str, dropped: list[str], how: str
) -> None:
    path = root / file
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.unlink()
    if how == "flipped":
        path.write_bytes(data)
    found = mended(built, root)
    assert found == [name for name in dropped if name in found] and (set(found) == set(dropped) or "objects" in file)


def test_nothing_else_is_written_again(built: Path, root: Path) -> None:
    (root / small.MAPS / "c.0.0.0.0.0").write_bytes(b"x")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    mended(built, root)
    changed = {path.relative_to(root).as_posix() for path, facts in before.items()
               if (path.stat().st_ino, path.stat().st_mtime_ns) != facts}  # fmt: skip
    shards = {f"{path}/c.0.0.0.0.0" for path in (small.MAPS, small.COARSE)}
    descriptions = {f"{path}/zarr.json" for path in (small.MAPS, small.COARSE)}  # without statistics meanwhile
    assert changed == shards | descriptions | {record_name(small.VISUAL, 0), "zarr.json"}


@pytest.mark.long
def test_all_shards_can_go(built: Path, root: Path) -> None:
    for path in root.rglob("c.*"):
        if path.parent.relative_to(root).as_posix() in FeatureStore(built).specs:
            path.unlink()
    assert len(mended(built, root)) == 9


def test_description_comes_back_from_its_copy(built: Path, root: Path) -> None:
    folder = LocalFolder(root)
    assert not restore_root(folder)
    for data in (b"{}", (root / "zarr.json").read_bytes().replace(b"small", b"large")):
        (root / "zarr.json").write_bytes(data)
        assert restore_root(folder) and small.files_of(root) == small.files_of(built)

"""What lies in or beside a store and is not of it stays as it is: no link is followed in writing, none removed."""

import os
from pathlib import Path

import pytest

from refavs.errors import StoreError
from refavs.files.atomic import write_atomically
from refavs.files.partials import partial_path, partials_of, without_mark
from refavs.store import FeatureStore, StoreWriter
from refavs.store.backends.base import LocalFolder, is_stray
from refavs.store.columns import table_record
from refavs.store.hdf5.exchange import export, import_
from refavs.store.verify import verify
from tests.refavs import small_store as small


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Somebody's folder, which must stay as `precious` says."""
    folder = tmp_path / "mine"
    for name in precious(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return folder


def precious(folder: Path) -> list[str]:
    return ["thesis.txt", "uid/c.0.0", "uid/zarr.json", "zarr.json", "film.mkv.partial", "c.0.0.1-0badcafe.partial"]


def assert_untouched(folder: Path) -> None:
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == dict.fromkeys(precious(folder), "mine")


def linked(root: Path, name: str, to: Path) -> Path:
    """Puts a link to another folder in the place of a part of the store."""
    (root / name).rename(root.with_name("moved"))
    (root / name).symlink_to(to)
    return root / name


def test_expressions_that_are_a_link_to_a_folder_are_not_written(root: Path, mine: Path) -> None:
    link = linked(root, "expressions", mine)
    (root / table_record("expressions")).unlink()
    with pytest.raises(StoreError, match=rf"{link} is a symbolic link \(to {mine}\).*nor?.*put the folder itself"):
        small.write_store(root)
    assert_untouched(mine)


def test_column_that_is_a_link_is_not_written(root: Path, mine: Path) -> None:
    linked(root, "expressions/uid", mine)
    writer = small.open_writer(root)
    with pytest.raises(StoreError, match="expressions/uid is a symbolic link"):
        writer.write_expressions(small.expressions(writer).assign(uid="new"))
    assert_untouched(mine)


@pytest.mark.parametrize("name", ["clips", "clips/visual", "commits", "text/roberta"])
def test_part_that_is_a_link_is_read_and_not_written(root: Path, mine: Path, name: str) -> None:
    away = root.with_name("moved")
    linked(root, name, away)
    assert len(FeatureStore(root)) == 10 and not verify(root).damage
    small.write_store(root)  # complete: nothing to write
    before = small.files_of(away)
    with pytest.raises(StoreError, match=rf"s/{name} is a symbolic link"):
        small.add_clips(small.open_writer(root), ["f"])
        small.write_rows(small.open_writer(root), small.TEXT, [small.text_key("new")])
    assert small.files_of(away) == before


def test_store_that_is_named_by_a_link_is_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    small.add_clips(small.open_writer(tmp_path / "link"), ["f"])
    assert FeatureStore(root).clips["id"].tolist() == [*small.CLIPS, "f"]


def test_lock_that_is_a_link_is_not_followed(root: Path, mine: Path) -> None:
    (root / ".lock").symlink_to(mine / "new")
    with pytest.raises(OSError, match="symbolic link"):
        LocalFolder(root).swap("zarr.json", b"", b"")
    assert_untouched(mine)


def test_columns_of_others_beside_the_expressions_stay(root: Path) -> None:
    notes = [root / "expressions" / name for name in ("notes.txt", "mine/zarr.json", "mine/c.0", "uid/thoughts.txt")]
    for path in notes:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    writer = small.open_writer(root)
    writer.write_expressions(small.expressions(writer).assign(fid=2))
    assert [path.read_text() for path in notes] == ["mine"] * 4


def test_column_that_a_new_table_lacks_goes(root: Path) -> None:
    writer = small.open_writer(root)
    writer.write_expressions(small.expressions(writer).assign(extra="x", count=1))
    assert {path.name for path in (root / "expressions/extra").iterdir()} == {"zarr.json", "c.0.0"}
    writer.write_expressions(small.expressions(writer))
    assert not list((root / "expressions").glob("extra/*")) and not list((root / "expressions").glob("count/*"))


@pytest.mark.parametrize(
    "name", ["film.mkv.partial", "film.mkv.12-0badcafe.partial", "lease.json", "zarr.json.partial", "a.json.partial"]
)
def test_folder_with_other_files_is_refused(built: Path, tmp_path: Path, name: str) -> None:
    export(built, tmp_path / "s.h5")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text('{"tenant": "mine"}')
    for make in (small.open_writer, lambda out: import_(tmp_path / "s.h5", out)):
        with pytest.raises(StoreError, match="holds files but no feature store; name an empty or a new folder"):
            make(tmp_path / "out")
    assert small.files_of(tmp_path / "out") == {name: b'{"tenant": "mine"}'}


def test_sweep_removes_only_leftovers_of_writers(root: Path) -> None:
    others = ["film.mkv.partial", "clips/film.mkv.12-0badcafe.partial", "c.0.0.partial", "zarr.json.1-2.partial"]
    left = ["zarr.json.12-0badcafe.partial", "clips/c.0.0.12-0badcafe.partial", "lease.json.1-00000000.partial"]
    for name in (*others, *left):
        (root / name).write_text("x")
    assert sorted(LocalFolder(root).sweep()) == sorted(left)
    assert all((root / name).exists() for name in others) and not any(map(is_stray, others))


def test_temporary_name_fits_beside_the_longest_name(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127, "x" * 214, "short"):
        path = tmp_path / name
        write_atomically(path, b"data")
        assert path.read_bytes() == b"data" and list(tmp_path.iterdir()) == [path]
        partial = partial_path(path)
        partial.touch()
        assert partials_of(path) == [partial] and partials_of(path.with_name(f"{name[:-1]}y")) == []
        assert (without_mark(partial.name) == name) == (name == "short" or len(name) == 214)
        path.unlink()
        partial.unlink()


def test_store_in_a_folder_with_a_non_utf8_name_works(root: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(root.parent) + b"/caf\xe9"))
    root.rename(odd)
    assert verify(odd).damage == () and len(list(FeatureStore(odd))) == 10
    small.add_clips(StoreWriter.attach(odd), ["f"])
    export(odd, odd.with_suffix(".h5"))
    import_(odd.with_suffix(".h5"), odd.with_name("back"))
    (odd / small.MAPS / "c.0.0.0.0.0").write_bytes(b"x")
    (damage,) = verify(odd).damage
    assert damage.keys == ("a", "b")

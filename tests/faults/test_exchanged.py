"""Files of a store that are gone, cut, or in the place of others: each is found, named, and mended by the command."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refavs.errors import StoreError
from refavs.store.format.commits import record_name
from refavs.store.format.shard import shard_name
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from tests.refavs import small_store as small

MAP = small.STREAMS[small.VISUAL].arrays[0]
# As large as the maps beside them, so that neither size nor checksums inside the file tell them apart.
STREAMS = small.STREAMS | {
    small.VISUAL: replace(
        small.STREAMS[small.VISUAL], arrays=(*small.STREAMS[small.VISUAL].arrays, replace(MAP, name="twin"))
    ),
    small.BACKBONE_STREAM: replace(small.LEVEL, arrays=(replace(MAP, name="res2"),)),
}
MAPS, TWINS, LEVELS = (
    [f"{path}/c.{index}.0.0.0.0" for index in range(3)]
    for path in (small.MAPS, small.MAPS.replace("mask_features", "twin"), small.BACKBONE)
)
RECORDS = [f"commits/{small.VISUAL}/{index:05d}.json" for index in range(3)]
TEXT = f"{small.FEATURES}/c.0.0.0"
NAMES = {small.content_key(stream, clip): clip for stream in (small.VISUAL, small.SOUND) for clip in small.CLIPS} | {
    small.text_key(text): text for text in small.TEXTS
}
Change = Callable[[Path, Path], object]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of three shards of clips that no test changes."""
    root = tmp_path_factory.mktemp("built") / "s"
    small.write_store(root, streams=STREAMS)
    return root


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same clips and sizes whose encoder has other weights, so with other values."""
    root = tmp_path_factory.mktemp("other") / "s"
    visual = STREAMS[small.VISUAL]
    changed = replace(visual, fingerprint=visual.fingerprint | {"weights": "random:9"})
    with pytest.MonkeyPatch.context() as patch:
        right = small.row_of
        patch.setattr(small, "row_of", lambda key, specs: right(f"other {key}", specs))
        small.write_store(root, streams=STREAMS | {small.VISUAL: changed})
    return root


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the same clips, sizes and fingerprints with other values, as a faulty machine might make."""
    root = tmp_path_factory.mktemp("twin") / "s"
    with pytest.MonkeyPatch.context() as patch:
        right = small.row_of
        patch.setattr(small, "row_of", lambda key, specs: right(f"twin {key}", specs))
        small.write_store(root, streams=STREAMS)
    return root


def cut(name: str, num_bytes: int) -> Change:
    return lambda root, other: os.truncate(root / name, (root / name).stat().st_size + num_bytes)


def remove(name: str) -> Change:
    return lambda root, other: (root / name).unlink()


def copy(source: str, target: str) -> Change:
    return lambda root, other: shutil.copyfile(root / source, root / target)


def from_other(name: str) -> Change:
    return lambda root, other: shutil.copyfile(other / name, root / name)


def swap(first: str, second: str) -> Change:
    def change(root: Path, other: Path) -> None:
        data = (root / first).read_bytes()
        shutil.copyfile(root / second, root / first)
        (root / second).write_bytes(data)

    return change


# Name: what is done, the files that verify names, and the keys that it says are lost.
SHARD_FAULTS: dict[str, tuple[Change, list[str], set[str]]] = {
    "shard removed": (remove(MAPS[0]), [MAPS[0]], {"a", "b"}),
    "shard of texts removed": (remove(TEXT), [TEXT], set(small.TEXTS)),
    "shard emptied": (lambda root, other: os.truncate(root / MAPS[0], 0), [MAPS[0]], {"a", "b"}),
    "shard cut by a byte": (cut(MAPS[1], -1), [MAPS[1]], {"c", "d"}),
    "shard cut in a row": (cut(MAPS[1], -900), [MAPS[1]], {"c", "d"}),
    "shard with a byte more": (cut(MAPS[1], 1), [MAPS[1]], {"c", "d"}),
    "shard of zeros": (lambda root, other: (root / MAPS[0]).write_bytes(bytes((root / MAPS[0]).stat().st_size)),
                       [MAPS[0]], {"a", "b"}),
    "another shard of the same size": (copy(MAPS[1], MAPS[0]), [MAPS[0]], {"a", "b"}),
    "two shards exchanged": (swap(MAPS[0], MAPS[1]), MAPS[:2], {"a", "b", "c", "d"}),
    "two arrays exchanged": (swap(MAPS[0], TWINS[0]), [MAPS[0], TWINS[0]], {"a", "b"}),
    "arrays of two streams exchanged": (swap(MAPS[0], LEVELS[0]), [MAPS[0], LEVELS[0]], {"a", "b"}),
    "a shorter shard": (copy(MAPS[2], MAPS[0]), [MAPS[0]], {"a", "b"}),
    "a folder in its place": (lambda root, other: ((root / MAPS[0]).unlink(), (root / MAPS[0]).mkdir()),
                              [MAPS[0]], {"a", "b"}),
    "the same shard of another store": (from_other(MAPS[0]), [MAPS[0]], {"a", "b"}),
}  # fmt: skip


def read_all(root: Path) -> set[str]:
    """Clips, objects and texts of which a row cannot be read; what can be read must be right."""
    store, lost = FeatureStore(root), set()
    for record in store.records:
        for key, row in record.rows.items():
            for spec in store.schema.tables[record.table].arrays:
                try:
                    found = store.read(spec.path, row).numpy()
                except StoreError as error:
                    assert f"{spec.path} of {key!r} (row {row} of {record.table})" in str(error)
                    lost.add(NAMES.get(key, key))
                    continue
                np.testing.assert_array_equal(found, small.row_of(key, [spec])[spec.name])
    return lost


def mend(root: Path, built: Path, files: list[str]) -> None:
    """Does what the messages say, and compares the outcome with the store as it was."""
    specs = FeatureStore(built).specs
    for name in files:
        if (root / name).is_dir():
            shutil.rmtree(root / name)
        path, _, file = name.rpartition("/")
        record = record_name(specs[path].table, int(file.split(".")[1])) if path in specs else name
        (root / record).unlink(missing_ok=True)
    small.write_store(root, streams=STREAMS)
    assert small.files_of(root) == small.files_of(built) and not verify(root).damage


@pytest.mark.long
@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_shard_that_is_not_the_one_that_was_committed(
    built: Path, other: Path, tmp_path: Path, fault: str
) -> None:
    change, files, keys = SHARD_FAULTS[fault]
    root = Path(shutil.copytree(built, tmp_path / "s"))
    change(root, other)
    assert read_all(root) == keys
    damage = verify(root).damage
    assert {found.where for found in damage} == set(files)
    assert {key for found in damage for key in found.keys} == keys
    mend(root, built, files)


@pytest.mark.long
def test_shards_of_stores_with_equal_fingerprints_are_distinguished(built: Path, twin: Path, tmp_path: Path) -> None:
    for name in MAPS:
        root = Path(shutil.copytree(built, tmp_path / name.replace("/", "_")))
        shutil.copyfile(twin / name, root / name)
        assert {found.where for found in verify(root).damage} == {name} and read_all(root)
        mend(root, built, [name])


def test_masks_without_their_record_are_missed_at_once(built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    (root / "commits/objects/00001.json").unlink()
    with pytest.raises(StoreError, match=r"need row 3 of objects, which is missing \(2 such rows\)"):
        FeatureStore(root)
    damage = {(found.where, found.keys) for found in verify(root).damage}
    assert ("commits/objects/00001.json", ("d/1", "e/1")) in damage
    mend(root, built, [])


def test_shard_without_its_record_is_not_seen_and_is_written_again(built: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    (root / RECORDS[1]).unlink()
    store = FeatureStore(root)
    assert not store.finished
    with pytest.raises(StoreError, match=rf"has no {small.MAPS} of 'c'; run refavs-extract with the stream"):
        store.rows(small.MAPS, [1, 2])
    verdict = verify(root)
    assert (RECORDS[1], ("c", "d")) in {(found.where, found.keys) for found in verdict.damage}
    assert MAPS[1] in verdict.uncommitted
    mend(root, built, [])


SPEAKS = f"it belongs to shard 0 of {small.VISUAL}"
# Name: what is done to a record, its file, and what the error of opening the store says.
RECORD_FAULTS: dict[str, tuple[Change, str, str]] = {
    "copied under another index": (copy(RECORDS[0], RECORDS[1]), RECORDS[1], SPEAKS),
    "copied under a new index": (copy(RECORDS[0], f"commits/{small.VISUAL}/00007.json"),
                                 f"commits/{small.VISUAL}/00007.json", SPEAKS),
    "copied to another table": (copy(RECORDS[0], "commits/objects/00000.json"), "commits/objects/00000.json", SPEAKS),
    "copied to another stream": (copy(RECORDS[0], f"commits/{small.BACKBONE_STREAM}/00000.json"),
                                 f"commits/{small.BACKBONE_STREAM}/00000.json", SPEAKS),
    "of another store": (from_other(RECORDS[0]), RECORDS[0], "its rows have the fingerprint"),
    "cut": (cut(RECORDS[0], -1), RECORDS[0], "does not match its own checksum"),
    "emptied": (lambda root, other: (root / RECORDS[0]).write_bytes(b""), RECORDS[0], "does not match its own"),
    "exchanged with another": (swap(RECORDS[0], RECORDS[1]), RECORDS[0], f"it belongs to shard 1 of {small.VISUAL}"),
}  # fmt: skip


@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_record_that_is_not_the_shards(built: Path, other: Path, tmp_path: Path, fault: str) -> None:
    change, file, text = RECORD_FAULTS[fault]
    root = Path(shutil.copytree(built, tmp_path / "s"))
    change(root, other)
    with pytest.raises(StoreError) as raised:
        FeatureStore(root)
    assert str(root / file) in str(raised.value) and text in str(raised.value)
    assert "remove it and run the same refavs-extract command again" in str(raised.value)
    damage = {found.where: found for found in verify(root).damage}
    assert file in damage and ("00007" in file or damage[file].keys)
    mend(root, built, [where for where in damage if where.startswith("commits/")])


def test_record_of_a_store_with_the_same_fingerprints_fits_no_row(built: Path, twin: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    shutil.copyfile(twin / RECORDS[0], root / RECORDS[0])
    assert read_all(root) == {"a", "b"} and not FeatureStore(root).finished
    damage = verify(root).damage
    assert {key for found in damage for key in found.keys} == {"a", "b"}
    mend(root, built, [RECORDS[0]])


def test_whole_shard_of_another_store_with_its_record_is_not_the_finished_one(
    built: Path, twin: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(built, tmp_path / "s"))
    for spec in FeatureStore(built).schema.tables[small.VISUAL].arrays:
        name = shard_name(spec, 0)
        shutil.copyfile(twin / name, root / name)
    shutil.copyfile(twin / RECORDS[0], root / RECORDS[0])
    assert not FeatureStore(root).finished
    assert any("the store was finished as" in found.problem for found in verify(root).damage)
    mend(root, built, [RECORDS[0]])

"""A damaged store is mended: rows that are whole stay bit for bit, only the others are computed again."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refavs.store import ArraySpec, FeatureStore, StoreWriter
from refavs.store.backends.base import LocalFolder
from refavs.store.columns import EXPRESSIONS_RECORD
from refavs.store.format.commits import record_name
from refavs.store.format.shard import shard_name
from refavs.store.repair import plan_repairs, restore_root, with_failed
from refavs.store.verify import verify

_spec = importlib.util.spec_from_file_location("small_store", Path(__file__).parent / "small_store.py")
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
BACKBONE = ArraySpec(
    path=small.BACKBONE, shape=(3, 2, 4, 4), dtype="float16", axes=("t", "c", "h", "w"), statistics=True
)
SPECS = small.SPECS | {"clips": [BACKBONE, *small.SPECS["clips"]]}
SHARES = {"d": {"clips/visual": "a"}, "e": {"clips/visual": "a", "clips/audio": "a"}}
CLIPS = (*small.CLIPS, "f")
WANTED = {
    "clips": CLIPS, "text": [small.text_key(text) for text in small.TEXTS],
    "objects": [small.object_key(clip, 1) for clip in CLIPS],
}  # fmt: skip
STRINGS = {small.text_key(text): text for text in small.TEXTS}


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here loses power, and fsync is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def write(writer: StoreWriter, plans: list, told: list[tuple[str, str]] | None = None, noise: float = 0) -> None:
    """Computes what is planned; `c` fails; `told` gets each array and key that was computed."""
    for plan in plans:
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key == "c":
                    shard.fail(key, "made to fail")
                    continue
                specs = [spec for spec in writer.schema.tables[plan.table].arrays if spec.path in plan.paths_of(key)]
                row = small.row_of(key, specs)
                if noise:
                    row = {path: (array + noise).astype(array.dtype) for path, array in row.items()}
                if told is not None:
                    told += [(spec.path, key) for spec in specs]
                meta = {"text": STRINGS[key]} if plan.table == "text" else {}
                shard.write(key, row, small.facts_of(key) if plan.table == "clips" else meta)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of three clips a shard, in which one failed and two share rows; no test changes it."""
    root = tmp_path_factory.mktemp("built") / "s"
    writer = small.open_writer(root, specs=SPECS, rows_per_shard={"clips": 3, "objects": 3, "text": 4})
    for table, keys in WANTED.items():
        write(writer, writer.plan(table, keys, SHARES if table == "clips" else {}))
    writer.write_expressions(small.expressions(writer))
    writer.finalise()
    return root


@pytest.fixture
def root(built: Path, tmp_path: Path) -> Path:
    """A finished store of the test's own."""
    return Path(shutil.copytree(built, tmp_path / "s"))


def flip(path: Path, *places: int) -> None:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)


def repair(root: Path, noise: float = 0, batch_clips: int = 1) -> list[tuple[str, str]]:
    """Mends the store; returns each array and key that was computed."""
    told: list[tuple[str, str]] = []
    folder = LocalFolder(root)
    restore_root(folder)
    writer = StoreWriter.attach(root)
    repairs = plan_repairs(folder, writer.schema, verify(root).damage, batch_clips)
    for plan in repairs.anew:
        folder.remove(record_name(plan.table, plan.index))
    write(writer, [*repairs.mends, *with_failed(folder, writer.schema, repairs.anew, WANTED)], told, noise)
    if repairs.expressions:
        folder.remove(EXPRESSIONS_RECORD)
        writer.write_expressions(small.expressions(writer))
    writer.finalise()
    return told


def content(root: Path) -> dict[str, bytes]:
    return small.files_of(root)


def test_one_flipped_row_is_computed_and_nothing_else(built: Path, root: Path) -> None:
    flip(root / shard_name(BACKBONE, 0), 3)
    record = (root / "commits/clips-00000.json").read_bytes()
    assert repair(root) == [(small.BACKBONE, "a")]
    assert content(root) == content(built) and verify(root).damage == ()
    assert (root / "commits/clips-00000.json").read_bytes() == record
    assert not list(root.rglob("*.partial"))


def test_rows_of_several_arrays_are_computed_together(built: Path, root: Path) -> None:
    spec = small.SPECS["clips"][0]
    flip(root / shard_name(BACKBONE, 0), 3)
    flip(root / shard_name(spec, 0), (spec.row_bytes + 4 + 63) // 64 * 64 + 5)
    told = repair(root)
    assert {(small.BACKBONE, "a"), (small.MAPS, "b")} <= set(told) and {path for path, _ in told} == {
        small.BACKBONE, small.MAPS,
    }  # fmt: skip
    assert content(root) == content(built) and verify(root).damage == ()


@pytest.mark.long
@pytest.mark.parametrize("table", ["clips", "objects", "text"])
def test_any_flipped_bit_is_mended(built: Path, root: Path, table: str) -> None:
    rng = np.random.default_rng(1)
    for spec in SPECS[table]:
        path = root / shard_name(spec, 0)
        size = path.stat().st_size
        for place in (*rng.integers(0, size, 3).tolist(), size - 1, size - 30):
            flip(path, int(place))
            repair(root)
            assert content(root) == content(built), (spec.path, place)


def test_damaged_index_loses_no_row(built: Path, root: Path) -> None:
    flip(root / shard_name(BACKBONE, 0), -2, -20)
    assert repair(root) == []
    assert content(root) == content(built)


def test_cut_shard_keeps_its_first_rows(built: Path, root: Path) -> None:
    path = root / shard_name(BACKBONE, 0)
    path.write_bytes(path.read_bytes()[: BACKBONE.row_bytes + 70])
    assert repair(root) == [(small.BACKBONE, "b")]
    assert content(root) == content(built)


def test_lost_or_exchanged_shard_is_computed_as_a_whole(built: Path, root: Path) -> None:
    (root / shard_name(BACKBONE, 0)).unlink()
    shutil.copy(root / shard_name(small.SPECS["objects"][0], 1), root / shard_name(small.SPECS["objects"][0], 0))
    assert set(repair(root)) == {(small.BACKBONE, "a"), (small.BACKBONE, "b")} | {
        ("objects/mask", small.object_key(clip, 1)) for clip in "abc"
    }
    assert content(root) == content(built)


@pytest.mark.parametrize("how", ["gone", "flipped"])
@pytest.mark.parametrize("name", ["clips-00000", "clips-00001", "objects-00001", "text-00000"])
def test_lost_record_is_made_again_with_its_failures_and_shares(built: Path, root: Path, name: str, how: str) -> None:
    path = root / f"commits/{name}.json"
    if how == "gone":
        path.unlink()
    else:
        flip(path, 40)
    repair(root)
    assert content(root) == content(built) and verify(root).damage == ()


def test_all_records_and_descriptions_can_go(built: Path, root: Path) -> None:
    for path in (root / "commits").glob("*-*.json"):
        path.unlink()
    (root / "zarr.json").write_text("{")
    (root / small.AUDIO / "zarr.json").unlink()
    repair(root)
    assert content(root) == content(built) and FeatureStore(root).finished


def test_damaged_expressions_are_written_anew(built: Path, root: Path) -> None:
    flip(root / "expressions/uid/c.0.0", 2)
    repair(root)
    assert content(root) == content(built)
    flip(root / "commits/expressions.json", 30)
    repair(root)
    assert content(root) == content(built)


def test_other_values_get_a_record_of_their_own(built: Path, root: Path) -> None:
    features = small.SPECS["text"][0]
    flip(root / shard_name(BACKBONE, 0), 3)
    flip(root / shard_name(features, 0), 3)
    before = FeatureStore(root)
    told = repair(root, noise=0.25)
    assert {path for path, _ in told} == {small.BACKBONE, features.path, "text/roberta/valid"}
    store = FeatureStore(root)
    assert verify(root).damage == () and store.finished and store.fingerprint != before.fingerprint
    np.testing.assert_array_equal(store.read(small.BACKBONE, 1), FeatureStore(built).read(small.BACKBONE, 1))
    rows = np.stack([store.read(small.BACKBONE, row).numpy() for row in (0, 1, 5)]).astype("float64")
    mean, _ = store.statistics[small.BACKBONE]
    np.testing.assert_allclose(mean, rows.mean(axis=(0, 1, 3, 4)), rtol=1e-5)
    valid = np.stack([store.read("text/roberta/valid", row).numpy() for row in range(3)])
    values = np.stack([store.read(features.path, row).numpy() for row in range(3)])[valid]
    np.testing.assert_allclose(store.statistics[features.path][0], values.astype("float64").mean(axis=0), rtol=1e-5)


def test_key_that_fails_now_leaves_the_shard_as_it_is(root: Path) -> None:
    flip(root / shard_name(BACKBONE, 0), 3)
    folder, writer = LocalFolder(root), StoreWriter.attach(root)
    before = content(root)
    (plan,) = plan_repairs(folder, writer.schema, verify(root).damage).mends
    with writer.shard(plan) as shard:
        shard.fail("a", "its video is gone")
    assert shard.record is None and content(root) == before


def test_interrupted_repair_goes_on(built: Path, root: Path) -> None:
    (root / "commits/clips-00001.json").unlink()
    flip(root / shard_name(BACKBONE, 0), 3)
    folder, writer = LocalFolder(root), StoreWriter.attach(root)
    repairs = plan_repairs(folder, writer.schema, verify(root).damage)
    with pytest.raises(KeyboardInterrupt), writer.shard(repairs.mends[0]):
        raise KeyboardInterrupt
    assert not list(root.rglob("*.partial"))
    repair(root)
    assert content(root) == content(built)


def test_neighbours_of_a_batch_are_computed_with_it(built: Path, root: Path) -> None:
    flip(root / shard_name(BACKBONE, 0), 3)
    assert repair(root, batch_clips=2) == [(small.BACKBONE, "a"), (small.BACKBONE, "b")]
    assert content(root) == content(built)


def test_record_of_which_nothing_is_known_is_named(tmp_path: Path) -> None:
    writer = small.open_writer(tmp_path / "s")
    small.write_rows(writer, "clips", ["a", "b"])
    flip(tmp_path / "s/commits/clips-00000.json", 40)
    repairs = plan_repairs(LocalFolder(tmp_path / "s"), writer.schema, verify(tmp_path / "s").damage)
    assert repairs.unknown == ("commits/clips-00000.json",) and repairs.mends == repairs.anew == ()

"""One flipped bit anywhere in a store: `verify` finds it, a read of what it reaches raises, nothing else is lost."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from refavs.errors import StoreError
from refavs.store.backends.base import LocalFolder
from refavs.store.columns import NEEDED, table_record
from refavs.store.format.array_spec import table_path
from refavs.store.format.commits import read_records
from refavs.store.format.schema import StoreSchema, root_attributes
from refavs.store.format.shard import CRC_BYTES, shard_name
from refavs.store.reader import FeatureStore
from refavs.store.repair import ROOT
from refavs.store.verify import verify
from tests.faults import command
from tests.refavs import small_store as small

pytestmark = pytest.mark.usefixtures("small_networks")

# b has the frames of a, d has frames and sound of a; so what is lost of a is lost of them as well.
NAMES = {"frames of a": {"a", "b", "d"}, "sound of a": {"a", "d"}}
NAMES |= {small.text_key(text): {text} for text in small.TEXTS}
SHARD_KINDS = ("row", "checksum of a row", "padding", "index")
KINDS = (*SHARD_KINDS, "record", "zarr.json", "column", "table's record", "listing")
RAISE = ("row", "checksum of a row", "index", "record")


@dataclass(frozen=True)
class Place:
    """A byte of a store: what it is part of, and the rows (by array path and key) that cannot be read without it."""

    file: str
    byte: int
    kind: str
    lost: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Region:
    """Bytes of a file that are part of the same; see `Place`."""

    file: str
    start: int
    stop: int
    kind: str
    lost: frozenset[tuple[str, str]]


def build(root: Path) -> Path:
    """A finished store with shared rows, a clip that failed, and holes."""
    small.write_shared(root, failing=["frames of c"])
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, whole again after every test."""
    return build(tmp_path_factory.mktemp("flips") / "s")


def flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def names_of(text: str) -> set[str]:
    """Array path and key that an error of a read names."""
    found = re.match(r"(\S+) of '([^']*)' ", text)
    return set(found.groups()) if found else set()


def read_all(root: Path, verify: str = "first") -> tuple[set[tuple[str, str]], int]:
    """Rows whose read raises an error that names them, and how many were read right; no row may come out wrong."""
    store, raised, right = FeatureStore(root, verify=verify), set(), 0
    for record in store.records:
        for key, row in record.rows.items():
            for spec in store.schema.tables[record.table].arrays:
                try:
                    found = store.read(spec.path, row).numpy()
                except StoreError as error:
                    assert names_of(str(error)) == {spec.path, key}, str(error)
                    assert "run the same refavs-extract command again" in str(error)
                    raised.add((spec.path, key))
                    continue
                np.testing.assert_array_equal(found, small.row_of(key, [spec])[spec.name])
                right += 1
    return raised, right


def regions_of(root: Path) -> list[Region]:
    """All bytes of a store."""
    folder = LocalFolder(root)
    schema = StoreSchema.from_attributes(root_attributes(folder), "s")
    records = read_records(folder, schema)
    regions: list[Region] = []
    for record in records:
        num_places = schema.tables[record.table].rows_per_shard
        own = {key: row - record.index * num_places for key, row in record.rows.items()}
        for name, facts in record.arrays.items():
            spec = schema.tables[record.table].specs[name]
            file = shard_name(spec, record.index)
            end = facts.num_bytes - CRC_BYTES - num_places * 16
            index = np.frombuffer((root / file).read_bytes()[end:-CRC_BYTES], "<u8").reshape(num_places, 2)
            every = frozenset((spec.path, key) for key in own)
            regions.append(Region(file, end, facts.num_bytes, "index", every))
            edge = 0
            for key in sorted(own, key=lambda key: index[own[key], 0]):
                start = int(index[own[key], 0])
                stop, lost = start + spec.row_bytes, frozenset({(spec.path, key)})
                regions += [Region(file, edge, start, "padding", frozenset()), Region(file, start, stop, "row", lost),
                            Region(file, stop, stop + CRC_BYTES, "checksum of a row", lost)]  # fmt: skip
                edge = stop + CRC_BYTES
    shards = {region.file for region in regions}
    regions += [Region(name, 0, (root / name).stat().st_size, _kind(name), frozenset())
                for name in folder.names() if name not in shards and name not in command.NOT_COMPARED]  # fmt: skip
    return [region for region in regions if region.stop > region.start]


def place_in(regions: list[Region], kind: str, rng: np.random.Generator) -> Place:
    """A byte of that kind, each as likely as the other."""
    of_kind = [region for region in regions if region.kind == kind]
    sizes = np.array([region.stop - region.start for region in of_kind])
    region = of_kind[rng.choice(len(of_kind), p=sizes / sizes.sum())]
    return Place(region.file, int(rng.integers(region.start, region.stop)), kind, region.lost)


def _kind(name: str) -> str:
    if name.endswith("zarr.json"):
        return "zarr.json"
    special = {"commits/listing.json": "listing"} | {table_record(table): "table's record" for table in NEEDED}
    return special.get(name, "record" if name.startswith("commits/") else "column")


def named(keys: Iterable[str]) -> set[str]:
    """What people call those keys: ids of clips, texts, objects."""
    return {name for key in keys for name in NAMES.get(key, {key.rpartition(" ")[2]})}


def check(root: Path, place: Place, bit: int) -> None:
    """Flips one bit, looks at what the store says of it, and mends it."""
    path = root / place.file
    held = json.loads(path.read_bytes())["record"]["rows"] if place.kind == "record" else {key for _, key in place.lost}
    keys = named(held)
    flip(path, place.byte, bit)
    try:
        _check_verdict(root, place, keys)
        if place.kind in SHARD_KINDS:
            for policy in ("first", "always"):
                raised, right = read_all(root, policy)
                assert raised == place.lost and right > 0
        elif place.kind == "record":
            with pytest.raises(StoreError, match=rf"{place.file} is damaged: it does not match its own checksum; remo"):
                FeatureStore(root)
        else:
            try:
                assert read_all(root)[0] == set()
            except StoreError as error:
                assert "zarr.json" in str(error) or "expressions" in str(error) or str(root) in str(error)
    finally:
        flip(path, place.byte, bit)


def _check_verdict(root: Path, place: Place, keys: set[str]) -> None:
    try:
        damage = verify(root).damage
    except StoreError as error:  # without the description of the store there is nothing to compare
        assert (place.file == "zarr.json" and "zarr.json" in str(error)) or "schema version" in str(error)
        return
    told = [found for found in damage if found.where == place.file or place.file in found.problem]
    assert told, f"{place} was not found: {damage}"
    if place.kind in SHARD_KINDS:
        assert {key for found in damage for key in found.keys} == keys and len(damage) == len(told)
    elif place.kind == "record":
        assert set(told[0].keys) == keys


def flips(root: Path, per_kind: int, seed: int) -> Counter[str]:
    """Tries so many bits of each kind; returns the counts."""
    rng = np.random.default_rng(seed)
    regions = regions_of(root)
    assert {region.kind for region in regions} == set(KINDS)
    tried: Counter[str] = Counter()
    for kind in KINDS:
        for _ in range(per_kind):
            check(root, place_in(regions, kind, rng), int(rng.integers(8)))
            tried[kind] += 1
    assert verify(root).damage == () and read_all(root)[0] == set()
    return tried


@pytest.mark.long
def test_flipped_bits_are_found_and_raise(built: Path) -> None:
    assert flips(built, 2, seed=0).total() == 2 * len(KINDS)


@pytest.mark.faults
def test_many_flipped_bits_are_found_and_raise(built: Path) -> None:
    tried = flips(built, 150, seed=1)
    assert sum(tried[kind] for kind in RAISE) >= 500
    print(f"flipped bits: {dict(tried)}")


def digests(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of every file: what tells a file that was written again."""
    return {path.relative_to(root).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in root.rglob("*") if path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real extraction of some clips with preset tiny, in this process, in shards of two clips."""
    base = tmp_path_factory.mktemp("extracted")
    source = command.benchmark(base / "bench", 5)
    command.prepare(base / "s", {"clips": 2, "objects": 8, "text": 8})
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        from extract.cli import main

        assert main([str(source), str(base / "s"), *command.OPTIONS]) == 0
    return base / "s"


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Jobs are run in this process."""
    from extract.pipeline.worker import Worker

    def run_jobs(jobs, location, streams, *more):  # type: ignore[no-untyped-def]
        worker = Worker(location, streams, 1)
        yield None
        yield from (worker.run(job) for job in jobs)

    patch.setattr("extract.pipeline.extraction.run_jobs", run_jobs)


def may_change(file: str, kind: str) -> tuple[str, ...]:
    """Starts of the names of the files that are written again for a bit of `file`.

    A store that lacks rows or a table says that it is not finished, and its arrays have no statistics meanwhile.
    """
    if kind == "record":  # nothing vouches for the shard any more
        table, _, index = file.removeprefix("commits/").removesuffix(".json").rpartition("/")
        return file, f"{table_path(table)}/*/c.{int(index)}.", f"{table_path(table)}/*/zarr.json", ROOT
    if kind in ("table's record", "column"):  # the expressions name rows of the other tables
        table = file.removeprefix("commits/").removesuffix(".json").split("/")[0]
        return file, f"commits/{table}.json", "commits/expressions.json", ROOT
    if kind in SHARD_KINDS:  # the arrays of a shard are written together
        table, index = file.rsplit("/", 2)[0], int(file.split("/")[-1].split(".")[1])
        record = f"commits/{table.removeprefix('clips/')}/{index:05d}.json"
        return f"{table}/*/c.{index}.", f"{table}/*/zarr.json", record, ROOT
    return (file,)


def repair_rounds(extracted: Path, folder: Path, rounds: int, flips_each: int, seed: int) -> int:
    """Flips bits all over an extracted store, repairs it, and looks at every file; returns how many bits."""
    from extract.store_cli import main

    rng = np.random.default_rng(seed)
    regions = regions_of(extracted)
    expected, flipped = command.files_of(extracted), 0
    for number in range(rounds):
        root = Path(shutil.copytree(extracted, folder / f"r{number}"))
        allowed: list[str] = []
        # A record and the columns that say what it held, or the root and its copy: then nothing is left to mend from.
        left_out = {"column", "zarr.json"} if number % 2 else {"record", "listing"}
        for kind in [kind for kind in rng.permutation(KINDS) if kind not in left_out][:flips_each]:
            place = place_in(regions, kind, rng)
            flip(root / place.file, place.byte, int(rng.integers(8)))
            allowed += may_change(place.file, kind)
            flipped += 1
        before = digests(root)
        assert main(["repair", str(root)]) == 0
        after = digests(root)
        assert command.files_of(root) == expected and not verify(root).damage
        changed = [name for name in before if before[name] != after.get(name) and name not in command.NOT_COMPARED]
        extra = [name for name in changed if not any(fnmatch(name, f"{start}*") for start in allowed)]
        assert not extra, f"written again though whole: {extra}; damaged were {allowed}"
        shutil.rmtree(root)
    return flipped


@pytest.mark.long
def test_repair_fixes_flipped_bits_and_nothing_else(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    assert repair_rounds(extracted, tmp_path, rounds=1, flips_each=4, seed=0) >= 3


@pytest.mark.faults
def test_repair_fixes_many_flipped_bits_and_nothing_else(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    flipped = repair_rounds(extracted, tmp_path, rounds=30, flips_each=7, seed=1)
    print(f"flipped bits repaired: {flipped}")
    assert flipped >= 200

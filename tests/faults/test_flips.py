"""One flipped bit anywhere in a store: `verify` finds it, a read of what it reaches raises, nothing else is lost."""

import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from refavs.errors import StoreError
from refavs.store.commits import CommitRecord, read_records
from refavs.store.folder import LocalFolder
from refavs.store.reader import FeatureStore
from refavs.store.schema import StoreSchema, root_attributes
from refavs.store.shard import CRC_BYTES, shard_name
from refavs.store.verify import verify

SMALL = Path(__file__).parents[1] / "refavs" / "small_store.py"
_spec = importlib.util.spec_from_file_location("small_store", SMALL)
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

# b has the pictures of a, d has pictures and sound of a; so what is lost of a is lost of them as well.
SHARES = {"b": {"clips/visual": "a"}, "d": {"clips/visual": "a", "clips/audio": "a"}}
SHARD_KINDS = ("row", "checksum of a row", "padding", "index")
KINDS = (*SHARD_KINDS, "record", "zarr.json", "column", "expressions' record", "listing")
RAISE = ("row", "checksum of a row", "index", "record")


@dataclass(frozen=True)
class Place:
    """A byte of a store: what it is part of, and the rows (by array path and key) that cannot be read without it."""

    file: str
    byte: int
    kind: str
    lost: frozenset[tuple[str, str]]


@pytest.fixture(scope="module", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing here loses power, and fsync is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def build(root: Path) -> Path:
    """A finished store with shared rows, a clip that failed, and holes."""
    writer = small.open_writer(root)
    for plan in writer.plan("clips", small.CLIPS, SHARES):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                if key == "c":
                    shard.fail(key, "made to fail")
                    continue
                row = small.row_of(key, small.SPECS["clips"])
                shard.write(key, {path: row[path] for path in plan.paths_of(key)}, small.facts_of(key))
    small.write_store(root)
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
    store, raised, right = FeatureStore(root, verify), set(), 0
    for record in store.records:
        for key, row in record.rows.items():
            for spec in store.schema.tables[record.table].arrays:
                owner = record.owner(spec.path, key)
                try:
                    found = store.read(spec.path, row).numpy()
                except StoreError as error:
                    assert names_of(str(error)) == {spec.path, owner}, str(error)
                    assert "run the same refavs-extract command again" in str(error)
                    raised.add((spec.path, key))
                    continue
                np.testing.assert_array_equal(found, small.row_of(owner, [spec])[spec.path])
                right += 1
    return raised, right


def readers_of(records: list[CommitRecord], table: str, path: str, key: str) -> set[tuple[str, str]]:
    """Who reads the row of `path` that belongs to `key`: it and those that share it."""
    rows = ((record, other) for record in records if record.table == table for other in record.rows)
    return {(path, other) for record, other in rows if record.owner(path, other) == key}


def places_of(root: Path) -> list[Place]:
    """Every byte of a store."""
    folder = LocalFolder(root)
    schema = StoreSchema.from_attributes(root_attributes(folder), "s")
    records = read_records(folder, schema)
    places: list[Place] = []
    for record in records:
        num_places = schema.tables[record.table].rows_per_shard
        for path, facts in record.arrays.items():
            file = shard_name(schema.specs[path], record.index)
            row_bytes = schema.specs[path].row_bytes
            end = facts.num_bytes - CRC_BYTES - num_places * 16
            index = np.frombuffer((root / file).read_bytes()[end:-CRC_BYTES], "<u8").reshape(num_places, 2)
            own = {key: row - record.index * num_places for key, row in record.own_rows(path).items()}
            readers = {key: readers_of(records, record.table, path, key) for key in own}
            every = frozenset(reader for found in readers.values() for reader in found)
            kinds = {byte: Place(file, byte, "padding", frozenset()) for byte in range(end)}
            kinds |= {byte: Place(file, byte, "index", every) for byte in range(end, facts.num_bytes)}
            for key, place in own.items():
                start = int(index[place, 0])
                for byte in range(start, start + row_bytes + CRC_BYTES):
                    kind = "row" if byte < start + row_bytes else "checksum of a row"
                    kinds[byte] = Place(file, byte, kind, frozenset(readers[key]))
            places += kinds.values()
    shards = {place.file for place in places}
    for name in folder.names():
        if name not in shards:
            places += [Place(name, byte, _kind(name), frozenset()) for byte in range((root / name).stat().st_size)]
    return places


def _kind(name: str) -> str:
    if name.endswith("zarr.json"):
        return "zarr.json"
    special = {"commits/expressions.json": "expressions' record", "commits/listing.json": "listing"}
    return special.get(name, "record" if name.startswith("commits/") else "column")


def keys_of_record(root: Path, file: str) -> set[str]:
    """Keys that a record holds, and those that share rows of them."""
    keys = set(json.loads((root / file).read_bytes())["record"]["rows"])
    return keys | {key for key, owners in SHARES.items() if set(owners.values()) & keys}


def check(root: Path, place: Place, bit: int) -> None:
    """Flips one bit, looks at what the store says of it, and mends it."""
    path = root / place.file
    keys = keys_of_record(root, place.file) if place.kind == "record" else {key for _, key in place.lost}
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
    places = places_of(root)
    assert {place.kind for place in places} == set(KINDS)
    tried: Counter[str] = Counter()
    for kind in KINDS:
        of_kind = [place for place in places if place.kind == kind]
        for number in rng.choice(len(of_kind), min(per_kind, len(of_kind)), replace=False):
            check(root, of_kind[number], int(rng.integers(8)))
            tried[kind] += 1
    assert verify(root).damage == () and read_all(root)[0] == set()
    return tried


def test_flipped_bits_are_found_and_raise(built: Path) -> None:
    assert flips(built, 4, seed=0).total() == 4 * len(KINDS)


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_many_flipped_bits_are_found_and_raise(built: Path) -> None:
    tried = flips(built, 150, seed=1)
    assert sum(tried[kind] for kind in RAISE) >= 500
    print(f"flipped bits: {dict(tried)}")

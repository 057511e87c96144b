"""Sweeps over several stores: the same expressions and masks, with the features of different encoders."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.grid.expand import Grid
from experiments.grid.trial import Trial, TrialStore
from refavs.config import digest
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.store import FeatureStore
from refavs.store.reader import MASK

NAMED = re.compile(r"([\w.+-]+)=(.+)")
COLUMNS = ("uid", "clip_id", "fid", "split", "dimension", "grade", "text")


def named_locations(given: Sequence[str]) -> dict[str, str]:
    """Locations by name, as `--store` gives them; a single one may have no name, which is empty then.

    Raises:
        ConfigError: several without names, a name given twice, or two names of one place.
    """
    found: dict[str, str] = {}
    for text in given:
        named = None if Path(text).exists() else NAMED.fullmatch(text)
        if named is None and len(given) > 1:
            raise ConfigError(f"--store {text} has no name, and there are {len(given)}; write --store NAME={text}")
        name, place = named.groups() if named else ("", text)
        if name in found:
            raise ConfigError(f"--store gives {name!r} twice; give each store a name of its own")
        if place in found.values():
            raise ConfigError(f"--store gives {place} under two names; give it once")
        found[name] = place
    return found


def with_stores(grid: Grid, stores: Mapping[str, FeatureStore]) -> Grid:
    """The grid with each trial on each of the stores; on one without a name it stays as it is.

    Raises:
        ConfigError: several stores for a search, or stores that do not hold the same expressions and masks.
    """
    if list(stores) == [""]:
        return grid
    if grid.search and len(stores) > 1:
        raise ConfigError(f"grid {grid.name} is a search, which reads one store, and --store names {len(stores)}; "
                          "search on one and compare the best settings on all")  # fmt: skip
    refuse_others(stores)
    known = {name: TrialStore(name=name, location=s.location, fingerprint=s.fingerprint) for name, s in stores.items()}
    if grid.search:
        (store,) = known.values()
        return grid.with_kinds(lambda trial: dataclasses.replace(trial, store=store))
    trials = [
        dataclasses.replace(trial, store=store, name=_name(trial, grid, name))
        for trial in grid.trials for name, store in known.items()
    ]  # fmt: skip
    return dataclasses.replace(grid, trials=tuple(trials))


def _name(trial: Trial, grid: Grid, store: str) -> str:
    return f"encoders {store}" if trial.name == grid.name else f"{trial.name}, encoders {store}"


def refuse_others(stores: Mapping[str, FeatureStore]) -> None:
    """Refuses stores whose trials could not be compared.

    Raises:
        ConfigError: stores of other expressions, splits or masks, or of the same features.
    """
    (first, reference), *others = stores.items()
    prints = {reference.fingerprint: first}
    for name, store in others:
        if store.fingerprint in prints:
            raise ConfigError(
                f"the stores {prints[store.fingerprint]} and {name} hold the same features; give one of them"
            )
        prints[store.fingerprint] = name
        if contents_digest(store) != contents_digest(reference):
            raise ConfigError(
                f"the stores {first} and {name} are not to be compared: {_difference(reference, store)}; extract both "
                "from the same source, with the same size of the frames"
            )


def contents_digest(store: FeatureStore) -> str:
    """Names what a store asks and what is right: its expressions with their splits, and its masks to the bit."""
    rows = sorted(contents_rows(store), key=str)
    return digest({"frames": store.num_frames, "size": store.input_size, "rows": rows})


def contents_rows(store: FeatureStore) -> list[list[str | int | None]]:
    """Each expression with its split and the checksum of its mask, in the order of the store's table."""
    masks, table = _mask_checksums(store), store.expressions
    return [
        [*(str(value) for value in values), masks.get(int(place))]
        for *values, place in zip(*(table[name] for name in COLUMNS), table["object"], strict=True)
    ]


def _mask_checksums(store: FeatureStore) -> dict[int, int]:
    """CRC-32C of each object's masks, as the store's commit records have them."""
    table = store.specs[MASK].table
    size = store.schema.tables[table].rows_per_shard
    return {
        record.index * size + int(place): crc
        for record in store.records if record.table == table
        for place, crc in record.arrays[MASK].rows.items()
    }  # fmt: skip


def _difference(one: FeatureStore, other: FeatureStore) -> str:
    uids = [set(store.expressions["uid"].astype(str)) for store in (one, other)]
    if len(uids[0]) != len(uids[1]) or uids[0] != uids[1]:
        return f"of {len(uids[0])} and {len(uids[1])} expressions they share {len(uids[0] & uids[1])}"
    sizes = [f"{store.num_frames} x {store.input_size} x {store.input_size}" for store in (one, other)]
    if sizes[0] != sizes[1]:
        return f"their masks are of {sizes[0]} and of {sizes[1]}"
    return "their expressions have other splits, words or masks under the same uids"


def stores_of(trials: Sequence[Trial], default: FeatureStore) -> dict[str, FeatureStore]:
    """The stores that trials read, by their fingerprints."""
    found = [store_of(trial, default) for trial in trials]
    return {store.fingerprint: store for store in found or [default]}


def store_facts(trials: Sequence[Trial], default: FeatureStore) -> dict[str, dict[str, Any]]:
    """What a sweep's folder notes of each of several stores, by its fingerprint, so that a report can compare them."""
    named = {trial.store.fingerprint: trial.store.name for trial in trials if trial.store}
    return {
        fingerprint: {"name": named[fingerprint], **facts_of(store), "contents": contents_digest(store)}
        for fingerprint, store in stores_of(trials, default).items() if fingerprint in named
    }  # fmt: skip


def facts_of(store: FeatureStore) -> dict[str, Any]:
    """Where a store is, what it has, and whether its features are of random weights."""
    return {
        "store": store.location, "fingerprint": store.fingerprint, "random_features": store.random_weights,
        "splits": dict(Splits.of(store.attributes).roles),
        "encoders": {stream: str(encoder.get("name")) for stream, encoder in store.encoders.items()},
    }  # fmt: skip


def store_of(trial: Trial, default: FeatureStore) -> FeatureStore:
    """The store that a trial reads: its own, or the only one that a sweep has."""
    if trial.store is None or trial.store.fingerprint == default.fingerprint:
        return default
    return _opened(trial.store.location)


@functools.lru_cache(maxsize=8)
def _opened(location: str) -> FeatureStore:
    return FeatureStore(location)

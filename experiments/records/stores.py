"""Sweeps over several stores, which have the same expressions and masks but features of different encoders."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.grid.expand import Grid
from experiments.grid.trial import Trial, TrialStore
from refavs.config import digest
from refavs.data.splits import Splits
from refavs.errors import ConfigError
from refavs.model.feature_sizes import FeatureSizes
from refavs.store import FeatureStore
from refavs.store.fingerprints import checksums, fingerprint_of
from refavs.store.format.mask_rows import told_size

NAMED = re.compile(r"([\w.+-]+)=(.+)")
Features = Callable[[Trial], str]
COLUMNS = ("uid", "clip_id", "fid", "split", "dimension", "grade", "text")


def named_locations(given: Sequence[str]) -> dict[str, str]:
    """Locations by name, from the values of `--store`; a single one may lack a name, which is empty then.

    Raises:
        ConfigError: several without names, a repeated name, or two names for one location.
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
    """Puts each trial of the grid on each store; leaves the grid alone if its only store has no name.

    Raises:
        ConfigError: several stores for a search, or stores with different expressions or masks.
    """
    if list(stores) == [""]:
        return grid
    if grid.search and len(stores) > 1:
        raise ConfigError(f"grid {grid.name} is a search, which reads one store, but --store names {len(stores)}; "
                          "search on one and compare the best settings on all")  # fmt: skip
    refuse_incomparable(stores)
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


def refuse_incomparable(stores: Mapping[str, FeatureStore]) -> None:
    """Refuses stores whose trials cannot be compared.

    Raises:
        ConfigError: stores with different expressions, splits or masks, or with the same features.
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
                f"the stores {first} and {name} cannot be compared: {_difference(reference, store)}; extract both from "
                "the same source, with frames of the same size"
            )


def contents_digest(store: FeatureStore) -> str:
    """Identifies a store's task: its expressions with their splits, and every bit of its masks."""
    rows = sorted(contents_rows(store), key=str)
    return digest({"frames": len(store.steps), "size": store.mask_size, "rows": rows})


def contents_rows(store: FeatureStore) -> list[list[str | int | None]]:
    """Each expression with its split and the checksums of its mask, in the order of the store's table."""
    of_objects, table = [checksums(store, path) for path in store.schema.object_paths], store.expressions
    return [
        [*(str(value) for value in values), *(sums.get(int(place)) for sums in of_objects)]
        for *values, place in zip(*(table[name] for name in COLUMNS), table["object"], strict=True)
    ]


def _difference(one: FeatureStore, other: FeatureStore) -> str:
    uids = [set(store.expressions["uid"].astype(str)) for store in (one, other)]
    if len(uids[0]) != len(uids[1]) or uids[0] != uids[1]:
        return f"of {len(uids[0])} and {len(uids[1])} expressions they share {len(uids[0] & uids[1])}"
    sizes = [f"{len(store.steps)} x {told_size(store.mask_size)}" for store in (one, other)]
    if sizes[0] != sizes[1]:
        return f"their masks are of {sizes[0]} and of {sizes[1]}"
    return "expressions with the same uids have different splits, words or masks"


def stores_of(trials: Sequence[Trial], default: FeatureStore) -> dict[str, FeatureStore]:
    """The stores that trials read, by fingerprint, with the encoders that each uses by default."""
    others = {trial.store.fingerprint: trial.store.location for trial in trials if trial.store}
    found = {fingerprint: default if fingerprint == default.fingerprint else opened(location)
             for fingerprint, location in others.items()}  # fmt: skip
    return found or {default.fingerprint: default}


def store_facts(trials: Sequence[Trial], default: FeatureStore) -> dict[str, dict[str, Any]]:
    """What a sweep records about each of several stores, by fingerprint, for the report's comparison."""
    named = {trial.store.fingerprint: trial.store.name for trial in trials if trial.store}
    return {
        fingerprint: {"name": named[fingerprint], **facts_of(store, trials), "contents": contents_digest(store)}
        for fingerprint, store in stores_of(trials, default).items() if fingerprint in named
    }  # fmt: skip


def facts_of(store: FeatureStore, trials: Sequence[Trial]) -> dict[str, Any]:
    """A store's location, fingerprint and encoders, and whether a trial reads an encoder with random weights.

    The encoders are those in use by default, then those that only trials name.
    """
    read = [one for trial in trials if (one := store_of(trial, store)).fingerprint == store.fingerprint]
    return {
        "store": store.location, "fingerprint": store.fingerprint,
        "random_features": any(one.random_weights for one in read or [store]),
        "splits": dict(Splits.of(store.attributes).roles),
        "encoders": {stream: str(encoder.get("name")) for one in (store, *read)
                     for stream, encoder in one.encoders.items()},
    }  # fmt: skip


def store_of(trial: Trial, default: FeatureStore) -> FeatureStore:
    """The store that a trial reads, its own or the sweep's only one, with the encoders that it names."""
    own = trial.store is not None and trial.store.fingerprint != default.fingerprint
    use = trial.config.model.use
    if not own and use == default.use:
        return default
    return opened(trial.store.location if own and trial.store else default.location, tuple(sorted(use.items())))


@functools.lru_cache(maxsize=16)
def opened(location: str, use: tuple[tuple[str, str], ...] = ()) -> FeatureStore:
    """A store, opened once by each process for the encoders in use."""
    return FeatureStore(location, use=dict(use))


def features_in(default: FeatureStore) -> Features:
    """Names what a trial reads of its store: its arrays, the expressions and the masks.

    Raises:
        StoreError: the store lacks what the head reads.
    """
    def features_of(trial: Trial) -> str:
        store, model = store_of(trial, default), trial.config.model
        return fingerprint_of(store, FeatureSizes.from_store(store, model.needs(), model.head).paths)

    return features_of

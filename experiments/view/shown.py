"""What refavs-view shows: the stores and the trained runs that its command line names."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from experiments.report.gallery import Scored, read_scores
from experiments.report.runs import SavedRun, SavedSweep, saved_sweep
from experiments.report.tables import GallerySource
from experiments.tracking.connection import without_password
from refavs.errors import ConfigError, RefAVSError
from refavs.store import FeatureStore

T = TypeVar("T")
ACCEPTED = "a store (a folder or URL of refavs-extract), a sweep's folder, or a trial's folder, SWEEP/trials/KEY"


class ShownStore:
    """A store, opened again by `reopen` to see what a writer has added since.

    Args:
        location: its folder or URL.
        name: what the page calls it.
    """

    def __init__(self, location: str, name: str) -> None:
        self.name = name
        self._location, self._lock = location, threading.Lock()
        self._kept: dict[Any, Any] = {}
        self.reopen()

    def reopen(self) -> None:
        """Reads the store's description, tables and commit records, but no feature.

        Raises:
            StoreError: there is no store, or it is damaged.
        """
        store = FeatureStore(self._location)
        with self._lock:
            self.store, self._kept = store, {}

    def once(self, key: object, make: Callable[[FeatureStore], T]) -> T:
        """What `make` makes of the store, kept until the store is opened again."""
        with self._lock:
            store, kept = self.store, self._kept
        if key not in kept:
            kept[key] = make(store)
        return kept[key]


@dataclass(frozen=True, kw_only=True)
class ShownRun:
    """A trained run with the store that it was evaluated on, as far as it is known."""

    run: SavedRun
    source: GallerySource

    @property
    def name(self) -> str:
        """What the page calls it."""
        return f"{self.run.title} ({self.run.folder.name[:8]})"

    @cached_property
    def scored(self) -> Scored:
        """The scores of its test expressions.

        Raises:
            StatisticsError: the file is missing or damaged.
        """
        return read_scores(self.source, self.run.splits)

    @cached_property
    def store(self) -> FeatureStore:
        """The store with the features of the run.

        Raises:
            RefAVSError: it is not known, not given, or has changed.
        """
        if self.source.store is None:
            raise ConfigError("the sweep does not say where its store is; name it on the command line of refavs-view")
        if "://" in self.source.store and not self.source.given:
            place = without_password(self.source.store)
            raise ConfigError(f"the sweep says that its store is at {place}; name it on the command line of "
                              "refavs-view where you trust it")
        store = FeatureStore(self.source.store)
        if store.fingerprint != self.source.fingerprint:
            raise ConfigError(f"the store {store.location} has changed since the run was evaluated")
        return store


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Everything that the page shows, by the names in its menus."""

    stores: dict[str, ShownStore]
    runs: dict[str, ShownRun]


def open_all(arguments: Sequence[str]) -> Shown:
    """Opens stores and runs. The store of a run is shown too, if it is a folder and has not changed.

    Raises:
        ConfigError: an argument is none of the accepted ones.
        StoreError: a store cannot be opened.
    """
    stores: dict[str, ShownStore] = {}
    found: list[tuple[SavedSweep, SavedRun]] = []
    for argument in dict.fromkeys(arguments):
        if "://" in argument or (Path(argument) / "zarr.json").is_file():
            _add(stores, argument)
        else:
            found += _runs(Path(argument))
    given = {shown.store.fingerprint: shown.store.location for shown in stores.values()} if found else {}
    runs = {}
    for sweep, run in found:
        shown = ShownRun(run=run, source=_source(sweep, run, given))
        runs[shown.name] = shown
    if not stores:
        for location in dict.fromkeys(_locations(runs.values())):
            _add(stores, location)
    return Shown(stores=stores, runs=runs)


def _add(stores: dict[str, ShownStore], location: str) -> None:
    short = without_password(location).rstrip("/").rpartition("/")[2] or location
    name = short if short not in stores else f"{short} ({len(stores) + 1})"
    stores[name] = ShownStore(location, name)


def _runs(folder: Path) -> Iterator[tuple[SavedSweep, SavedRun]]:
    """The finished runs of a sweep, or the one of a trial."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}; accepted: {ACCEPTED}")
    is_trial = (folder / "config.json").is_file() and folder.absolute().parent.name == "trials"
    if not is_trial and not (folder / "trials").is_dir():
        raise ConfigError(f"{folder} is neither a store nor a sweep; accepted: {ACCEPTED}")
    sweep = saved_sweep(folder.absolute().parents[1] if is_trial else folder)
    runs = [run for run in sweep.runs if not is_trial or run.folder.resolve() == folder.resolve()]
    if not runs:
        raise ConfigError(f"the trial {folder} has no result yet; run its refavs-sweep command again")
    for run in runs:
        yield sweep, run


def _source(sweep: SavedSweep, run: SavedRun, given: dict[str, str]) -> GallerySource:
    told = {str(store.get("fingerprint")): str(store.get("store")) for store in sweep.stores}
    return GallerySource(
        label=run.title, statistics=run.statistics, checkpoint=run.checkpoint, fingerprint=run.store,
        store=given.get(run.store, told.get(run.store)), given=run.store in given,
    )  # fmt: skip


def _locations(runs: Iterable[ShownRun]) -> Iterator[str]:
    for shown in runs:
        try:
            yield shown.store.location
        except RefAVSError:  # the page says so where a prediction is asked for
            continue

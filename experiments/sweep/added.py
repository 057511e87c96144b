"""Trials that `refavs-sweep add` has added to a sweep: they belong to every later call of the sweep's own command."""

import dataclasses

from experiments.grid.expand import Grid, parse_overrides, read_grid
from experiments.grid.trial import Trial
from experiments.records.ledger import Ledger
from experiments.records.record_types import AddedGrid
from experiments.records.stores import features_in
from experiments.sweep.control import Request, kept_grid
from experiments.sweep.model_check import check_models
from experiments.training.initial_weights import with_checkpoints, with_weights
from refavs.errors import ConfigError
from refavs.store import FeatureStore


def with_added(grid: Grid, ledger: Ledger, store: FeatureStore) -> Grid:
    """The grid with the trials that were added to its sweep.

    Raises:
        ConfigError: an added grid is missing, or no longer fits.
    """
    found = {trial.key(features_in(store)(trial), ledger.defaults): trial for trial in grid.trials}
    for added in ledger.sweep.get("added", []):
        for trial in _read(ledger, added, grid, store).trials:
            found.setdefault(trial.key(features_in(store)(trial), ledger.defaults), trial)
    return dataclasses.replace(grid, trials=tuple(found.values()))


def new_trials(ledger: Ledger, request: Request, grid: Grid, store: FeatureStore) -> tuple[Trial, ...]:
    """The trials of a grid that is to be added, checked against the store.

    Raises:
        ConfigError: the sweep takes no more trials, or the grid is wrong or does not fit the store.
        WeightsError: initial weights cannot be used.
    """
    if grid.search is not None:
        raise ConfigError("a search decides its trials itself; give its command a larger budget instead of adding some")
    if any(trial.store is not None for trial in grid.trials):
        raise ConfigError("this sweep trains each trial on named stores; run its command with a larger grid instead")
    new = _read(ledger, {"grid": request["grid"], "set": request["set"]}, grid, store)
    if new.search is not None:
        raise ConfigError(f"{new.name} is a search; run it as a sweep of its own")
    check_models(new, store)
    return new.trials


def _read(ledger: Ledger, added: AddedGrid, grid: Grid, store: FeatureStore) -> Grid:
    weights_dir = next((trial.weights_dir for trial in grid.kinds if trial.weights_dir is not None), None)
    new = read_grid(str(kept_grid(ledger.root, added["grid"])), parse_overrides(added["set"]))
    return with_checkpoints(with_weights(new, weights_dir), features_in(store))

"""Runs a sweep: compares a grid with what its folder has, and runs the rest."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from experiments.baselines.cache import Baselines
from experiments.cluster.resources import Resources
from experiments.grid.expand import Grid
from experiments.records.ledger import Entry, Ledger
from experiments.records.stores import facts_of, features_in, store_facts, stores_of
from experiments.sweep.added import with_added
from experiments.sweep.execution import SweepRun
from experiments.sweep.model_check import check_models
from experiments.sweep.outcome import Options, Outcome, best_by_val, closed_mark, num_to_come, to_run
from experiments.sweep.search import Search
from experiments.sweep.web_hook import refuse_other_addresses
from experiments.tracking.database import database_at
from experiments.tracking.place import (
    follow_artifacts,
    follow_database,
    guard_of,
    original_of,
    place_of,
    tracking_address,
)
from experiments.tracking.sync import pending
from refavs.errors import ConfigError, StoreError
from refavs.store import FeatureStore
from refavs.terminal.printing import warn


def run_sweep(
    grid: Grid, store: FeatureStore, out: Path, resources: Resources | None = None, tracking_uri: str | None = None,
    options: Options | None = None,
) -> Outcome:  # fmt: skip
    """Runs the unfinished trials of `grid` in the sweep's folder `out`, and sends to MLflow what it lacks.

    Failed trials run again only if the `options` say so.

    Raises:
        ConfigError: settings that do not fit the store, a folder in use by another sweep, an unusable MLflow, or a key
            in the options that no trial has.
        StoreError: a store that is damaged, not fully extracted, or has nothing to train on.
    """
    refuse_unwritable("the sweep's folder", str(out.resolve()))
    ledger, options = Ledger(out), options or Options()
    refuse_other_addresses(options.notify)
    # A sweep over several stores belongs to the one it began with, whatever their order now.
    store = stores_of(grid.kinds, store).get(ledger.sweep.get("fingerprint", ""), store)
    for one in stores_of(grid.kinds, store).values():
        refuse_unwritable("the store", one.location)
        if not one.finished:
            raise StoreError(
                f"the extraction into {one.location} is not finished, and its statistics would still change; run the "
                "same refavs-extract command again, then this one"
            )
    grid = with_added(grid, ledger, store)
    for remark in check_models(grid, store):
        warn(f"refavs-sweep: {remark}")
    # Checked before anything is locked, so that a wrong key or address leaves no folder behind.
    _planned(grid, store, ledger, options.rerun)
    tracking_address(out, ledger.sweep, tracking_uri)
    with ledger.locked(), Baselines(out, store) as baselines:
        uri = tracking_address(out, ledger.sweep, tracking_uri)
        _own(ledger, uri, given=tracking_uri is not None)
        search, entries, to_rerun = _planned(grid, store, ledger, options.rerun)
        for entry in to_rerun:
            ledger.discard(entry)
        if to_rerun:  # the search has read results that are gone now
            search, entries, _ = _planned(grid, store, ledger)
        before = _follow(ledger, uri, entries, given=tracking_uri is not None)
        outcome = Outcome(entries=entries, tracking_uri=uri)
        ledger.set_sweep(**facts_of(store, grid.kinds))
        if several := store_facts(grid.kinds, store):
            ledger.set_sweep(stores=ledger.sweep.get("stores", {}) | several)
        if not num_to_come(search, ledger) and _nothing_to_do(ledger, outcome, options):
            outcome.controls = baselines.values()
            return outcome
        for remark in filter(None, (ledger.changes(entries), ledger.elsewhere(entries, store.fingerprint))):
            warn(f"refavs-sweep: {remark}")
        sweep_id = ledger.sweep.get("id") or uuid.uuid4().hex
        guard = guard_of(out, uri, tracking_uri)
        run = SweepRun(grid, store, ledger, outcome, options, baselines, search, sweep_id, guard)
        run.connect(known=before == uri and "run_id" in ledger.sweep)
        ledger.set_sweep(id=sweep_id, tracking_uri=uri, closed=None, defaults=ledger.record_defaults(entries))
        resources = resources or Resources()
        if resources.pack_gpus:
            from experiments.cluster.packing import packed

            to_do = [entry.trial for entry in to_run(entries, options.retry_failed)]
            to_do += grid.kinds if num_to_come(search, ledger) else ()
            resources = packed(resources, to_do, store) if to_do else resources
        run.run(resources)
    return outcome


def refuse_unwritable(what: str, path: str) -> None:
    """Refuses a path that is not valid UTF-8: records do not hold it, and MLflow would put artifacts elsewhere.

    Raises:
        ConfigError: such a path.
    """
    if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ConfigError(f"{what} {path!a} has bytes in its name that are not UTF-8, which MLflow cannot store; "
                          "rename it, or its folder, or name another one")  # fmt: skip


def _own(ledger: Ledger, uri: str, given: bool) -> None:
    """Gives a copy of another sweep an identity, and hence runs in MLflow, of its own.

    Args:
        given: whether the user named MLflow's address; else the new one is recorded along with the new place.
    """
    facts = ledger.sweep
    if facts and (original := original_of(ledger.root, facts, uri)):
        warn(f"refavs-sweep: {ledger.root} is a copy of the sweep {original}, which stays as it is; the copy gets runs "
             "of its own in MLflow")  # fmt: skip
        follow_artifacts(ledger.root, facts, uri)
        noted = {} if given else {"tracking_uri": uri}
        ledger.set_sweep(id=uuid.uuid4().hex, closed=None, place=place_of(ledger.root), **noted)


def _follow(ledger: Ledger, uri: str, entries: Sequence[Entry], given: bool) -> str | None:
    """Records the present place of the sweep and its database; returns MLflow's previous address."""
    facts = ledger.sweep
    follow_database(ledger, uri, {each: closed_mark(entries, each) for each in (str(facts.get("tracking_uri")), uri)})
    follow_artifacts(ledger.root, facts, uri)
    before = ledger.sweep.get("tracking_uri")
    noted = {} if given or before is None else {"tracking_uri": uri}
    ledger.set_sweep(place=place_of(ledger.root), **noted)
    return before


def _planned(
    grid: Grid, store: FeatureStore, ledger: Ledger, rerun: Sequence[str] = ()
) -> tuple[Search | None, list[Entry], list[Entry]]:
    """The search, the known trials, and those of them to run again, from the ledger's present state."""
    search = Search(grid, ledger, features_in(store)) if grid.search else None
    entries = search.entries if search else ledger.entries(grid.trials, features_in(store))
    return search, entries, ledger.beginning_with(rerun, entries)


def _nothing_to_do(ledger: Ledger, outcome: Outcome, options: Options) -> bool:
    """Whether all trials ended, MLflow has them, and the best one is registered if the options ask for it."""
    entries, uri = outcome.entries, outcome.tracking_uri
    if to_run(entries, options.retry_failed) or ledger.sweep.get("closed") != closed_mark(entries, uri):
        return False
    database = database_at(uri)
    if database is not None and not database.is_file():  # removed: everything is sent again
        return False
    if any(pending(entry, uri) for entry in entries):
        return False
    best = best_by_val(entries) if options.register else None
    return best is None or ledger.sweep.get("registered", {}).get(options.register, [None])[0] == best.key

"""A sweep: what of a grid is done, what is missing, and running that."""

import contextlib
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.baselines.cache import Baselines
from experiments.cluster.resources import Resources
from experiments.grid.expand import Grid
from experiments.records.ledger import Entry, Ledger
from experiments.records.stores import facts_of, store_facts, store_of, stores_of
from experiments.sweep.execution import Options, Outcome, Run, best_by_val, closed_mark, num_to_come, to_run
from experiments.sweep.search import Search, refuse_unmeasured
from experiments.tracking.moved import database_at, follow
from experiments.tracking.place import follow_move, guard_of, original_of, place_of, tracking_address
from experiments.tracking.sync import pending
from experiments.training.loop import load_start
from refavs.errors import ConfigError, RefAVSError, StoreError
from refavs.model.heads.registry import implementation_of
from refavs.store import FeatureStore
from refavs.terminal.printing import warn


def run_sweep(
    grid: Grid, store: FeatureStore, out: Path, resources: Resources | None = None, tracking_uri: str | None = None,
    options: Options | None = None,
) -> Outcome:  # fmt: skip
    """Runs the trials of `grid` that are not finished in the sweep's folder `out`, and sends to MLflow what it lacks.

    Failed trials run again only where the `options` say so.

    Raises:
        ConfigError: a trial whose settings do not fit the store, a folder that another sweep holds, an MLflow that
            cannot be used, or a key in the options that no trial has.
        StoreError: a store that is damaged, not extracted to its end, or has nothing to train on.
    """
    refuse_unwritable(out)
    ledger, options = Ledger(out), options or Options()
    # Of several stores the first one names the sweep: that is the one it began with, in whatever order they are given.
    store = stores_of(grid.kinds, store).get(ledger.sweep.get("fingerprint", ""), store)
    for unfinished in (one for one in stores_of(grid.kinds, store).values() if not one.finished):
        raise StoreError(
            f"the extraction of {unfinished.location} did not come to its end, its statistics would change under the "
            "trials; run the same refavs-extract command again, then this one"
        )
    for part in check_models(grid, store):
        warn(f"refavs-sweep: starts from random weights, not from the checkpoint: {part}")
    _planned(grid, store, ledger, options.rerun)  # a key that no trial has makes no folder
    tracking_address(out, ledger.sweep, tracking_uri)  # nor does an address that is not obeyed
    with ledger.locked(), Baselines(out, store) as baselines:
        uri = tracking_address(out, ledger.sweep, tracking_uri)
        _own(ledger, uri, given=tracking_uri is not None)
        search, entries, anew = _planned(grid, store, ledger, options.rerun)
        for entry in anew:
            ledger.discard(entry)
        if anew:  # what a search knows of them is void
            search, entries, _ = _planned(grid, store, ledger)
        before = _follow(ledger, uri, entries, given=tracking_uri is not None)
        outcome = Outcome(entries=entries, tracking_uri=uri)
        ledger.set_sweep(**facts_of(store))
        if several := store_facts(grid.kinds, store):
            ledger.set_sweep(stores=ledger.sweep.get("stores", {}) | several)
        if not num_to_come(search, ledger) and _nothing_to_do(ledger, outcome, options):
            outcome.controls = baselines.values()
            return outcome
        if changes := ledger.changes(entries):
            warn(f"refavs-sweep: {changes}")
        run = Run(grid, store, ledger, outcome, options, baselines, search)
        sweep_id = ledger.sweep.get("id") or uuid.uuid4().hex
        known = before == uri and "run_id" in ledger.sweep
        run.connect(sweep_id, known, guard_of(out, uri, tracking_uri))
        ledger.set_sweep(id=sweep_id, tracking_uri=uri, closed=None, defaults=ledger.record_defaults(entries))
        resources = resources or Resources()
        if resources.pack_gpus:
            from experiments.cluster.packing import packed

            to_do = [entry.trial for entry in to_run(entries, options.retry_failed)]
            to_do += grid.kinds if num_to_come(search, ledger) else ()
            resources = packed(resources, to_do, store) if to_do else resources
        run.run(resources)
    return outcome


def refuse_unwritable(out: Path) -> None:
    """Refuses a folder whose name MLflow cannot write down: artifacts would land in another one.

    Raises:
        ConfigError: its path has bytes that are no UTF-8.
    """
    path = str(out.resolve())
    if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
        raise ConfigError(f"the sweep's folder {path!a} has bytes in its name that are not UTF-8, which MLflow cannot "
                          "write down; rename that folder, or give another one by --out")  # fmt: skip


def _own(ledger: Ledger, uri: str, given: bool) -> None:
    """Makes what is a copy of another sweep one of its own in MLflow.

    Args:
        given: whether the user named MLflow's address; one that changed with the folder is noted together with it.
    """
    facts = ledger.sweep
    if facts and (original := original_of(ledger.root, facts, uri)):
        warn(f"refavs-sweep: {ledger.root} is a copy of the sweep {original}, which stays as it is; in MLflow this "
             "one gets runs of its own")  # fmt: skip
        follow_move(ledger.root, facts, uri)
        noted = {} if given else {"tracking_uri": uri}
        ledger.set_sweep(id=uuid.uuid4().hex, closed=None, place=place_of(ledger.root), **noted)


def _follow(ledger: Ledger, uri: str, entries: Sequence[Entry], given: bool) -> str | None:
    """Notes where the sweep lies now, and the database that moved with it; returns MLflow's address of before."""
    facts = ledger.sweep
    follow(ledger, uri, {each: closed_mark(entries, each) for each in (str(facts.get("tracking_uri")), uri)})
    follow_move(ledger.root, facts, uri)
    before = ledger.sweep.get("tracking_uri")
    noted = {} if given or before is None else {"tracking_uri": uri}
    ledger.set_sweep(place=place_of(ledger.root), **noted)
    return before


def _planned(
    grid: Grid, store: FeatureStore, ledger: Ledger, rerun: Sequence[str] = ()
) -> tuple[Search | None, list[Entry], list[Entry]]:
    """The search, the trials that are known, and those of them that are to run anew, as the ledger has them now."""
    search = Search(grid, ledger, store.fingerprint) if grid.search else None
    entries = search.entries if search else ledger.entries(grid.trials, store.fingerprint)
    return search, entries, ledger.beginning_with(rerun, entries)


def _nothing_to_do(ledger: Ledger, outcome: Outcome, options: Options) -> bool:
    """Whether all trials ended, MLflow has them, and the best one is registered where that is asked for."""
    entries, uri = outcome.entries, outcome.tracking_uri
    if to_run(entries, options.retry_failed) or ledger.sweep.get("closed") != closed_mark(entries, uri):
        return False
    database = database_at(uri)
    if database is not None and not database.is_file():  # it was removed, and gets everything again
        return False
    if any(pending(entry, uri) for entry in entries):
        return False
    best = best_by_val(entries) if options.register else None
    return best is None or ledger.sweep.get("registered", {}).get(options.register, [None])[0] == best.key


def check_models(grid: Grid, store: FeatureStore) -> list[str]:
    """Builds the head of each distinct kind once, so that settings which do not fit the store are refused at once.

    Returns:
        What of pretrained decoders starts from random weights all the same.

    Raises:
        ConfigError: settings that cannot be used, with the trial's name.
        WeightsError: weights to start from that are damaged, of another size, or not those of the store.
    """
    if grid.search:
        refuse_unmeasured(grid.search.plan, store)
    known, fresh = set(), {}
    for trial in grid.kinds:
        options, init, own = trial.config.model, trial.config.train.init, store_of(trial, store)
        kind = (options.same_cost(), init, own.fingerprint)
        if kind in known:
            continue
        known.add(kind)
        try:
            plain = init is None and trial.weights_dir is None
            with torch.device("meta") if plain else contextlib.nullcontext():
                model = implementation_of(options).from_store(own, options)
            if not plain:
                fresh |= dict.fromkeys(load_start(trial.config, model, own, trial.weights_dir))
        except RefAVSError as error:
            raise type(error)(f"trial {trial.name!r}: {error}") from error
    return list(fresh)

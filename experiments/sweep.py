"""A sweep: what of a grid is done, what is missing, and running that."""

import shutil
import sys
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.config import TrialResources
from experiments.evaluate import control_results_of, controls
from experiments.grid import Grid
from experiments.ledger import Entry, Ledger, read_metrics
from experiments.report.scores import control_values
from experiments.resources import Resources
from experiments.state import read_json, write_json
from experiments.table import csv_text
from experiments.tracking import Tracker, default_tracking_uri
from refavs.config import digest
from refavs.console import ProgressBar
from refavs.errors import RefAVSError, StoreError
from refavs.model.checkpoint import load_weights
from refavs.model.eemc import EEMC, EEMCConfig
from refavs.model.pretrained import Mask2Former, load_decoders
from refavs.store import FeatureStore
from refavs.store.files import write_atomically

ARTIFACTS = ("checkpoint", "statistics.parquet", "overlays", "config.json", "metrics.jsonl")


@dataclass(kw_only=True)
class Outcome:
    """A sweep after a call.

    Attributes:
        num_run: trials that this call finished.
        failures: reason by title of the trials that failed.
        controls: metrics of the constant predictions.
    """

    entries: list[Entry]
    tracking_uri: str
    num_run: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)


def run_sweep(
    grid: Grid, store: FeatureStore, out: Path, resources: Resources | None = None, tracking_uri: str | None = None
) -> Outcome:
    """Runs the trials of `grid` that are not finished in the sweep's folder `out`.

    Raises:
        ConfigError: a trial whose settings do not fit the store, or a folder that another sweep holds.
        StoreError: a store that is damaged, not extracted to its end, or has nothing to train on.
    """
    if not store.finished:
        raise StoreError(
            f"the extraction of {store.location} did not come to its end, its statistics would change under the "
            "trials; run the same refavs-extract command again, then this one"
        )
    for part in check_models(grid, store):
        print(f"refavs-sweep: starts from random weights, not from the checkpoint: {part}", file=sys.stderr)
    ledger = Ledger(out)
    entries = ledger.entries(grid.trials, store.fingerprint)
    uri = tracking_uri or ledger.sweep.get("tracking_uri") or default_tracking_uri(out)
    outcome = Outcome(entries=entries, tracking_uri=uri)
    with ledger.locked():
        outcome.controls = _controls(out, store)
        ledger.set_sweep(
            store=store.location, fingerprint=store.fingerprint, random_features=store.random_weights,
            encoders={stream: str(encoder.get("name")) for stream, encoder in store.encoders.items()},
        )
        if ledger.sweep.get("closed") == _keys(entries) and all(entry.state == "finished" for entry in entries):
            return outcome
        if changes := ledger.changes(entries):
            print(f"refavs-sweep: {changes}", file=sys.stderr)
        ledger.set_sweep(
            id=ledger.sweep.get("id") or uuid.uuid4().hex, tracking_uri=uri, closed=None, defaults=ledger.defaults
        )
        _Run(grid, store, ledger, outcome).run(resources or Resources())
    return outcome


def check_models(grid: Grid, store: FeatureStore) -> list[str]:
    """Builds the head of each distinct kind once, so that settings which do not fit the store are refused at once.

    Returns:
        What of pretrained decoders starts from random weights all the same.

    Raises:
        ConfigError: settings that cannot be used, with the trial's name.
        WeightsError: weights to start from that are damaged, of another size, or not those of the store.
    """
    known, fresh = set(), {}
    for trial in grid.trials:
        init = trial.config.train.init
        if (trial.config.model, init) in known:
            continue
        known.add((trial.config.model, init))
        try:
            model = EEMC(EEMCConfig.from_store(store, **asdict(trial.config.model)))
            if init is not None:
                load_weights(Path(init), model)
                continue
            if trial.weights_dir is not None:
                fresh |= dict.fromkeys(load_decoders(model, Mask2Former.within(trial.weights_dir), store.encoders))
        except RefAVSError as error:
            raise type(error)(f"trial {trial.name!r}: {error}") from error
    return list(fresh)


class _Run:
    """One call of a sweep with something to do."""

    def __init__(self, grid: Grid, store: FeatureStore, ledger: Ledger, outcome: Outcome) -> None:
        self.grid, self.store, self.ledger, self.outcome = grid, store, ledger, outcome
        local = outcome.tracking_uri.startswith("sqlite:")
        out = ledger.root.resolve()
        if local:
            out.parent.mkdir(parents=True, exist_ok=True)
        self.tracker = Tracker(
            outcome.tracking_uri, out.name, ledger.sweep["id"], out.parent / "mlartifacts" / out.name if local else None
        )
        self.progress: ProgressBar | None = None
        self.run_ids: dict[str, str] = {}
        self.queue: deque[list[Entry]] = deque()

    def run(self, resources: Resources) -> None:
        entries = self.outcome.entries
        facts = {"store": self.store.location, "out": self.ledger.root.resolve(), "trials": len(entries)}
        self.parent = self.tracker.start_sweep(self.grid.name, self.grid.description, self.store, facts)
        self.ledger.set_sweep(run_id=self.parent, grid=self.grid.name, git=self.tracker.git)
        try:
            self._run_missing([entry for entry in entries if entry.state != "finished"], resources)
        except BaseException as error:
            self._close_early("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        text = csv_text(entries, self.outcome.controls, self.store.random_weights)
        write_atomically(self.ledger.root / "table.csv", text.encode())
        self.tracker.log_folder(self.parent, self.ledger.root, ("table.csv",))
        self.tracker.end(self.parent, "FAILED" if self.outcome.failures else "FINISHED")
        if not self.outcome.failures:
            self.ledger.set_sweep(closed=_keys(entries))

    def _close_early(self, status: str) -> None:
        """Ends the open runs; what fails here is only told, so that the error that ended the sweep is seen."""
        try:
            stopped = [e for e in self.outcome.entries if e.key in self.run_ids and e.state == "running"]
            for entry in stopped:
                entry.set_status("stopped")
            for run_id in (*(self.run_ids[entry.key] for entry in stopped), self.parent):
                self.tracker.end(run_id, status)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            print(
                f"refavs-sweep: MLflow could not be told that the sweep ended ({type(error).__name__}: {reason}); its "
                "runs stay open there until the same command goes on", file=sys.stderr,
            )

    def _run_missing(self, missing: Sequence[Entry], resources: Resources) -> None:
        for entry in missing:
            self.ledger.enter(entry, self.store.fingerprint)
            if entry.result is not None:
                self.started(entry)
                self.tracker.log_records(self.run_ids[entry.key], read_metrics(entry.folder))
                self.ended(entry, "")
        to_train = [entry for entry in missing if entry.result is None]
        if not to_train:
            return
        from experiments.jobs import run_trials

        num_epochs = sum(entry.trial.config.train.epochs for entry in to_train)
        self.queue = deque([entry] for entry in to_train)
        asked = {entry.trial.config.resources for entry in to_train}
        with ProgressBar(f"sweep {self.grid.name}", num_epochs, "epochs") as self.progress:
            run_trials(self, self.store.location, resources, self.ledger.root, asked)
        for entry in to_train:
            if entry.state != "finished" and entry.trial.title not in self.outcome.failures:
                self.ended(entry, "the trial never ran; Ray found no place for what it asks for")

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """See `experiments.jobs.Trials`, as for the methods below."""

    def next(self) -> list[Entry] | None:
        return self.queue.popleft() if self.queue else None

    def started(self, entry: Entry) -> None:
        run_id = self.tracker.start_trial(entry, self.parent, self.store)
        self.run_ids[entry.key] = run_id
        entry.set_status("running", run_id=run_id)

    def waited(self) -> None:
        if self.progress is not None:
            self.progress.advance(0)

    def progressed(self, entry: Entry, records: list[dict[str, Any]]) -> None:
        self.tracker.log_records(self.run_ids[entry.key], records)
        if self.progress is not None:
            score = records[-1]["metrics"].get("val/J")
            shown = "" if score is None else f" val J {100 * score:.1f}"
            self.progress.advance(len(records), f"{entry.trial.title}: epoch {records[-1]['epoch']}{shown}")

    def ended(self, entry: Entry, reason: str) -> None:
        if entry.key not in self.run_ids:
            self.started(entry)
        run_id, result = self.run_ids[entry.key], entry.result
        if reason or result is None:
            reason = reason or "the trial ended without a result"
            self.tracker.end(run_id, "FAILED", reason)
            entry.set_status("failed", reason=reason)
            self.outcome.failures[entry.trial.title] = reason
            return
        self.tracker.log_records(run_id, [result])
        self.tracker.log_folder(run_id, entry.folder, ARTIFACTS)
        self.tracker.end(run_id, "FINISHED")
        entry.set_status("finished", seconds=result["metrics"]["seconds"])
        self.outcome.num_run += 1
        shutil.rmtree(entry.folder / "state", ignore_errors=True)


def _controls(out: Path, store: FeatureStore) -> dict[str, dict[str, float]]:
    """The constant predictions on this store, computed once for a sweep; by every protocol for its report."""
    path = out / "controls.json"
    known = read_json(path)
    if known is None or known["store"] != store.fingerprint or "protocols" not in known:
        results = control_results_of(store)
        known = {"store": store.fingerprint, "controls": controls(results), "protocols": control_values(results)}
        write_json(path, known)
    return known["controls"]



def _keys(entries: Sequence[Entry]) -> str:
    return digest(sorted(entry.key for entry in entries))

"""One call of a sweep with work to do: trials run under Ray, the ledger records them, and MLflow mirrors the ledger."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.baselines.cache import Baselines
from experiments.cluster.grouping import groups_on
from experiments.cluster.resources import Resources
from experiments.grid.config import TrialResources
from experiments.grid.expand import Grid
from experiments.records.ledger import Entry, Ledger, State
from experiments.sweep.live_table import Watch, progress_of
from experiments.sweep.search import Search
from experiments.sweep.signals import Interrupts
from experiments.sweep.summary import csv_text
from experiments.tracking.client import Tracker
from experiments.tracking.connection import Guard, UnreachableError, without_password
from experiments.tracking.place import ARTIFACTS
from experiments.tracking.sync import TABLE, WAIT_S, Mirror, pending
from refavs.choices import SCORE
from refavs.config import digest
from refavs.files.atomic import write_atomically
from refavs.store import FeatureStore
from refavs.terminal.printing import warn

TOLD_AFTER_S = 3.0
STOPPED_WAIT_S = 5.0  # for MLflow, after a second Ctrl-C
RESULT_WAIT_S = 5.0  # until NFS shows a result that another node wrote


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one call of a sweep.

    Attributes:
        retry_failed: run failed trials again, from their last epoch.
        rerun: beginnings of keys; the results of these trials are discarded, and they run again from the start.
        register: a name in MLflow's model registry for the model of the best trial by J on val.
        grid_file: path of the grid, a tag in MLflow.
        wait_s: how long to wait at the end for an MLflow that does not answer.
        experiment: the MLflow experiment of a new sweep; None for the name of its folder.
        tags: of all runs in MLflow.
    """

    retry_failed: bool = False
    rerun: tuple[str, ...] = ()
    register: str | None = None
    grid_file: str = ""
    wait_s: float = WAIT_S
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Outcome:
    """A sweep after a call.

    Attributes:
        num_run: trials that this call finished.
        num_ended: trials that ended in this call in any state.
        unsent: titles of trials that MLflow does not have in full; `unsent_reason` says why.
        refused: by title, why MLflow refuses data of a trial; sending it again does not help.
        interrupted: the call was asked to stop before its end.
        controls: metrics of the constant predictions; empty if the call ended before they were computed.
    """

    entries: list[Entry]
    tracking_uri: str
    num_run: int = 0
    num_ended: int = 0
    unsent: list[str] = field(default_factory=list)
    unsent_reason: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    controls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Reason by title of all failed trials."""
        failed = [entry for entry in self.entries if entry.state == "failed"]
        return {entry.trial.title: entry.status.get("reason", "unknown") for entry in failed}


def to_run(entries: Sequence[Entry], retry_failed: bool = False) -> list[Entry]:
    """The unfinished trials, with the failed ones if `retry_failed`."""
    states = ("new", "running", "stopped", *(["failed"] if retry_failed else []))
    return [
        entry for entry in entries
        if (state := entry.state) in states or (state == "finished" and entry.result is None)
    ]  # fmt: skip


def num_to_come(search: Search | None, ledger: Ledger) -> int:
    """Trials that a search has yet to suggest; 0 if it could not find another new point."""
    if search is None or ledger.sweep.get("exhausted") == exhausted_mark(search):
        return 0
    return search.num_to_come


def exhausted_mark(search: Search) -> str:
    """Identifies the state of a search in which no new point was found."""
    return digest([search.identity, search.points])


def best_by_val(entries: Sequence[Entry]) -> Entry | None:
    """The finished trial whose saved model has the highest J on val; the first in a tie."""
    scores: dict[str, float] = {}
    for entry in entries:
        if entry.state == "finished" and (score := entry.score(SCORE)) is not None:
            scores[entry.key] = score
    return max((entry for entry in entries if entry.key in scores), key=lambda e: scores[e.key], default=None)


def closed_mark(entries: Sequence[Entry], uri: str) -> str:
    """Identifies a set of trials that MLflow at `uri` has completely."""
    return digest([sorted(entry.key for entry in entries), without_password(uri)])


class Run:
    """The trials of one call; implements `experiments.cluster.tune_runner.Trials`.

    Args:
        sweep_id: identifies the sweep in MLflow.
        guard: see `experiments.tracking.client.Tracker`.
    """

    def __init__(
        self, grid: Grid, store: FeatureStore, ledger: Ledger, outcome: Outcome, options: Options,
        baselines: Baselines, search: Search | None, sweep_id: str, guard: Guard,
    ) -> None:  # fmt: skip
        self.grid, self.store, self.ledger, self.outcome, self.options = grid, store, ledger, outcome, options
        self.baselines, self.search = baselines, search
        self.exhausted = num_to_come(search, ledger) == 0 < (search.num_to_come if search else 0)
        self.given_up: dict[str, str] = {}
        self.queue: deque[list[Entry]] = deque()
        self.to_train: Sequence[Entry] = ()
        self.resources = Resources()
        self.places: Callable[[TrialResources], int] = lambda asked: 0
        self.active: dict[str, Entry] = {}
        self.failed_now: set[str] = set()
        self.watch: Watch | None = None
        self.interrupts = Interrupts(ledger.ask_to_stop)
        self.mirror = self._new_mirror(sweep_id, guard)

    @property
    def stopping(self) -> bool:
        """Whether no more trials start and running ones end after their present epoch."""
        return self.interrupts.asked or self.ledger.asked_to_stop

    def _new_mirror(self, sweep_id: str, guard: Guard) -> Mirror:
        uri, out = self.outcome.tracking_uri, self.ledger.root.resolve()
        artifacts = out.parent / ARTIFACTS / out.name if uri.startswith("sqlite") else None
        experiment, run_id = self.options.experiment or out.name, self.ledger.sweep.get("run_id")
        tracker = Tracker(uri, experiment, sweep_id, artifacts, run_id, guard, self.options.tags)
        facts = {"store": self.store.location, "out": out, "trials": len(self.outcome.entries)}
        grid = {"grid": self.grid.name, "grid_file": self.options.grid_file, "protocol": "canonical"}
        return Mirror(
            tracker, self.ledger, self.store, self.grid.name, self.grid.description, {**facts, **grid}, grid,
            self.outcome.entries,
        )  # fmt: skip

    def connect(self, known: bool) -> None:
        """Contacts MLflow for the first time in this call.

        Args:
            known: whether it has received data of this sweep before; then it may be unreachable now.

        Raises:
            ConfigError: MLflow at this address cannot be used, or has never been reached.
        """
        try:
            self.mirror.tracker.contact()
        except UnreachableError as error:
            if not known:
                raise
            _warn(f"{error}; it answered before, so the trials run now, and what they log stays on disk until it "
                  "answers again")  # fmt: skip

    def run(self, resources: Resources) -> None:
        """Runs the unfinished trials, and waits until MLflow has everything."""
        self.ledger.set_sweep(grid=self.grid.name, git=self.mirror.tracker.git)
        self.mirror.start()
        with self.interrupts:
            try:
                for entry in self.outcome.entries:
                    if pending(entry, self.outcome.tracking_uri):
                        self.mirror.note(entry)
                self._run_missing(to_run(self.outcome.entries, self.options.retry_failed), resources)
                missing = to_run(self.outcome.entries, self.options.retry_failed)
                unfinished = self._num_to_come > 0 or any(entry.key not in self.failed_now for entry in missing)
                self.outcome.interrupted = self.stopping and unfinished
                self.outcome.controls = self._controls()
            except BaseException as error:
                self._close_early("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            self._close()

    @property
    def _num_to_come(self) -> int:
        return num_to_come(self.search, self.ledger)

    def _controls(self) -> dict[str, dict[str, float]]:
        """Metrics of the constant predictions; an interrupted sweep does not wait for them."""
        count = self.interrupts.count
        return self.baselines.values(lambda: self.outcome.interrupted or self.interrupts.count > count)

    def _close(self) -> None:
        text = csv_text(self.outcome.entries, self.outcome.controls, self.store)
        write_atomically(self.ledger.root / TABLE, text.encode())
        status = "KILLED" if self.outcome.interrupted else "FAILED" if self.outcome.failures else "FINISHED"
        best = best_by_val(self.outcome.entries)
        self.outcome.unsent = self.mirror.close(
            status, self.options.wait_s, self._give_up(), None if best is None else (self.options.register, best)
        )
        self.outcome.refused = dict(self.mirror.refused)
        self.outcome.unsent = [title for title in self.outcome.unsent if title not in self.outcome.refused]
        self.outcome.unsent_reason = self.mirror.error
        self._show_messages()
        if self.outcome.unsent or self.outcome.refused or not self.baselines.there:
            return
        if not to_run(self.outcome.entries) and not self._num_to_come:
            self.ledger.set_sweep(closed=closed_mark(self.outcome.entries, self.outcome.tracking_uri))

    def _give_up(self) -> Callable[[], bool]:
        """A function that says whether to stop waiting for MLflow; after a moment it tells the user about the wait."""
        began, count, announced = time.monotonic(), self.interrupts.count, False

        def give_up() -> bool:
            nonlocal announced
            self._show_messages()
            if not announced and time.monotonic() - began > TOLD_AFTER_S:
                announced = True
                _warn(f"sending to MLflow what it lacks; after {self.options.wait_s:.0f} s without an answer, or on "
                      "Ctrl-C, the rest stays on disk")  # fmt: skip
            return self.interrupts.count > count

        return give_up

    def _close_early(self, status: str) -> None:
        """Ends the open runs; an error here is only reported, so that it does not hide the one that ended the sweep."""
        try:
            for entry in self.active.values():
                entry.set_status("stopped")
                self.mirror.note(entry)
            unsent = self.mirror.close(status, STOPPED_WAIT_S)
            if unsent:
                why = f" ({self.mirror.error})" if self.mirror.error else ""
                _warn(f"MLflow could not be told that the sweep ended{why}; its runs stay open there until you run the "
                      "same command again")  # fmt: skip
        except Exception as error:
            _warn(f"the runs could not be closed ({type(error).__name__}: {error}); run the same command again to "
                  "resume")  # fmt: skip

    def _run_missing(self, missing: Sequence[Entry], resources: Resources) -> None:
        self._note_trials()
        for entry in missing:
            self.ledger.enter(entry, self.store.fingerprint)
            if entry.result is not None:  # the sweep was killed after the trial's end
                self.ended(entry, "")
        to_train = [entry for entry in missing if entry.result is None]
        to_come = self._num_to_come
        if not to_train and not to_come:
            return
        from experiments.cluster.tune_runner import run_trials

        self.to_train, self.resources = to_train, resources  # grouped by `ready`, which knows the free places
        kinds = [entry.trial for entry in to_train] + (list(self.grid.kinds) if to_come else [])
        asked = {trial.config.resources for trial in kinds}
        epochs = max(trial.config.train.epochs for trial in kinds)
        trials = {entry.key: progress_of(entry) for entry in to_train}
        with Watch(f"sweep {self.grid.name}", trials, to_come, epochs) as self.watch:
            run_trials(self, self.store.location, resources, self.ledger.root, asked)
        for entry in to_train:
            if not self.stopping and entry.state in ("new", "running"):
                self.ended(entry, "the trial never ran; Ray found no room for the resources it asks for")

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """See `experiments.cluster.tune_runner.Trials`, also for the methods below."""
        self.interrupts.install()
        self.places = places
        self.queue = deque(groups_on(self.store, self.to_train, self.resources, places))

    def next(self) -> list[Entry] | None:
        """The next trials; None once the sweep is asked to stop."""
        if self.stopping:
            return None
        if self.queue:
            return self.queue.popleft()
        new = self.search.suggest_some(self.resources.fuse) if self.search and not self.exhausted else []
        if self.search and not self.search.num_to_come and len(self.search.points) < self.search.plan.budget:
            self.exhausted = True
            self.ledger.set_sweep(exhausted=exhausted_mark(self.search))
            self._note_trials()
        for entry in new:
            self.outcome.entries.append(entry)
            self.ledger.enter(entry, self.store.fingerprint)
            if self.watch is not None:
                self.watch.add(entry)
        if new:
            self._note_trials()
        self.queue.extend(groups_on(self.store, new, self.resources, self.places))
        return self.queue.popleft() if self.queue else None

    def started(self, entry: Entry) -> None:
        """Records the start, but not a restart after the death of a worker."""
        if entry.key not in self.active:
            self.active[entry.key] = entry
            self._set(entry, "running", started_s=round(time.time(), 3))

    def progressed(self, entry: Entry, records: Sequence[Mapping[str, Any]]) -> None:
        """Queues the new records, already in the trial's folder, for MLflow."""
        self.mirror.note(entry)
        if self.search and (reason := self.search.report(entry, records)):
            self.given_up[entry.key] = reason
            entry.ask_to_stop()
        if self.watch is not None:
            self.watch.see(entry, records)

    def ended(self, entry: Entry, reason: str) -> None:
        """Records how a trial ended."""
        result = entry.result
        asked = entry.key in self.given_up or self.stopping or entry.asked_to_stop
        deadline = time.monotonic() + RESULT_WAIT_S
        while result is None and not reason and not asked and time.monotonic() < deadline:
            time.sleep(0.1)
            result = entry.result
        self.active.pop(entry.key, None)
        self.outcome.num_ended += 1
        if result is not None and not reason:
            self._set(entry, "finished", seconds=result["metrics"]["seconds"])
            self.outcome.num_run += 1
            if note := result.get("note"):
                _warn(f"{entry.trial.title} is finished, but some pictures are missing: {note}")
            shutil.rmtree(entry.folder / "state", ignore_errors=True)
        elif reason:
            self.failed_now.add(entry.key)
            self._set(entry, "failed", reason=reason)
        elif entry.key in self.given_up:
            self._set(entry, "pruned", reason=self.given_up[entry.key])
            shutil.rmtree(entry.folder / "state", ignore_errors=True)
        elif asked:
            self._set(entry, "stopped")
        else:
            self.failed_now.add(entry.key)
            self._set(entry, "failed", reason="the trial ended without a result")

    def _set(self, entry: Entry, state: State, **facts: Any) -> None:
        entry.set_status(state, **facts)
        self.mirror.note(entry)
        if self.watch is not None:
            self.watch.state(entry, state, facts.get("reason", ""))

    def waited(self) -> None:
        """Updates the progress display."""
        self._show_messages()
        if self.watch is not None:
            stopping = "stops after the running epochs" if self.stopping else ""
            away = f"MLflow does not answer ({self.mirror.error[:80]}): kept on disk" if self.mirror.error else ""
            self.watch.tick("; ".join(filter(None, (stopping, away))))

    def _note_trials(self) -> None:
        """Records which trials belong to this command, for `refavs-sweep status` and reports."""
        self.ledger.set_sweep(
            current=[entry.folder.name for entry in self.outcome.entries], to_come=self._num_to_come
        )

    def _show_messages(self) -> None:
        while self.mirror.messages:
            _warn(self.mirror.messages.popleft())


def _warn(message: str) -> None:
    warn(f"refavs-sweep: {message}")

"""One call of a sweep with something to do: trials go to Ray, what they say to the ledger, and MLflow mirrors that."""

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
from experiments.sweep.ledger import Entry, Ledger, State
from experiments.sweep.live_table import Watch, progress_of
from experiments.sweep.place import ARTIFACTS
from experiments.sweep.search import Search
from experiments.sweep.signals import Interrupts
from experiments.sweep.summary import csv_text
from experiments.tracking.client import Guard, Tracker, UnreachableError, without_password
from experiments.tracking.sync import TABLE, WAIT_S, Mirror, pending
from refavs.choices import SCORE
from refavs.config import digest
from refavs.files.atomic import write_atomically
from refavs.store import FeatureStore
from refavs.terminal.printing import warn

TOLD_AFTER_S = 3.0
STOPPED_WAIT_S = 5.0  # for MLflow, of one who pressed Ctrl-C twice
RESULT_WAIT_S = 5.0  # for a result that another node wrote, as NFS shows it


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a call of a sweep is asked for beside its grid.

    Attributes:
        retry_failed: run failed trials again, from their last epoch.
        rerun: beginnings of keys of trials whose results are thrown away and which run anew.
        register: a name in MLflow's model registry for the model of the best trial by J on val.
        grid_file: where the grid was read, a tag in MLflow.
        wait_s: how long to wait at the end for an MLflow that does not answer.
    """

    retry_failed: bool = False
    rerun: tuple[str, ...] = ()
    register: str | None = None
    grid_file: str = ""
    wait_s: float = WAIT_S


@dataclass(kw_only=True)
class Outcome:
    """A sweep after a call.

    Attributes:
        num_run: trials that this call finished.
        num_ended: trials that ended in this call, in whatever way.
        unsent: titles of trials of which MLflow lacks something; `unsent_reason` says why.
        refused: why MLflow does not take something of these trials, by their titles; sending it again does not help.
        interrupted: the call was asked to stop before its end.
        controls: metrics of the constant predictions; none where the call ended before they were there.
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
        """Reason by title of the trials that failed, now or before."""
        failed = [entry for entry in self.entries if entry.state == "failed"]
        return {entry.trial.title: entry.status.get("reason", "unknown") for entry in failed}


def to_run(entries: Sequence[Entry], retry_failed: bool = False) -> list[Entry]:
    """The trials that are missing or were stopped, and those that failed where they are to be tried again."""
    again = ("new", "running", "stopped", *(["failed"] if retry_failed else []))
    return [
        entry for entry in entries
        if (state := entry.state) in again or (state == "finished" and entry.result is None)
    ]  # fmt: skip


def num_to_come(search: Search | None, ledger: Ledger) -> int:
    """Trials that a search has still to suggest; none where it found no new point after those it has."""
    if search is None or ledger.sweep.get("exhausted") == exhausted_mark(search):
        return 0
    return search.num_to_come


def exhausted_mark(search: Search) -> str:
    """Names a search after which no new point was found."""
    return digest([search.identity, search.points])


def best_by_val(entries: Sequence[Entry]) -> Entry | None:
    """The finished trial whose kept model has the highest J on val; the first of equals."""
    scores: dict[str, float] = {}
    for entry in entries:
        if entry.state == "finished" and (score := entry.score(SCORE)) is not None:
            scores[entry.key] = score
    return max((entry for entry in entries if entry.key in scores), key=lambda e: scores[e.key], default=None)


def closed_mark(entries: Sequence[Entry], uri: str) -> str:
    """Names a set of trials that MLflow at `uri` has to their end."""
    return digest([sorted(entry.key for entry in entries), without_password(uri)])


class Run:
    """The trials of one call, as `experiments.cluster.tune_runner.Trials` wants them."""

    def __init__(
        self, grid: Grid, store: FeatureStore, ledger: Ledger, outcome: Outcome, options: Options,
        baselines: Baselines, search: Search | None = None,
    ) -> None:  # fmt: skip
        self.grid, self.store, self.ledger, self.outcome, self.options = grid, store, ledger, outcome, options
        self.baselines, self.search = baselines, search
        self.exhausted = num_to_come(search, ledger) == 0 < (search.num_to_come if search else 0)
        self.given_up: dict[str, str] = {}
        self.queue: deque[list[Entry]] = deque()
        self.to_train: Sequence[Entry] = ()
        self.active: dict[str, Entry] = {}
        self.failed_now: set[str] = set()
        self.watch: Watch | None = None
        self.interrupts = Interrupts(ledger.ask_to_stop)

    @property
    def stopping(self) -> bool:
        """Whether no more trials start and those that run end after their epoch."""
        return self.interrupts.asked or self.ledger.asked_to_stop

    def connect(self, sweep_id: str, known: bool, guard: Guard) -> None:
        """Meets MLflow for the first time in this call.

        Args:
            known: whether it has taken something of this sweep before; then it may be away now.
            guard: as for `experiments.tracking.client.Tracker`.

        Raises:
            ConfigError: what is at the address cannot be used, or never was reached.
        """
        uri = self.outcome.tracking_uri
        local = uri.startswith("sqlite")
        out = self.ledger.root.resolve()
        tracker = Tracker(uri, out.name, sweep_id, out.parent / ARTIFACTS / out.name if local else None,
                          self.ledger.sweep.get("run_id"), guard)  # fmt: skip
        facts = {"store": self.store.location, "out": out, "trials": len(self.outcome.entries)}
        grid = {"grid": self.grid.name, "grid_file": self.options.grid_file, "protocol": "canonical"}
        self.mirror = Mirror(
            tracker, self.ledger, self.store, self.grid.name, self.grid.description, {**facts, **grid}, grid,
            self.outcome.entries,
        )
        try:
            tracker.contact()
        except UnreachableError as error:
            if not known:
                raise
            _tell(f"{error}; it had been there before, so the trials run, and what they log stays on disk until then")

    def run(self, resources: Resources) -> None:
        """Runs what is missing, and waits for MLflow to have everything."""
        self.ledger.set_sweep(grid=self.grid.name, git=self.mirror.tracker.git)
        self.mirror.start()
        with self.interrupts:
            try:
                for entry in self.outcome.entries:
                    if pending(entry, self.outcome.tracking_uri):
                        self.mirror.note(entry)
                self._run_missing(to_run(self.outcome.entries, self.options.retry_failed), resources)
                self.outcome.interrupted = self.stopping and self._is_something_left()
                self.outcome.controls = self._controls()
            except BaseException as error:
                self._close_early("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            self._close()

    def _is_something_left(self) -> bool:
        missing = to_run(self.outcome.entries, self.options.retry_failed)
        return any(entry.key not in self.failed_now for entry in missing) or self._num_to_come > 0

    @property
    def _num_to_come(self) -> int:
        return num_to_come(self.search, self.ledger)

    def _controls(self) -> dict[str, dict[str, float]]:
        """The constant predictions; a sweep that was asked to stop does not wait for them."""
        count = self.interrupts.count
        return self.baselines.values(lambda: self.outcome.interrupted or self.interrupts.count > count)

    def _close(self) -> None:
        text = csv_text(self.outcome.entries, self.outcome.controls, self.store)
        write_atomically(self.ledger.root / TABLE, text.encode())
        status = "KILLED" if self.outcome.interrupted else "FAILED" if self.outcome.failures else "FINISHED"
        best = best_by_val(self.outcome.entries) if self.options.register else None
        self.outcome.unsent = self.mirror.close(
            status, self.options.wait_s, self._give_up(),
            None if best is None or self.options.register is None else (self.options.register, best),
        )
        self.outcome.refused = dict(self.mirror.refused)
        self.outcome.unsent = [title for title in self.outcome.unsent if title not in self.outcome.refused]
        self.outcome.unsent_reason = self.mirror.error
        self._pass_on()
        if self.outcome.unsent or self.outcome.refused or not self.baselines.there:
            return
        if not to_run(self.outcome.entries) and not self._num_to_come:
            self.ledger.set_sweep(closed=closed_mark(self.outcome.entries, self.outcome.tracking_uri))

    def _give_up(self) -> Callable[[], bool]:
        """Whether not to wait for MLflow any longer; says after a moment that it is waited for."""
        began, count, told = time.monotonic(), self.interrupts.count, False

        def give_up() -> bool:
            nonlocal told
            self._pass_on()
            if not told and time.monotonic() - began > TOLD_AFTER_S:
                told = True
                _tell(f"sending to MLflow what it lacks; without an answer for {self.options.wait_s:.0f} s it stays on "
                      "disk, and Ctrl-C leaves it there now")  # fmt: skip
            return self.interrupts.count > count

        return give_up

    def _close_early(self, status: str) -> None:
        """Ends the open runs; what fails here is only told, so that the error that ended the sweep is seen."""
        try:
            for entry in self.active.values():
                entry.set_status("stopped")
                self.mirror.note(entry)
            unsent = self.mirror.close(status, STOPPED_WAIT_S)
            if unsent:
                why = f" ({self.mirror.error})" if self.mirror.error else ""
                _tell(f"MLflow could not be told that the sweep ended{why}; its runs stay open there until the same "
                      "command goes on")  # fmt: skip
        except Exception as error:
            _tell(f"the trials could not be closed ({type(error).__name__}: {error}); the same command goes on")

    def _run_missing(self, missing: Sequence[Entry], resources: Resources) -> None:
        self._note_trials()
        for entry in missing:
            self.ledger.enter(entry, self.store.fingerprint)
            if entry.result is not None:  # a kill came after its end
                self.ended(entry, "")
        to_train = [entry for entry in missing if entry.result is None]
        to_come = self._num_to_come
        if not to_train and not to_come:
            return
        from experiments.cluster.tune_runner import run_trials

        self.to_train, self.resources = to_train, resources  # grouped once the places are known
        kinds = [entry.trial for entry in to_train] + (list(self.grid.kinds) if to_come else [])
        asked = {trial.config.resources for trial in kinds}
        epochs = max(trial.config.train.epochs for trial in kinds)
        trials = {entry.key: progress_of(entry) for entry in to_train}
        with Watch(f"sweep {self.grid.name}", trials, to_come, epochs) as self.watch:
            run_trials(self, self.store.location, resources, self.ledger.root, asked)
        for entry in to_train:
            if not self.stopping and entry.state in ("new", "running"):
                self.ended(entry, "the trial never ran; Ray found no place for what it asks for")

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """See `experiments.cluster.tune_runner.Trials`, as for the methods below."""
        self.interrupts.install()
        self.places = places
        self.queue = deque(groups_on(self.store, self.to_train, self.resources, places))

    def next(self) -> list[Entry] | None:
        """The next trials; none once the sweep is asked to stop."""
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
        """Notes the start; a second one in the same call, after the death of a worker, is the same start."""
        if entry.key not in self.active:
            self.active[entry.key] = entry
            self._set(entry, "running", started_s=round(time.time(), 3))

    def progressed(self, entry: Entry, records: Sequence[Mapping[str, Any]]) -> None:
        """Lets MLflow have the new records, which lie in the trial's folder already."""
        self.mirror.note(entry)
        if self.search and (reason := self.search.report(entry, records)):
            self.given_up[entry.key] = reason
            entry.ask_to_stop()
        if self.watch is not None:
            self.watch.see(entry, records)

    def ended(self, entry: Entry, reason: str) -> None:
        """Notes how a trial ended."""
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
                _tell(f"{entry.trial.title} is finished, but not all was drawn: {note}")
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
        """Shows that the sweep is alive."""
        self._pass_on()
        if self.watch is not None:
            stopping = "stops after the running epochs" if self.stopping else ""
            away = f"MLflow does not answer ({self.mirror.error[:80]}): kept on disk" if self.mirror.away else ""
            self.watch.tick("; ".join(filter(None, (stopping, away))))

    def _note_trials(self) -> None:
        """Which trials are those of this command, for who looks at the folder."""
        self.ledger.set_sweep(
            current=[entry.folder.name for entry in self.outcome.entries],
            to_come=self._num_to_come,
        )

    def _pass_on(self) -> None:
        while self.mirror.messages:
            _tell(self.mirror.messages.popleft())


def _tell(message: str) -> None:
    warn(f"refavs-sweep: {message}")

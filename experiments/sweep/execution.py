"""One call of a sweep with work to do: trials run under Ray, the ledger records them, and MLflow mirrors the ledger."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.baselines.cache import Baselines
from experiments.cluster.grouping import groups_on
from experiments.cluster.resources import Resources
from experiments.grid.config import TrialResources
from experiments.grid.expand import Grid
from experiments.records.ledger import Entry, Ledger, State
from experiments.records.stores import features_in
from experiments.sweep.added import new_trials
from experiments.sweep.control import Inbox, Request
from experiments.sweep.live_table import Watch, progress_of
from experiments.sweep.outcome import Options, Outcome, best_by_val, closed_mark, exhausted_mark, num_to_come, to_run
from experiments.sweep.search import Search
from experiments.sweep.signals import Interrupts
from experiments.sweep.summary import csv_text
from experiments.sweep.web_hook import WebHook
from experiments.tracking.client import Tracker
from experiments.tracking.connection import Guard, UnreachableError
from experiments.tracking.place import ARTIFACTS
from experiments.tracking.sync import TABLE, Mirror, pending
from refavs.errors import ConfigError, RefAVSError
from refavs.files.atomic import write_atomically
from refavs.store import FeatureStore
from refavs.terminal.printing import warn

CANCELLED = "cancelled by refavs-sweep cancel"
ENDED = ("finished", "failed", "pruned")
TOLD_AFTER_S = 3.0
STOPPED_WAIT_S = 5.0  # for MLflow, after a second Ctrl-C
RESULT_WAIT_S = 5.0  # until NFS shows a result that another node wrote


class SweepRun:
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
        self.inbox = Inbox(ledger.root)
        self.asked_to_hold = False
        self.num_changes = 0
        self.paused: set[str] = set()
        self.hook = WebHook(options.notify, ledger.root)
        self.watch: Watch | None = None
        self.interrupts = Interrupts(ledger.ask_to_stop)
        self.mirror = self._new_mirror(sweep_id, guard)

    @property
    def stopping(self) -> bool:
        """Whether no more trials start and running ones end after their present epoch."""
        return self.interrupts.asked or self.ledger.asked_to_stop

    @property
    def held(self) -> bool:
        """See `experiments.cluster.tune_runner.Trials`."""
        return self.asked_to_hold and not self.stopping

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
        self.ledger.set_sweep(grid=self.grid.name, git=self.mirror.tracker.git, held=False)
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
                self._refuse_requests()
                self.hook.broke(error)
                self._close_early("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            self._refuse_requests()
            self._close()
            self.hook.ended(self.outcome, best_by_val(self.outcome.entries))

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
        if self.stopping or self.held:
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

    def _carry_out(self, request: Request) -> str:
        """Carries out a request from another terminal; returns the answer.

        Raises:
            ConfigError: it cannot be done.
        """
        if request["action"] == "add":
            return self._add(request)
        if request["action"] == "cancel":
            return self._cancel(request["keys"])
        self.asked_to_hold = request["action"] == "hold"
        self.ledger.set_sweep(held=self.asked_to_hold)
        self.num_changes += 1
        if not self.asked_to_hold:
            return f"{self.ledger.root} goes on"
        if not request["now"]:
            return f"{self.ledger.root} starts no more trials; {len(self.active)} running ones go on to their end"
        for entry in self.active.values():
            self.paused.add(entry.key)
            entry.ask_to_stop()
        return f"{self.ledger.root} is held; {len(self.active)} running trials stop after their present epochs"

    def _cancel(self, keys: Sequence[str]) -> str:
        if not keys:
            self.ledger.ask_to_stop()
            return f"{self.ledger.root} stops after the running epochs; the same command resumes it"
        found = self.ledger.beginning_with(keys, self.outcome.entries)
        done = [entry for entry in found if entry.state in ENDED]
        if done:
            raise ConfigError(f"{done[0].trial.title} is {done[0].state} already; nothing was cancelled")
        for entry in found:
            self.given_up[entry.key] = CANCELLED
            for group in self.queue:
                if entry in group:
                    group.remove(entry)
                    self._set(entry, "pruned", reason=CANCELLED)
                    self.outcome.num_ended += 1
            entry.ask_to_stop()  # a trial that has been handed to Ray ends before or after an epoch
        self.queue = deque(group for group in self.queue if group)
        return f"cancelled: {', '.join(entry.trial.title for entry in found)}"

    def _add(self, request: Request) -> str:
        new = new_trials(self.ledger, request, self.grid, self.store)
        known = {entry.key for entry in self.outcome.entries}
        entries = [entry for entry in self.ledger.entries(new, features_in(self.store)) if entry.key not in known]
        to_train = to_run(entries)
        for entry in to_train:
            self.places(entry.trial.config.resources)
        added = [*self.ledger.sweep.get("added", []), {"grid": request["grid"], "set": request["set"]}]
        self.ledger.set_sweep(added=added)
        for entry in entries:
            self.outcome.entries.append(entry)
            self.ledger.enter(entry, self.store.fingerprint)
            if self.watch is not None:
                self.watch.add(entry, suggested=False)
        self._note_trials()
        self.queue.extend(groups_on(self.store, to_train, self.resources, self.places))
        self.num_changes += 1
        return f"{len(entries)} of {len(new)} trials are new and were added; {len(to_train)} of them are to run"

    def _refuse_requests(self) -> None:
        """Refuses requests that came too late."""
        for received in self.inbox.take(at_once=True):
            received.reply("the sweep has just ended; run its command again", ok=False)

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
            self.hook.failed(entry, reason)
        elif entry.key in self.given_up:
            self._set(entry, "pruned", reason=self.given_up[entry.key])
            shutil.rmtree(entry.folder / "state", ignore_errors=True)
        elif asked:
            self._set(entry, "stopped")
            self._put_back(entry)
        else:
            self.failed_now.add(entry.key)
            self._set(entry, "failed", reason="the trial ended without a result")

    def _put_back(self, entry: Entry) -> None:
        """Queues a trial again that was stopped by `hold --now`."""
        if entry.key not in self.paused or self.stopping:
            return
        self.paused.discard(entry.key)
        self.ledger.enter(entry, self.store.fingerprint)  # forgets the request to stop
        self.queue.appendleft([entry])
        self.outcome.num_ended -= 1
        self.num_changes += 1

    def _set(self, entry: Entry, state: State, **facts: Any) -> None:
        entry.set_status(state, **facts)
        self.mirror.note(entry)
        if self.watch is not None:
            self.watch.state(entry, state, facts.get("reason", ""))

    def waited(self) -> None:
        """Takes requests and updates the progress display."""
        for received in self.inbox.take():
            try:
                received.reply(self._carry_out(received.content))
            except RefAVSError as error:
                received.reply(" ".join(str(error).split()), ok=False)
        self._show_messages()
        if self.watch is not None:
            stopping = "stops after the running epochs" if self.stopping else ""
            away = f"MLflow does not answer ({self.mirror.error[:80]}): kept on disk" if self.mirror.error else ""
            held = f"held; refavs-sweep resume {self.ledger.root} lets it go on" if self.held else ""
            self.watch.tick("; ".join(filter(None, (stopping, held, away))))

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

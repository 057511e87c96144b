"""Mirrors the ledger to MLflow: a thread sends what MLflow lacks, and retries.

No trial waits for MLflow. A trial's folder holds everything to be sent (records, result, files, state), and its
`mlflow.json` says how much of that MLflow has; the difference is pending, whatever was killed when. A request that was
sent but not recorded is sent again, which changes nothing (see `client.py`).
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.records.ledger import Entry, Ledger, read_metrics
from experiments.records.record_types import Sent, read_record, write_json
from experiments.records.stores import store_of
from experiments.tracking.client import Tracker
from experiments.tracking.connection import FEW_RETRIES, gone, lasts, one_line, without_password
from experiments.tracking.model_card import write_card
from refavs.machine.environment import environment_of
from refavs.store import FeatureStore
from refavs.store.fingerprints import fingerprint_of

FILE = "mlflow.json"
CHECKPOINT = "checkpoint"
ARTIFACTS = ("statistics.parquet", "overlays", "config.json", "metrics.jsonl")
OF_FAILED = ("error.txt", "config.json", "metrics.jsonl")
TABLE = "table.csv"
RUN_STATUS = {
    "running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "pruned": "KILLED",
}  # fmt: skip
WAIT_S = 60.0  # for an answer, after the last trial
IN_FLIGHT = 10  # times as long while a request is being sent
LONGEST_PAUSE_S = 10.0
FIRST_PAUSE_S = 0.5
SWEEP = ""  # the key of the parent run in the queue
SWEEP_TITLE = "the sweep's own run"


def sent_of(folder: Path, uri: str) -> dict[str, Any]:
    """What MLflow at `uri` has of the trial in this folder; `attempt` counts how often the trial was restarted.

    Another address has nothing, so that a finished sweep can be sent to a second server.
    """
    known = read_record(folder / FILE, Sent) or {}
    same = known.get("uri") == without_password(uri)
    return known if same else {"attempt": known.get("attempt", 0), "uri": without_password(uri)}


def pending(entry: Entry, uri: str) -> bool:
    """Whether MLflow at `uri` lacks something of a trial that is not running."""
    status, sent = entry.status, sent_of(entry.folder, uri)
    if status["state"] == "new":
        return bool(sent["attempt"]) and not sent.get("cleared")
    return sent.get("time_s") != status.get("time_s") or "run_id" not in sent


class Mirror:
    """Sends a sweep's ledger to MLflow from a thread of its own.

    Args:
        facts: become tags of the sweep's run; they may change when the grid grows.
        trial_facts: become tags of every trial's run.
        entries: all trials; sent again if MLflow has lost the sweep.

    Attributes:
        refused: by the trial's title, why MLflow refuses data; a retry does not help.
        messages: for the user; the driver removes and shows them.
        error: why the last request failed; empty if it succeeded.
    """

    def __init__(
        self, tracker: Tracker, ledger: Ledger, store: FeatureStore, name: str, description: str,
        facts: Mapping[str, Any], trial_facts: Mapping[str, Any], entries: Sequence[Entry] = (),
    ) -> None:  # fmt: skip
        self.entries = entries
        self.tracker, self.ledger, self.store = tracker, ledger, store
        self.name, self.description, self.facts, self.trial_facts = name, description, facts, trial_facts
        self.refused: dict[str, str] = {}
        self.messages: deque[str] = deque()
        self._queue: OrderedDict[str, Entry | None] = OrderedDict()
        self._current: list[Entry | None] = []
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._closing = self._left = False
        self._parent: str | None = None
        self._end: str | None = None
        self._best: tuple[str | None, Entry] | None = None
        self.error = ""
        self._last_success = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="mlflow", daemon=True)

    def start(self) -> None:
        """Starts sending."""
        self._put(SWEEP, None)
        self._thread.start()

    def note(self, entry: Entry) -> None:
        """Queues a trial whose folder has something new."""
        self._put(entry.key, entry)

    def close(
        self, status: str, wait_s: float = WAIT_S, stop: Callable[[], bool] = lambda: False,
        best: tuple[str | None, Entry] | None = None,
    ) -> list[str]:  # fmt: skip
        """Ends the sweep's run with `status` and waits until everything is sent; returns the titles of the rest.

        Args:
            wait_s: how long to wait for an answer; as long as MLflow answers, there is no limit.
            stop: called now and then; True ends the wait.
            best: the best trial, and the name under which to register its model, if any.
        """
        self._end, self._best = status, best
        with self._changed:
            self._queue[SWEEP] = None
            self._closing = True
            self._changed.notify()
        self._hurry.set()
        self._last_success = time.monotonic()
        while self._thread.is_alive() and not stop():
            self._thread.join(0.1)
            # A request with a large file may take long; after a failed one the server is probably unreachable.
            limit = wait_s if self.error else IN_FLIGHT * wait_s
            if time.monotonic() > self._last_success + limit:
                break
        self._left = True
        with self._changed:
            left = [*self._current, *self._queue.values()]
        titles = [SWEEP_TITLE if entry is None else entry.trial.title for entry in left]
        return list(dict.fromkeys([*titles, *self.refused]))

    def _put(self, key: str, entry: Entry | None) -> None:
        with self._changed:
            self._queue[key] = entry
            self._changed.notify()

    def _loop(self) -> None:
        pause = FIRST_PAUSE_S
        with environment_of(FEW_RETRIES):
            while True:
                with self._changed:
                    self._current.clear()
                    while not self._queue and not self._closing:
                        self._changed.wait()
                    if not self._queue or self._left:
                        return
                    key, entry = self._queue.popitem(last=False)
                    self._current.append(entry)
                try:
                    self._send_sweep() if entry is None else self._send_trial(entry)
                except Exception as error:  # no error here may stop the training
                    if lasts(error):
                        self._refuse(entry, error)
                        continue
                    self._note_outage(error)
                    with self._changed:
                        self._queue.setdefault(key, entry)
                        self._current.clear()
                    self._hurry.wait(pause)
                    self._hurry.clear()
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                else:
                    if self.error:
                        self.messages.append("MLflow answers again")
                    self.error = ""
                    self._last_success, pause = time.monotonic(), FIRST_PAUSE_S

    def _note_outage(self, error: Exception) -> None:
        if not self.error:
            self.messages.append(
                f"MLflow at {without_password(self.tracker.uri)} does not accept data ({one_line(error)}); the trials "
                "go on, and what they log stays on disk until it does"
            )
        self.error = one_line(error)

    def _refuse(self, entry: Entry | None, error: Exception) -> None:
        title = SWEEP_TITLE if entry is None else entry.trial.title
        if title not in self.refused:
            self.messages.append(f"MLflow refuses {title}: {one_line(error)}")
        self.refused[title] = one_line(error)

    def _open_sweep(self) -> str:
        """The id of the parent run, which is opened once per call."""
        if self._parent is None:
            if not self.tracker.contacted:
                self.tracker.contact()
            parent = self.tracker.start_sweep(self.name, self.description, self.store, self.facts)
            self._send_again_under(parent)
            known = {**self.ledger.sweep.get("run_ids", {}), fingerprint_of(self.store, ()): parent}
            self.ledger.set_sweep(run_id=parent, run_ids=known)
            self._parent = parent
        return self._parent

    def _send_again_under(self, parent: str) -> None:
        """Sends all trials again if the sweep has a new run, because the old one or its database was removed."""
        before = self.ledger.sweep
        known = before.get("run_ids", {}).get(fingerprint_of(self.store, ()), before.get("run_id"))
        if known is None or known == parent:
            return
        for entry in list(self.entries):
            if entry.state != "new":
                self._reset_sent(entry)
                self.note(entry)

    def _reset_sent(self, entry: Entry) -> None:
        """Records that MLflow has nothing of a trial."""
        attempt = sent_of(entry.folder, self.tracker.uri)["attempt"]
        write_json(entry.folder / FILE, {"attempt": attempt, "uri": without_password(self.tracker.uri)})

    def _send_sweep(self) -> None:
        try:
            self._send_sweep_state()
        except Exception as error:
            if not gone(error):
                raise
            self._parent = None  # deleted while the sweep ran
            self._send_sweep_state()
        self.refused.pop(SWEEP_TITLE, None)

    def _send_sweep_state(self) -> None:
        parent, status = self._open_sweep(), self._end
        if status is None:
            return
        if self._best is not None:
            self.tracker.log_best(parent, self._best[1])
            if self._best[0] is not None:
                self._register(self._best[0], self._best[1])
        self.tracker.log_folder(parent, self.ledger.root, (TABLE,))
        self.tracker.end(parent, status)

    def _register(self, name: str, entry: Entry) -> None:
        run_id = sent_of(entry.folder, self.tracker.uri).get("run_id")
        if run_id is None:
            raise ConnectionError(f"{entry.trial.title} is not in MLflow yet")
        version, alias = self.tracker.register(name, run_id, entry.key)
        self.ledger.set_sweep(registered={**self.ledger.sweep.get("registered", {}), name: [entry.key, version]})
        self.messages.append(f"the model of {entry.trial.title} is version {version} of {name!r} in MLflow's registry, "
                             f"models:/{name}@{alias}")  # fmt: skip

    def _send_trial(self, entry: Entry) -> None:
        from mlflow.exceptions import MlflowException

        parent = self._open_sweep()
        known = "run_id" in sent_of(entry.folder, self.tracker.uri)
        try:
            self._send_state(entry, parent)
        except MlflowException as error:
            if not known or not gone(error):
                raise
            # The run or the database was deleted, or another MLflow took over the address.
            self._reset_sent(entry)
            self._send_state(entry, parent)
        self.refused.pop(entry.trial.title, None)

    def _send_state(self, entry: Entry, parent: str) -> None:
        """Sends what MLflow lacks of a trial."""
        status = entry.status  # read first, so that everything written before it is found below
        sent, state = sent_of(entry.folder, self.tracker.uri), status["state"]

        def note(**facts: Any) -> None:
            sent.update(facts)
            write_json(entry.folder / FILE, sent)

        if state == "new":
            if sent["attempt"] and not sent.get("cleared"):
                self.tracker.keep_only(entry.key, None)
                note(cleared=True)
            return
        records = read_metrics(entry.folder)
        result = entry.result if state == "finished" else None
        if state == "finished" and (result is None or len(records) < result["epoch"]):
            raise ConnectionError(f"the records of {entry.trial.title} are not visible yet")  # delayed by NFS
        num_sent = sent.get("epochs", 0)
        if num_sent and (len(records) < num_sent or records[num_sent - 1]["time_ms"] != sent["time_ms"]):
            # The trial was restarted: its epochs have new points, and MLflow never deletes old ones.
            sent, num_sent = {"attempt": sent["attempt"] + 1, "uri": sent["uri"]}, 0
        if "run_id" not in sent or sent.get("started_s") != status.get("started_s"):
            run_id = self.tracker.start_trial(
                entry, parent, store_of(entry.trial, self.store), sent["attempt"],
                int(1000 * status.get("started_s", time.time())), self.trial_facts,
            )
            sent.pop("time_s", None)
            if run_id != sent.get("run_id"):  # the previous run was deleted
                num_sent = 0
                sent = {"attempt": sent["attempt"], "uri": sent["uri"]}
            note(run_id=run_id, started_s=status.get("started_s"), cleared=True)
        run_id = sent["run_id"]
        if records[num_sent:]:
            self.tracker.log_records(run_id, records[num_sent:])
            note(epochs=len(records), time_ms=records[-1]["time_ms"])
        if state == "running" or sent.get("time_s") == status["time_s"]:
            return
        if state == "finished":
            assert result is not None
            self.tracker.log_records(run_id, [result])
            write_card(entry.folder / CHECKPOINT, store_of(entry.trial, self.store))
            is_logged = self.tracker.log_model(run_id, entry.folder / CHECKPOINT, entry.key)
            self.tracker.log_folder(run_id, entry.folder, ARTIFACTS if is_logged else (CHECKPOINT, *ARTIFACTS))
        if state == "failed":
            self.tracker.log_folder(run_id, entry.folder, OF_FAILED)
        self.tracker.keep_only(entry.key, run_id)
        self.tracker.end(run_id, RUN_STATUS[state], status.get("reason", ""), int(1000 * status["time_s"]))
        note(time_s=status["time_s"])

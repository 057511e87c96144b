"""Runs trials under Ray Tune: each is a plain function on a reused worker.

Tune only manages workers and passes on their reports. The ledger knows what is done, so Tune's own records are
deleted; the sweep decides what runs next, and is asked as soon as a place is free.
"""

import contextlib
import functools
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import ray
import ray.tune
from ray.tune.search import Searcher

from experiments.cluster.resources import Ask, Resources, fit_together
from experiments.cluster.worker import run_trial
from experiments.grid.config import TrialResources
from experiments.records.ledger import Entry
from extract.pipeline.local_ray import ray_at
from refavs.errors import ConfigError
from refavs.machine.environment import environment_of
from refavs.machine.processors import num_processors

TUNE_PREFIX = ".tune-"
MAX_DEATHS = 3  # deaths of a trial's worker without a finished epoch in between
NODES_INTERVAL_S = 1.0
NO_PLACE_S = 60.0  # how long a trial waits for a node with its resources; a lost node may come back
Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


class Trials(Protocol):
    """The interface of a sweep to the placement of its trials; all methods are called in the driver.

    Attributes:
        held: whether no trial may start now, though some may later.
        num_changes: increases when there may be a next trial although none has ended.
    """

    num_changes: int

    @property
    def held(self) -> bool: ...

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """Called once Ray runs; `places` says how many trials with given resources run at once."""
        ...

    def next(self) -> list[Entry] | None:
        """The next trials, to run together in one process; a trial with several workers comes alone.

        Called when a place is free. If there is none (None or empty), called again after a trial has ended.
        """
        ...

    def started(self, entry: Entry) -> None:
        """Called when a worker takes the trial, also after the death of its previous worker."""
        ...

    def progressed(self, entry: Entry, records: list[dict[str, Any]]) -> None:
        """Called with records of epochs, new or repeated. May call `entry.ask_to_stop()`."""
        ...

    def ended(self, entry: Entry, reason: str) -> None:
        """Called at a trial's end, with the reason if it failed; a trial asked to stop has no reason and no result."""
        ...

    def waited(self) -> None:
        """Called several times a second, independently of the trials."""
        ...


def run_trials(
    trials: Trials, store: str, resources: Resources, root: Path, asked: Collection[TrialResources]
) -> None:
    """Runs `trials` until none is left.

    A trial whose worker or node dies resumes from its last epoch, and fails after several deaths in a row.

    Args:
        root: the sweep's folder, visible to all nodes.
        asked: all resources that the trials ask for.

    Raises:
        ConfigError: no cluster answers, or none of its nodes has the resources that some trial asks for.
    """
    for stale in root.glob(f"{TUNE_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    records = Path(tempfile.mkdtemp(prefix=TUNE_PREFIX, dir=root.resolve()))
    try:
        with ray_for(resources, asked):
            placement = _Placement(trials, store, resources, [resources.ask(each) for each in asked])
            for each in asked:
                placement.places(each)
            trials.ready(placement.places)
            try:
                _tune(placement, records)
            except Exception:
                if placement.error is not None:
                    raise placement.error from None  # Tune's own error has only its text
                raise
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _tune(placement: "_Placement", records: Path) -> None:
    ray.tune.Tuner(
        ray.tune.with_resources(run_trial, _bundle),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Next(placement), num_samples=-1, reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=str(records), verbose=0, callbacks=[_Driver(placement)]
        ),
    ).fit()  # fmt: skip


def _bundle(settings: dict[str, Any]) -> ray.tune.PlacementGroupFactory:
    """Resources of a trial's process; for several workers Ray Train requests the processors."""
    amounts: dict[str, float] = settings["resources"] if settings["workers"] == 1 else {"CPU": 0, "memory": 1}
    return ray.tune.PlacementGroupFactory([amounts])


def _keeps_error(call: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Keeps the error of a callback, which Tune would turn into text."""

    @functools.wraps(call)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            args[0].placement.error = error  # type: ignore[attr-defined]
            raise

    return wrapped


class _Placement:
    """Decides which trials run when a place is free, and which run again.

    Trials start in order: one that needs more room than is free holds back the next ones, so that small trials cannot
    overtake it forever. Ray Train places the workers of a trial after the trial itself; since never more is started
    than fits on the nodes together, no trial waits for resources that another one holds.
    """

    def __init__(self, trials: Trials, store: str, resources: Resources, asks: Sequence[Ask]) -> None:
        self.trials, self.store, self.resources, self.asks = trials, store, resources, asks
        self.error: Exception | None = None
        self.idle = False  # the sweep had no trial when last asked, and no trial has ended since
        self.num_changes = trials.num_changes
        self.waiting: deque[list[Entry]] = deque()
        self.running: dict[str, tuple[list[Entry], Ask]] = {}
        self.last_epoch: dict[str, int] = {}
        self.deaths: dict[str, int] = {}
        self._nodes: list[dict[str, float]] = []
        self._nodes_at = self._placeless_since = -float("inf")

    @property
    def nodes(self) -> list[dict[str, float]]:
        """Resources of the live nodes, updated once a second."""
        if time.monotonic() - self._nodes_at > NODES_INTERVAL_S:
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._nodes_at = time.monotonic()
        return self._nodes

    def places(self, asked: TrialResources) -> int:
        """How many trials with these resources run at once.

        Raises:
            ConfigError: not even one.
        """
        return self.resources.of(asked).places(self.nodes, asked.workers)

    def next(self, tune_id: str) -> dict[str, Any] | None:
        """Settings of the next trials, registered under Tune's id; None without a free place or a trial."""
        if self.num_changes != self.trials.num_changes:
            self.num_changes, self.idle = self.trials.num_changes, False
        if self.trials.held:
            return None
        limit = self.resources.max_concurrent
        if (self.idle and not self.waiting) or (limit is not None and len(self.running) >= limit):
            return None
        if not self.waiting:
            # A search's next trial depends on those that run: ask for it only when a place is free.
            if self.running and not any(self._fits(ask) for ask in self.asks):
                return None
            found = self.trials.next()
            self.idle = not found
            if not found:
                return None
            self.waiting.append(found)
        entries = self.waiting[0]
        ask = self.resources.ask(entries[0].trial.config.resources)
        if not self._fits(ask):
            self._give_up_without_nodes(entries)
            return None
        self.waiting.popleft()
        self._placeless_since = -float("inf")
        self.running[tune_id] = (entries, ask)
        return {
            "folders": [str(entry.folder.resolve()) for entry in entries], "store": self.store,
            "workers": ask.workers, "resources": ask.amounts,
        }  # fmt: skip

    @property
    def over(self) -> bool:
        """Whether no trial runs and none is left."""
        return not self.running and not self.waiting and self.idle

    def _fits(self, ask: Ask) -> bool:
        return fit_together([*(taken for _, taken in self.running.values()), ask], self.nodes)

    def _give_up_without_nodes(self, entries: list[Entry]) -> None:
        """Ends trials that have found no node for a while although nothing else runs."""
        if self.running:
            self._placeless_since = -float("inf")
            return
        if self._placeless_since == -float("inf"):
            self._placeless_since = time.monotonic()
        if time.monotonic() - self._placeless_since < NO_PLACE_S:
            return
        try:
            self.places(entries[0].trial.config.resources)
        except ConfigError as error:
            self.waiting.popleft()
            for entry in entries:
                self._end(entry, str(error))

    def started(self, tune_id: str) -> None:
        for entry in self.running[tune_id][0]:
            self.trials.started(entry)

    def reported(self, tune_id: str, result: dict[str, Any]) -> None:
        """Takes a report of one of the trials in a worker."""
        if "folder" not in result or tune_id not in self.running:
            return
        entries, ask = self.running[tune_id]
        entry = next((entry for entry in entries if str(entry.folder.resolve()) == result["folder"]), None)
        if entry is None:
            return
        if result["records"]:
            epoch = result["records"][-1]["epoch"]
            if epoch > self.last_epoch.get(entry.key, 0):
                self.last_epoch[entry.key], self.deaths[entry.key] = epoch, 0
            self.trials.progressed(entry, result["records"])
        if result.get("over") is not None:
            self.running[tune_id] = ([other for other in entries if other is not entry], ask)
            self._end(entry, result["over"])

    def completed(self, tune_id: str) -> None:
        for entry in self.running.pop(tune_id, ([], None))[0]:
            self._end(entry, "")

    def died(self, tune_id: str, reason: str) -> None:
        """The process or node died; its trials are resumed from their last epochs.

        Several trials of one process are resumed as two halves, until a trial that kills its process is alone.
        """
        entries = self.running.pop(tune_id, ([], None))[0]
        if len(entries) > 1:
            half = (len(entries) + 1) // 2
            self.waiting.extendleft([entries[half:], entries[:half]])
            return
        for entry in entries:
            self.deaths[entry.key] = self.deaths.get(entry.key, 0) + 1
            if self.deaths[entry.key] < MAX_DEATHS:
                self.waiting.appendleft([entry])
            else:
                count = f"{MAX_DEATHS} times without an epoch in between, the last time: "
                self._end(entry, f"the worker died {count}{reason}")

    def _end(self, entry: Entry, reason: str) -> None:
        self.trials.ended(entry, reason)
        self.idle = False


class _Next(Searcher):
    """Gives Tune a trial whenever a place is free."""

    def __init__(self, placement: _Placement) -> None:
        super().__init__()
        self.placement = placement

    def __getstate__(self) -> dict[str, Any]:
        return {}  # pickled for Tune's own resume, which is never used

    @_keeps_error
    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        placement = self.placement
        finished: Any = Searcher.FINISHED  # a string, which the return annotation of Ray's method lacks
        if not placement.running:  # Tune waits here then and takes no step
            placement.trials.waited()
        settings = placement.next(trial_id)
        return finished if settings is None and placement.over else settings

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """`_Driver` handles it."""

    def save(self, checkpoint_path: str) -> None:
        """Has no state to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Has no state to restore."""


class _Driver(ray.tune.Callback):
    """Passes Tune's reports on."""

    def __init__(self, placement: _Placement) -> None:
        self.placement = placement

    def __getstate__(self) -> dict[str, Any]:
        return {}  # see _Next

    @_keeps_error
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.placement.trials.waited()

    @_keeps_error
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.started(trial.trial_id)

    @_keeps_error
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.placement.reported(trial.trial_id, result)

    @_keeps_error
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.completed(trial.trial_id)

    @_keeps_error
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.died(trial.trial_id, _reason(trial))


def _reason(trial: Any) -> str:
    """Ray's reason for the death of a worker, on one line."""
    try:
        text = Path(trial.error_file).read_text("utf-8", "replace")
    except (OSError, TypeError):
        text = ""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("Failure #")]
    sentences = [line for line in lines if " " in line.split(":")[0]]  # without Ray's list of ids
    return " ".join(sentences)[:400] or "Ray gives no reason"


@contextlib.contextmanager
def ray_for(resources: Resources, asked: Collection[TrialResources]) -> Iterator[None]:
    """Connects to the cluster at the address, or starts a local Ray, for the time of the sweep."""
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies of the metrics
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the sweep, which closes its runs
        "TUNE_MAX_PENDING_TRIALS_PG": "16",  # trials requested before the first of them has a worker
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # else a box is printed at any verbosity
    }
    available = num_processors()
    num_cpus = max((resources.of(each).local_cpus(available, each.workers) for each in asked), default=available)
    with environment_of(quiet), ray_at(resources.address, num_cpus):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield

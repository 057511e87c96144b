"""Trials under Ray Tune: each a plain function, on workers that are used again.

Tune only keeps workers and passes on what they report. What is done is the ledger's affair, so Tune's own records are
thrown away; what runs next is the sweep's, which is asked for it as soon as there is a place.
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
from extract.pipeline.local_ray import environment_of, ray_at
from refavs.errors import ConfigError
from refavs.machine.processors import num_processors

TUNE_PREFIX = ".tune-"
MAX_DEATHS = 3  # of a trial's worker, without a finished epoch in between
NODES_INTERVAL_S = 1.0
NO_PLACE_S = 60.0  # how long a trial waits for a node that has what it asks for; a lost one may come back
Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


class Trials(Protocol):
    """A sweep as the placement of trials sees it; all of it is called in the driver."""

    def ready(self, places: Callable[[TrialResources], int]) -> None:
        """Ray is there: `places` says how many trials of such resources find a place at the same time."""
        ...

    def next(self) -> list[Entry] | None:
        """The trials to run together in one process next; one of several workers is alone.

        Asked when there is a place. None, or an empty list: there is nothing now; asked again when a trial has ended.
        """
        ...

    def started(self, entry: Entry) -> None:
        """A worker takes the trial; again after its worker died."""
        ...

    def progressed(self, entry: Entry, records: list[dict[str, Any]]) -> None:
        """Records of epochs, some of which may have been there before. May call `entry.ask_to_stop()`."""
        ...

    def ended(self, entry: Entry, reason: str) -> None:
        """The trial ended: with why it failed, or an empty reason. One asked to stop has an empty one and no result."""
        ...

    def waited(self) -> None:
        """Several times a second, whatever the trials do."""
        ...


def run_trials(
    trials: Trials, store: str, resources: Resources, root: Path, asked: Collection[TrialResources]
) -> None:
    """Runs what `trials` gives and returns when nothing more comes and everything has ended.

    A trial whose worker or node dies goes on from its last epoch by itself, and fails after several deaths in a row.

    Args:
        root: the sweep's folder, which all nodes see.
        asked: the resources that occur among the trials.

    Raises:
        ConfigError: no cluster answers, or one of the `asked` finds no place on it at all.
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
                    raise placement.error from None  # Tune would give its text only
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
    """What the process of a trial takes. The processors of several workers are asked for by Ray Train."""
    amounts: dict[str, float] = settings["resources"] if settings["workers"] == 1 else {"CPU": 0, "memory": 1}
    return ray.tune.PlacementGroupFactory([amounts])


def _kept(call: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Keeps the error of a call by Tune, which turns it into text."""

    @functools.wraps(call)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            args[0].placement.error = error  # type: ignore[attr-defined]
            raise

    return wrapped


class _Placement:
    """Which trials run where there is a place, and which have to run again.

    Trials start in the order in which they come: one that waits for more room than is free holds the next ones back, so
    that it is not overtaken for ever. Workers of a trial with several are placed by Ray Train after the trial itself;
    as no more is started than fits on the nodes together, none waits for what another one holds.
    """

    def __init__(self, trials: Trials, store: str, resources: Resources, asks: Sequence[Ask]) -> None:
        self.trials, self.store, self.resources, self.asks = trials, store, resources, asks
        self.error: Exception | None = None
        self.idle = False  # there was nothing to run when it was last asked for, and no trial has ended since
        self.waiting: deque[list[Entry]] = deque()
        self.running: dict[str, tuple[list[Entry], Ask]] = {}
        self.last_epoch: dict[str, int] = {}
        self.deaths: dict[str, int] = {}
        self._nodes: list[dict[str, float]] = []
        self._nodes_at = self._placeless_since = -float("inf")

    @property
    def nodes(self) -> list[dict[str, float]]:
        """Resources of the living nodes, looked up once a second."""
        if time.monotonic() - self._nodes_at > NODES_INTERVAL_S:
            self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self._nodes_at = time.monotonic()
        return self._nodes

    def places(self, asked: TrialResources) -> int:
        """How many trials of such resources run at the same time.

        Raises:
            ConfigError: not a single one.
        """
        return self.resources.of(asked).places(self.nodes, asked.workers)

    def next(self, tune_id: str) -> dict[str, Any] | None:
        """Settings of what runs next, under Tune's name for it; None while there is no place or nothing to run."""
        limit = self.resources.max_concurrent
        if (self.idle and not self.waiting) or (limit is not None and len(self.running) >= limit):
            return None
        if not self.waiting:
            # What comes next may hang on the outcome of what runs: it is asked for when there is a place, not before.
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
        """Whether nothing runs and nothing comes."""
        return not self.running and not self.waiting and self.idle

    def _fits(self, ask: Ask) -> bool:
        return fit_together([*(taken for _, taken in self.running.values()), ask], self.nodes)

    def _give_up_without_nodes(self, entries: list[Entry]) -> None:
        """Ends trials for which there has been no node for a while, not even with nothing else running."""
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
        """News of one of the trials in a worker."""
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
        """The worker died, by no error of a trial's own: they go on from their last epochs.

        Several in one process go on as two halves, until a trial that takes the others with it is alone.
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
                again = f"{MAX_DEATHS} times without an epoch in between, the last time: "
                self._end(entry, f"the worker died {again}{reason}")

    def _end(self, entry: Entry, reason: str) -> None:
        self.trials.ended(entry, reason)
        self.idle = False


class _Next(Searcher):
    """Gives Tune a trial when there is a place for it."""

    def __init__(self, placement: _Placement) -> None:
        super().__init__()
        self.placement = placement

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for a resume of its own, which is never used.

    @_kept
    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        placement = self.placement
        finished: Any = Searcher.FINISHED  # a text, which the annotation of Ray's own method leaves out
        if not placement.running:  # Tune then waits here and takes no step
            placement.trials.waited()
        settings = placement.next(trial_id)
        return finished if settings is None and placement.over else settings

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The driver is told."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing of it is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing of it is kept."""


class _Driver(ray.tune.Callback):
    """Hands on what Tune reports."""

    def __init__(self, placement: _Placement) -> None:
        self.placement = placement

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as above

    @_kept
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.placement.trials.waited()

    @_kept
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.started(trial.trial_id)

    @_kept
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.placement.reported(trial.trial_id, result)

    @_kept
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.completed(trial.trial_id)

    @_kept
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.placement.died(trial.trial_id, _reason(trial))


def _reason(trial: Any) -> str:
    """Why a worker died that could not say so itself, on one line."""
    try:
        text = Path(trial.error_file).read_text("utf-8", "replace")
    except (OSError, TypeError):
        text = ""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("Failure #")]
    sentences = [line for line in lines if " " in line.split(":")[0]]  # not the list of Ray's own ids
    return " ".join(sentences)[:400] or "Ray gives no reason"


@contextlib.contextmanager
def ray_for(resources: Resources, asked: Collection[TrialResources]) -> Iterator[None]:
    """A quiet Ray for the time of the sweep: the cluster at the address, or one of its own on this machine."""
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies of the metrics
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the sweep, which closes its runs
        "TUNE_MAX_PENDING_TRIALS_PG": "16",  # how many are asked for before the first of them has its worker
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # without it a box is printed at any verbosity
    }
    available = num_processors()
    num_cpus = max((resources.of(each).local_cpus(available, each.workers) for each in asked), default=available)
    with environment_of(quiet), ray_at(resources.address, num_cpus):
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield

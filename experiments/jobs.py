"""The trials of a sweep under Ray Tune: one plain function each, on workers that are used again.

Tune only places trials on processors. What is done is the ledger's affair, so Tune's own records are thrown away.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import ray.tune
import torch

from experiments.config import TrialConfig
from experiments.learner import Team
from experiments.ledger import Entry
from experiments.resources import Resources
from experiments.train import train
from refavs.config import replace
from refavs.errors import ConfigError, RefAVSError
from refavs.store import FeatureStore

TUNE_PREFIX = ".tune-"
Started = Callable[[Entry], None]
Progressed = Callable[[Entry, list[dict[str, Any]]], None]
Ended = Callable[[Entry, str], None]


def run_trials(
    entries: Sequence[Entry],
    store: str,
    resources: Resources,
    started: Started,
    progressed: Progressed,
    ended: Ended,
    waited: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials and returns when each has ended; the four functions are called here, in the driver.

    Args:
        ended: receives the reason of the failure, or an empty string.
        waited: called several times a second, whatever the trials do.
    """
    by_folder = {str(entry.folder.resolve()): entry for entry in entries}
    by_workers: dict[int, list[str]] = defaultdict(list)
    for folder, entry in by_folder.items():
        by_workers[entry.trial.config.resources.workers].append(folder)
    root = entries[0].folder.resolve().parent.parent
    for stale in root.glob(f"{TUNE_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    records = Path(tempfile.mkdtemp(prefix=TUNE_PREFIX, dir=root))
    try:
        with _ray(resources, max(by_workers)):
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            at_once = {num_workers: resources.at_once(nodes, num_workers) for num_workers in by_workers}
            for num_workers, folders in sorted(by_workers.items()):
                settings = {
                    "folder": ray.tune.grid_search(folders), "store": store, "resources": resources.asked,
                }  # fmt: skip
                driver = _Driver(by_folder, started, progressed, ended, waited)
                _tune(settings, num_workers, at_once[num_workers], records, driver)
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _tune(
    settings: dict[str, Any], num_workers: int, at_once: int | None, records: Path, driver: ray.tune.Callback
) -> None:
    """Runs trials of the same number of workers."""
    asked = settings["resources"]
    # The processors of several workers are asked for by Ray Train; the trial that waits for them takes none.
    own = {"cpu": asked["CPU"], "gpu": asked["GPU"]} if num_workers == 1 else {"cpu": 0, "memory": 1}
    ray.tune.Tuner(
        ray.tune.with_resources(run_trial, own),
        param_space=settings,
        tune_config=ray.tune.TuneConfig(
            max_concurrent_trials=at_once, reuse_actors=True, trial_dirname_creator=lambda trial: trial.trial_id
        ),
        run_config=ray.tune.RunConfig(
            name=f"tune-{num_workers}", storage_path=str(records), verbose=0, callbacks=[driver]
        ),
    ).fit()


def run_trial(settings: dict[str, Any]) -> None:
    """One trial in a worker; the trial's folder holds its settings. A failure is reported, not raised."""
    folder = Path(settings["folder"])
    try:
        num_workers = _config(folder).resources.workers
        if num_workers == 1:
            device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
            train_share(settings, Team(), device, ray.tune.report)
        else:
            from experiments.distributed import run_workers

            run_workers(train_share, settings, folder, num_workers, settings["resources"])
    except Exception as error:
        (folder / "error.txt").write_text(traceback.format_exc(), "utf-8")
        reason = str(error) if isinstance(error, RefAVSError) else f"{type(error).__name__}: {error}"
        ray.tune.report({"records": [], "failure": reason or "unknown"})


def train_share(
    settings: dict[str, Any], team: Team, device: torch.device, report: Callable[[dict[str, Any]], None]
) -> None:
    """What each worker of a trial does."""
    folder = Path(settings["folder"])
    torch.set_num_threads(max(1, int(settings["resources"]["CPU"])))
    weights = _facts(folder).get("weights_dir")
    train(
        _config(folder), _store(settings["store"]), folder, lambda records: report({"records": records}), device, team,
        None if weights is None else Path(weights),
    )


def _config(folder: Path) -> TrialConfig:
    return replace(TrialConfig(), _facts(folder)["config"])


def _facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text("utf-8"))


@functools.lru_cache(maxsize=1)
def _store(location: str) -> FeatureStore:
    """The store, opened once by each worker."""
    return FeatureStore(location)


class _Driver(ray.tune.Callback):
    """Hands what Tune reports to the sweep."""

    def __init__(
        self, entries: dict[str, Entry], started: Started, progressed: Progressed, ended: Ended,
        waited: Callable[[], None],
    ) -> None:  # fmt: skip
        self.entries, self.started, self.progressed, self.ended = entries, started, progressed, ended
        self.waited = waited
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a resume of its own, which is never used.

    def _entry(self, trial: Any) -> Entry:
        return self.entries[trial.config["folder"]]

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.waited()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.started(self._entry(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("failure"):
            self.failures[trial.trial_id] = result["failure"]
        if result.get("records"):
            self.progressed(self._entry(trial), result["records"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended(self._entry(trial), self.failures.get(trial.trial_id, ""))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended(self._entry(trial), _reason(trial))


def _reason(trial: Any) -> str:
    """Why a worker died that could not say so itself, on one line."""
    try:
        text = Path(trial.error_file).read_text("utf-8", "replace")
    except (OSError, TypeError):
        text = ""
    lines = [line.strip() for line in text.splitlines() if not line.startswith("Failure #")]
    sentences = [line for line in lines if " " in line.split(":")[0]]  # not the list of Ray's own ids
    return f"the worker died: {' '.join(sentences)[:400] or 'Ray gives no reason'}"


@contextlib.contextmanager
def _ray(resources: Resources, num_workers: int) -> Iterator[None]:
    """A quiet Ray for the time of the sweep: the cluster at the address, or one of its own on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies of the metrics
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the sweep, which closes its runs
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # without it a box is printed at any verbosity
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    own: dict[str, Any] = {}
    if resources.address is None:
        num_cpus = resources.local_cpus(len(os.sched_getaffinity(0)), num_workers)
        own = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    try:
        _connect(resources.address, own)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        yield
    finally:
        ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connect(address: str | None, own: dict[str, Any]) -> None:
    """Connects to the cluster at `address`, or starts one with the settings `own`."""
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address is None:
        ray.init(address="local", **quiet, **own)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster answers at --address {address} ({(str(error).splitlines() or [''])[0]}); start one with "
            "'ray start --head', or leave out --address to run on this machine"
        ) from error

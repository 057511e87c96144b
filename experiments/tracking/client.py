"""Writes a sweep into MLflow: a parent run with a child run per trial, written by the driver only.

Every request may be repeated: runs are found by their tags, and a metric point keeps its trial's time stamp, so that
sending it twice leaves one point. `experiments.tracking.sync` decides what to send when.
"""

import contextlib
import getpass
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.grid.trial import NOT_IN_KEY
from experiments.records.ledger import Entry
from experiments.tracking.connection import Guard, first_contact, gone, without_password
from experiments.tracking.database import sqlite_uri
from experiments.tracking.logged_models import log_model, register
from refavs.choices import SCORE
from refavs.config import digest, flat
from refavs.errors import ConfigError
from refavs.files.partials import PARTIAL
from refavs.store import FeatureStore
from refavs.store.fingerprints import fingerprint_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

BATCH_METRICS = 1000
BATCH_PARAMS = 100
DIGEST_LENGTH = 36
LONGEST_KEY = 250
REASON = "refavs.reason"
ATTEMPT = "refavs.attempt"
KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's page opens the view for language models


def default_tracking_uri(out: Path) -> str:
    """The SQLite database beside the sweep's folder, shared by all sweeps there."""
    return sqlite_uri(out.resolve().parent / "mlflow.db")


def git_facts(folder: Path) -> dict[str, str]:
    """Git commit of the code in `folder`, and whether it has changes; empty outside of git.

    A cluster job, whose code is shipped without its history, gets them in its environment.
    """
    if commit := os.environ.get("REFAVS_GIT_COMMIT"):
        dirty = os.environ.get("REFAVS_GIT_DIRTY", "true")
        return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": dirty}

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(changes)).lower()}


def metric_name(name: str) -> str:
    """`name` in the form that MLflow accepts: other characters replaced, and a long name cut and made unique."""
    parts = re.sub(r"[^\w\-./ :]", "_", name).split("/")
    plain = "/".join("_" if part in ("", ".", "..") else part for part in parts)
    return plain if len(plain) <= LONGEST_KEY else f"{plain[: LONGEST_KEY - 9]}-{digest(name)[:8]}"


def points_of(record: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """The metrics of an epoch's record with their times: its own, and the samples of resource usage."""
    yield record["time_ms"], record["metrics"]
    for sample in record.get("usage", ()):
        named = dict(sample)
        yield named.pop("time_ms", record["time_ms"]), {f"system/{name}": value for name, value in named.items()}


class Tracker:
    """Writes one sweep into MLflow.

    Args:
        uri: tracking server or database.
        experiment: name of the MLflow experiment.
        sweep_id: identifies the sweep on that server.
        artifacts: where a new local experiment keeps its artifacts; None leaves it to the server.
        run_id: the sweep's run, if any; even after the folder is renamed, its experiment stays the sweep's.
        guard: refuses addresses of artifacts, and names of files there, that must not be written.
        tags: of all runs and models, from the user.
    """

    client: "MlflowClient"  # from `contact` on
    experiment_id: str

    def __init__(
        self, uri: str, experiment: str, sweep_id: str, artifacts: Path | None, run_id: str | None = None,
        guard: Guard = lambda artifacts, names: None, tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.tags = dict(tags or {})
        self.uri, self.experiment, self.sweep_id = uri, experiment, sweep_id
        self.artifacts, self.run_id, self.guard = artifacts, run_id, guard
        self.git = git_facts(Path(__file__).parent)
        self.contacted = False

    def contact(self) -> None:
        """Finds or creates the experiment; required before anything is sent.

        Raises:
            ConfigError: MLflow at the address cannot be used, or the experiment is deleted there; an
                `UnreachableError` if nothing answers.
        """
        with first_contact(self.uri) as client:
            self.client, self.experiment_id = client, self._experiment(client)
            self.contacted = True

    def _experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = self._known_experiment(client) or client.get_experiment_by_name(self.experiment)
        if found is None:
            location = None if self.artifacts is None else self.artifacts.resolve().as_uri()
            try:
                return client.create_experiment(self.experiment, artifact_location=location, tags=KIND)
            except MlflowException:  # created by another sweep meanwhile, or by a request whose answer was lost
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            shown = without_password(self.uri)
            raise ConfigError(
                f"the MLflow experiment {self.experiment!r} at {shown} is deleted; bring it back with "
                f"'MLFLOW_TRACKING_URI={shown} mlflow experiments restore --experiment-id {found.experiment_id}', or "
                "give another --out"
            )
        self.guard(str(found.artifact_location), ())
        return found.experiment_id

    def _known_experiment(self, client: "MlflowClient") -> "Experiment | None":
        """The experiment of the sweep's own run; None if MLflow does not have that run."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(self.run_id) if self.run_id else None
        except MlflowException as error:
            if not gone(error):
                raise
            return None
        own = run and run.data.tags.get("refavs.sweep") == self.sweep_id
        return client.get_experiment(run.info.experiment_id) if run and own else None

    def start_sweep(self, name: str, description: str, store: FeatureStore, facts: Mapping[str, Any]) -> str:
        """Opens or reopens the parent run and returns its id; `facts` may change when the grid grows."""
        from mlflow.entities import RunTag

        tags = {"mlflow.note.content": description, "refavs.kind": "sweep", "refavs.grid": name}
        run_id = self._find_or_create(f"sweep-{fingerprint_of(store, ())}", name, tags, store)
        changing = {f"refavs.{key}": value for key, value in facts.items()} | self.tags
        self.client.log_batch(run_id, tags=[RunTag(key, _utf8(value)) for key, value in changing.items()])
        self._log_store(run_id, store)
        return run_id

    def start_trial(
        self, entry: Entry, parent: str, store: FeatureStore, attempt: int = 0, started_ms: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Opens or reopens a trial's run and returns its id.

        Args:
            attempt: how often the trial was restarted; runs of earlier attempts are deleted.
            started_ms: when the trial started.
            facts: become tags of the run.
        """
        from mlflow.entities import RunTag

        tags = {
            "mlflow.parentRunId": parent,
            "refavs.kind": "trial",
            "refavs.case": entry.trial.name,
            "refavs.seed": str(entry.trial.config.seed),
            ATTEMPT: str(attempt),
        }
        run_id = self._find_or_create(entry.key, entry.trial.title, tags, store, started_ms)
        settings = flat(entry.trial.config)
        loose = {name: settings.pop(name) for name in list(settings) if name.startswith(NOT_IN_KEY)}
        self._log_params(run_id, settings)
        # As tags, since MLflow's parameters never change and these may when a trial resumes.
        loose |= facts or {}
        tags = {f"refavs.{name}": value for name, value in loose.items()} | self.tags | {"mlflow.parentRunId": parent}
        self.client.log_batch(run_id, tags=[RunTag(name, _utf8(value)) for name, value in tags.items()])
        self._log_store(run_id, store)
        return run_id

    def log_records(self, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Sends records of finished epochs, with the usage of resources, in as few requests as possible."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key=metric_name(name), value=value, timestamp=time_ms, step=record["epoch"])
            for record in records
            for time_ms, named in points_of(record)
            for name, value in named.items()
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])

    def log_folder(self, run_id: str, folder: Path, names: Sequence[str]) -> None:
        """Uploads files and folders of a trial under their own names, without partial files of killed writers."""
        found = [
            path.relative_to(folder) for name in names for path in (folder / name, *sorted((folder / name).rglob("*")))
            if path.is_file() and not path.name.endswith(PARTIAL)
        ]  # fmt: skip
        if not found:
            return
        self.guard(str(self.client.get_run(run_id).info.artifact_uri), map(str, found))
        for path in found:
            below = path.parent.as_posix()
            self.client.log_artifact(run_id, str(folder / path), None if below == "." else below)

    def end(self, run_id: str, status: str, reason: str = "", ended_ms: int | None = None) -> None:
        """Closes a run as FINISHED, FAILED or KILLED."""
        if reason:
            self.client.set_tag(run_id, REASON, reason[:5000])
        self.client.set_terminated(run_id, status=status, end_time=ended_ms)

    def keep_only(self, key: str, run_id: str | None) -> None:
        """Deletes other runs of a trial: of earlier attempts, or created by a request whose answer was lost."""
        for run in self._runs(key):
            if run.info.run_id != run_id:
                for output in run.outputs.model_outputs if run.outputs else ():
                    self.client.delete_logged_model(output.model_id)
                self.client.delete_run(run.info.run_id)

    def log_model(self, run_id: str, folder: Path, key: str) -> bool:
        """Uploads a trial's checkpoint as a logged model; False if the server has no logged models."""
        tags = {"refavs.key": key, "refavs.sweep": self.sweep_id, **self.tags}
        return log_model(self.client, run_id, folder, tags, self.guard) is not None

    def register(self, name: str, run_id: str, key: str) -> tuple[str, str]:
        """Registers a trial's model as a version of the model `name`; returns the version's number and its alias."""
        return register(self.client, name, run_id, self.sweep_id, key)

    def log_best(self, run_id: str, entry: Entry) -> None:
        """Writes the results of the best trial into the sweep's run, as metrics `best/...`."""
        from mlflow.entities import Metric, RunTag

        result, score = entry.result or {"metrics": {}, "time_ms": 0, "epoch": 0}, entry.score(SCORE)
        metrics = [
            Metric(key=metric_name(f"best/{name}"), value=value, timestamp=result["time_ms"], step=result["epoch"])
            for name, value in {**result["metrics"], **({} if score is None else {SCORE: score})}.items()
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])
        self.client.log_batch(run_id, tags=[RunTag("refavs.best", _utf8(entry.trial.title))])

    def _runs(self, key: str) -> "list[Run]":
        """The undeleted runs of this sweep with this key, oldest first."""
        own = f"tags.`refavs.sweep` = '{self.sweep_id}' and tags.`refavs.key` = '{key}'"
        return list(self.client.search_runs([self.experiment_id], own, order_by=["attributes.start_time ASC"]))

    def _find_or_create(
        self, key: str, name: str, tags: dict[str, str], store: FeatureStore, started_ms: int | None = None
    ) -> str:
        """The run of this sweep with this key; the tags also find one created just before a kill."""
        wanted = tags.get(ATTEMPT, "0")
        same = [run for run in self._runs(key) if run.data.tags.get(ATTEMPT, "0") == wanted]
        if same:
            run_id = same[0].info.run_id
            if same[0].info.status != "RUNNING":
                self.client.update_run(run_id, status="RUNNING")
            if REASON in same[0].data.tags:
                self.client.delete_tag(run_id, REASON)
        else:
            own = {
                "refavs.sweep": self.sweep_id,
                "refavs.key": key,
                "refavs.store": store.fingerprint,
                "refavs.features": "random weights" if store.random_weights else "pretrained weights",
                "mlflow.user": _user(),
                "mlflow.source.name": "refavs-sweep",
            }
            run = self.client.create_run(
                self.experiment_id, start_time=started_ms, run_name=name, tags={**own, **self.git, **tags}
            )
            run_id = run.info.run_id
        self.keep_only(key, run_id)
        return run_id

    def _log_params(self, run_id: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key=name, value=str(value)) for name, value in values.items()]
        for start in range(0, len(params), BATCH_PARAMS):
            self.client.log_batch(run_id, params=params[start : start + BATCH_PARAMS])

    def _log_store(self, run_id: str, store: FeatureStore) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        kind, _, remote = store.location.partition("://")
        if remote:
            told = json.dumps({"uri": store.location})
            with contextlib.suppress(MlflowException):  # MLflow knows no such addresses
                source = resolve_dataset_source(store.location)
                kind, told = source._get_source_type(), source.to_json()
        else:  # as MLflow would resolve it, which warns that it knows two local sources
            kind, told = "local", json.dumps({"uri": os.path.abspath(store.location)})
        profile = {"clips": len(store.clips), "expressions": len(store.expressions)}
        dataset = Dataset(
            name=_utf8(store.location.rstrip('/').rsplit('/', 1)[-1]),
            digest=store.fingerprint[:DIGEST_LENGTH],
            source_type=kind,
            source=without_password(_utf8(told)),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(
            run_id, [DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value="training")])]
        )


def _utf8(value: object) -> str:
    """A value as text for MLflow, which refuses paths that are not UTF-8."""
    return os.fsencode(str(value)).decode(errors="backslashreplace")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"

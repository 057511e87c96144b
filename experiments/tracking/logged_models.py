"""Trained heads as MLflow models: a logged model for each trial, versions in the registry, and their aliases.

A logged model's files lie at an address of their own. `runs:/RUN/checkpoint` finds them by the model's name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.tracking.connection import Guard
from refavs.files.partials import PARTIAL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

NAME = "checkpoint"
CHAMPION, CHALLENGER = "champion", "challenger"
MODEL_TYPE = "refavs head"
UNKNOWN = ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED")  # what a server without them answers


def log_model(
    client: "MlflowClient", run_id: str, folder: Path, tags: Mapping[str, str], guard: Guard
) -> "LoggedModel | None":
    """Uploads a checkpoint as the logged model of a run, once; None if there are no files, or the server has no models.

    Args:
        guard: see `experiments.tracking.client.Tracker`.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    paths = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.endswith(PARTIAL))
    if not paths:
        return None
    try:
        model = model_of(client, run_id)
        if model is None:
            experiment = client.get_run(run_id).info.experiment_id
            model = client.create_logged_model(experiment, NAME, run_id, dict(tags), model_type=MODEL_TYPE)
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
    guard(str(model.artifact_location), [path.name for path in paths])
    for path in paths:
        client.log_model_artifact(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model


def model_of(client: "MlflowClient", run_id: str) -> "LoggedModel | None":
    """The logged model of a run; None if it has none, or the server knows no logged models."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_run(run_id).info.experiment_id
    try:
        found = client.search_logged_models([experiment], f"name = '{NAME}' AND source_run_id = '{run_id}'")
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return None
    return min(found, key=lambda model: model.creation_timestamp, default=None)


def register(client: "MlflowClient", name: str, run_id: str, sweep: str, key: str) -> tuple[str, str]:
    """Registers a run's model as a version of the model `name`, once, and gives it an alias.

    The version becomes the champion, unless that is the model of another sweep; then it is the challenger.

    Args:
        sweep: identifies the sweep.
        key: of the trial.

    Returns:
        The number of the version, and its alias.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id='{run_id}'")
    known = [int(version.version) for version in versions if version.name == name]
    if known:
        number = str(min(known))
    else:
        model = model_of(client, run_id)
        source = f"{client.get_run(run_id).info.artifact_uri}/{NAME}" if model is None else model.artifact_location
        tags = {"refavs.key": key, "refavs.sweep": sweep}
        version = client.create_model_version(
            name, source, run_id, tags, model_id=None if model is None else model.model_id
        )
        number = str(version.version)
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    own = champion is None or client.get_model_version(name, str(champion)).tags.get("refavs.sweep") == sweep
    alias = CHAMPION if own else CHALLENGER
    client.set_registered_model_alias(name, alias, number)
    return number, alias

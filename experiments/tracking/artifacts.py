"""Uploads files to an existing MLflow run, and downloads its files."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from experiments.tracking.connection import Guard, first_contact, without_password
from experiments.tracking.database import refuse_missing
from experiments.tracking.logged_models import NAME, model_of
from refavs.errors import ConfigError


def upload(
    uri: str, run_id: str, folder: Path, names: Sequence[str], below: str, guard: Guard = lambda artifacts, names: None
) -> None:
    """Uploads files of a folder to an existing run, with their relative paths, below a folder of its artifacts.

    Args:
        guard: see `Tracker`.

    Raises:
        ConfigError: MLflow at `uri` cannot be used, has no such run, or accepts no files.
    """
    refuse_missing(uri)
    with first_contact(uri) as client:
        artifacts = client.get_run(run_id).info.artifact_uri
        guard(str(artifacts), [f"{below}/{name}" for name in names])
        try:
            for name in names:
                client.log_artifact(run_id, str(folder / name), str(PurePosixPath(below, name).parent))
        except OSError as error:  # including network errors
            raise ConfigError(f"its artifacts at {without_password(str(artifacts))} cannot be written ("
                              f"{' '.join(str(error).split())[:200]})") from error  # fmt: skip


def run_of_model(uri: str, model: str) -> str:
    """The id of the run whose model is registered as `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ConfigError: MLflow at `uri` cannot be used, or has no such model.
    """
    from mlflow.exceptions import MlflowException

    refuse_missing(uri)
    name, at, alias = model.removeprefix("models:/").partition("@")
    name, _, version = (name, "", "") if at else name.rpartition("/")
    with first_contact(uri) as client:
        try:
            found = client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, version)
        except MlflowException as error:
            raise ConfigError(f"MLflow at {without_password(uri)} has no model {model} "
                              f"({' '.join(str(error).split())[:200]}); write models:/NAME@ALIAS or "
                              "models:/NAME/VERSION") from error  # fmt: skip
        return str(found.run_id)


def download(uri: str, run_id: str, name: str) -> Path:
    """Downloads a folder of a run's artifacts and returns its local path.

    Raises:
        ConfigError: MLflow at `uri` cannot be used, has no such run, or the run has no such folder.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    refuse_missing(uri)
    with first_contact(uri) as client:
        try:
            # MLflow's own `runs:/` looks for logged models at the address in the environment, not at this one.
            model = model_of(client, run_id) if name == NAME else None
            if model is not None:
                return Path(download_artifacts(artifact_uri=model.artifact_location, tracking_uri=uri))
            return Path(client.download_artifacts(run_id, name))
        except (MlflowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"MLflow at {without_password(uri)} has no {name} of run {run_id!r} ({reason}); give the "
                              "id of a finished trial") from error  # fmt: skip

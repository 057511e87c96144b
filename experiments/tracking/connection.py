"""Requests to MLflow: a client that fails soon, and which errors a retry can mend."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from experiments.tracking.database import first_use
from refavs.errors import ConfigError, RefAVSError
from refavs.machine.environment import environment_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

DELETED = "must be in the 'active' state"
# MLflow's client would retry for many minutes.
FEW_RETRIES = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
OUT_OF_DATE = "out-of-date database schema"
# Errors that a retry does not fix; any other may be an unreachable server or a locked database.
LASTING = frozenset({
    "ALREADY_EXISTS", "BAD_REQUEST", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED",
    "INVALID_PARAMETER_VALUE", "INVALID_STATE", "MALFORMED_REQUEST", "NOT_FOUND", "NOT_IMPLEMENTED",
    "PERMISSION_DENIED", "QUOTA_EXCEEDED", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED",
})  # fmt: skip


Guard = Callable[[str, Iterable[str]], None]


class UnreachableError(ConfigError):
    """MLflow does not answer at an address, but may do so later."""


def without_password(uri: str) -> str:
    """An address without user name and password."""
    return re.sub(r"(?<=://)[^/\s]+@", "", uri)


def lasts(error: BaseException) -> bool:
    """Whether a retry would meet the same error."""
    if isinstance(error, UnreachableError):
        return False
    ours = (RefAVSError, ImportError, AssertionError, AttributeError, KeyError, NameError, TypeError)
    return getattr(error, "error_code", "") in LASTING or isinstance(error, ours)


def gone(error: BaseException) -> bool:
    """Whether the run of the failed request is missing or deleted in MLflow."""
    code = getattr(error, "error_code", "")
    return code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and DELETED in str(error))


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of its text, without passwords."""
    return f"{type(error).__name__}: {without_password(' '.join(str(error).split()))[:200]}"


@contextlib.contextmanager
def first_contact(uri: str) -> Iterator["MlflowClient"]:
    """Yields a quiet client, and turns errors of its first requests into one clear error.

    Raises:
        ConfigError: MLflow at `uri` cannot be used; an `UnreachableError` if nothing answers.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic.util import CommandError  # for a database of a newer MLflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with environment_of(FEW_RETRIES):
            with first_use(uri):
                client = MlflowClient(tracking_uri=uri)
            yield client
    except (MlflowException, SQLAlchemyError, CommandError, ImportError) as error:  # ImportError: a missing driver
        if OUT_OF_DATE in str(error):
            shown = without_password(uri)
            raise ConfigError(
                f"the MLflow database {shown} was made by an older MLflow; make a copy of it, then run "
                f"'mlflow db upgrade {shown}' and the same command again"
            ) from error
        reason = without_password(" ".join(str(error).split()))[:200]
        away = not lasts(error) and (not uri.startswith("sqlite") or "database is locked" in str(error))
        raise (UnreachableError if away else ConfigError)(
            f"MLflow at {without_password(uri)} cannot be used ({reason}); give by --tracking-uri a running server, "
            "such as http://HOST:5000, or a database, such as sqlite:///PATH.db"
        ) from error

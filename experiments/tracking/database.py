"""MLflow's SQLite database: its address, its creation by exactly one of several sweeps, and its artifacts' place."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from refavs.errors import ConfigError
from refavs.files.locks import NO_LOCKS
from refavs.files.partials import PARTIAL

SQLITE, DRIVER = "sqlite:///", "sqlite+pysqlite:///"
WAIT_S = 300.0  # for another process to create the database, which takes seconds
KNOWN = "experiments"  # a table of every MLflow database


def sqlite_uri(database: Path) -> str:
    """The address of a database, with `?` and `%` escaped, which SQLAlchemy would interpret."""
    path = str(database)
    if not {"?", "%"} & set(path):
        return f"{SQLITE}{path}"
    from sqlalchemy import make_url

    # With the driver's name: from the shorter form MLflow would create a folder with the escaped name.
    escaped = f"{DRIVER}{path.replace('%', '%25').replace('?', '%3F')}"
    if make_url(escaped).database == path:
        return escaped
    # SQLAlchemy before 2.1 unescapes nothing before a `?`; a `?` itself must be passed on to SQLite as a URI.
    return f"{DRIVER}{path}" if "?" not in path else f"{DRIVER}file:{quote(path)}?uri=true"


def database_at(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other address."""
    if not uri.startswith((SQLITE, DRIVER)):
        return None
    name: str | None = uri.removeprefix(SQLITE).removeprefix(DRIVER)
    if {"?", "%"} & set(uri):
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            name = make_url(uri).database
        except (ArgumentError, ValueError):
            return None
    return None if not name or name.startswith((":memory:", "file:")) else Path(name)


def has_run(database: Path | None, run_id: object) -> bool:
    """Whether an MLflow database has a run; neither changes nor creates the file."""
    if database is None or not database.is_file() or not isinstance(run_id, str):
        return False
    with contextlib.suppress(sqlite3.Error), _read_only(database) as connection:
        return connection.execute("select 1 from runs where run_uuid = ?", (run_id,)).fetchone() is not None
    return False


def refuse_missing(uri: str) -> None:
    """Refuses the address of a missing database, which MLflow would create.

    Raises:
        ConfigError: the database does not exist.
    """
    database = database_at(uri)
    if database is not None and not database.is_file():
        raise ConfigError(f"there is no MLflow database {database}; give its address by --tracking-uri")


@contextlib.contextmanager
def first_use(uri: str) -> Iterator[None]:
    """Creates the database at `uri` if missing, under a lock that keeps other processes from doing the same.

    Open a process's first client inside: it completes a database that an older version left incomplete.

    Raises:
        ConfigError: the file is a database of another program, or another process has been creating it for minutes.
    """
    database = database_at(uri)
    if database is None:
        yield
        return
    with _alone(database):
        _refuse_foreign(database)
        if not database.exists() or (database.is_file() and not database.stat().st_size):
            _create(uri, database)
        yield


def move_artifacts(database: Path, run_id: str, before: str, now: str) -> None:
    """Replaces the beginning of artifact addresses in a database that was moved or copied with a sweep's folder.

    MLflow stores absolute addresses and has no request to change them. A read-only database stays as it is.

    Args:
        run_id: a run in the experiment whose addresses change.
        before: beginning of the addresses; `now` replaces it.
    """
    chosen = "experiment_id in (select experiment_id from runs where run_uuid = ?)"
    of_runs = f"run_id in (select run_uuid from runs where {chosen})"
    columns = [
        ("model_versions", "source", of_runs),
        ("model_versions", "storage_location", of_runs),
        ("runs", "artifact_uri", chosen),
        ("logged_models", "artifact_location", chosen),
        ("experiments", "artifact_location", chosen),
    ]
    begins = len(f"{before}/")
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        for table, column, where in columns:
            with contextlib.suppress(sqlite3.OperationalError):  # older databases lack some of them
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) "
                    f"where substr({column}, 1, ?) = ? and {where}",
                    (f"{now}/", begins + 1, begins, f"{before}/", run_id),
                )
        connection.commit()


@contextlib.contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Holds the lock file beside the database; goes on without it in a folder that cannot be written."""
    path = database.with_name(f".{database.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError:  # MLflow reports what it cannot do there
        yield
        return
    try:
        _lock(file, database)
        yield
    finally:
        os.close(file)


def _lock(file: int, database: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise ConfigError(f"another process has been creating the MLflow database {database} for "
                                  f"{WAIT_S / 60:.0f} minutes; look at it, then run the same command again") from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in (*NO_LOCKS, errno.EBADF):
                raise
            return


def _refuse_foreign(database: Path) -> None:
    if not database.is_file():
        return
    try:
        with _read_only(database) as connection:
            tables = sorted(name for (name,) in connection.execute("select name from sqlite_master where type='table'"))
    except sqlite3.Error:  # not a database, or locked: MLflow reports it
        return
    if tables and KNOWN not in tables:
        shown = ", ".join(tables[:3]) + " ..." * (len(tables) > 3)
        raise ConfigError(f"{database} is a database of another program (its tables: {shown}), and nothing is written "
                          "into it; give by --tracking-uri a database of MLflow, or the name of a new one, as "
                          "sqlite:///PATH.db")  # fmt: skip


def _read_only(database: Path) -> contextlib.closing[sqlite3.Connection]:
    address = f"file:{quote(str(database.absolute()))}?mode=ro"
    return contextlib.closing(sqlite3.connect(address, uri=True))


def _create(uri: str, database: Path) -> None:
    """Creates the database under a temporary name and renames it, so that a kill leaves no partial database."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    name, mark, query = uri.partition("?")
    partial = database.with_name(f"{database.name}{PARTIAL}")
    partial.unlink(missing_ok=True)  # left by a killed process; the lock excludes live ones
    try:
        SqlAlchemyStore(f"{name}{PARTIAL}{mark}{query}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        partial.rename(database)
    finally:
        for path in (partial, partial.with_name(f"{partial.name}-journal")):
            path.unlink(missing_ok=True)

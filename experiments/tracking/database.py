"""MLflow's SQLite database: made once and whole, however many sweeps begin with it at the same time."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from experiments.tracking.moved import database_at
from refavs.errors import ConfigError
from refavs.files.locks import NO_LOCKS
from refavs.files.partials import PARTIAL

WAIT_S = 300.0  # for another process that makes it, which takes seconds
KNOWN = "experiments"  # a table that every database of MLflow has


def refuse_missing(uri: str) -> None:
    """Refuses a database that is not there, which MLflow would make.

    Raises:
        ConfigError: there is none.
    """
    database = database_at(uri)
    if database is not None and not database.is_file():
        raise ConfigError(f"there is no MLflow database {database}; give by --tracking-uri where it is")


@contextlib.contextmanager
def first_use(uri: str) -> Iterator[None]:
    """Makes the database at `uri` where there is none, and keeps other processes from doing so meanwhile.

    The first client of a process is made in here: it completes a database that an older version left half-made.

    Raises:
        ConfigError: the file is a database of another program, or another process makes it for minutes.
    """
    database = database_at(uri)
    if database is None:
        yield
        return
    with _alone(database):
        _refuse_foreign(database)
        if not database.exists() or (database.is_file() and not database.stat().st_size):
            _make(uri, database)
        yield


def move_artifacts(database: Path, run_id: str, before: str, now: str) -> None:
    """Says in the database where a sweep's artifacts lie since its folder was moved or copied with the database.

    MLflow keeps absolute addresses and has no request that changes them. A database that cannot be written stays as it
    is.

    Args:
        run_id: of a run in the experiment whose addresses change.
        before: the beginning of their addresses in the database, and `now` what takes its place.
    """
    chosen = "experiment_id in (select experiment_id from runs where run_uuid = ?)"
    columns = [
        ("model_versions", "source", f"run_id in (select run_uuid from runs where {chosen})"),
        ("runs", "artifact_uri", chosen),
        ("experiments", "artifact_location", chosen),
    ]
    begins = len(f"{before}/")
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        for table, column, those in columns:
            connection.execute(
                f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ? and {those}",
                (f"{now}/", begins + 1, begins, f"{before}/", run_id),
            )
        connection.commit()


@contextlib.contextmanager
def _alone(database: Path) -> Iterator[None]:
    """Holds the lock beside the database; where none can be had, goes on without."""
    path = database.with_name(f".{database.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError:  # a folder that cannot be written: MLflow says what it cannot do there
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
                raise ConfigError(f"another process has been making the MLflow database {database} for "
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
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)) as connection:
            tables = sorted(name for (name,) in connection.execute("select name from sqlite_master where type='table'"))
    except sqlite3.Error:  # no database, or one that is locked: MLflow says so
        return
    if tables and KNOWN not in tables:
        told = ", ".join(tables[:3]) + " ..." * (len(tables) > 3)
        raise ConfigError(f"{database} is a database of another program (its tables: {told}), and nothing is written "
                          "into it; give by --tracking-uri a database of MLflow, or the name of a new one, as "
                          "sqlite:///PATH.db")  # fmt: skip


def _make(uri: str, database: Path) -> None:
    """Makes the database under another name and gives it its own once it is whole, so that a kill leaves no part."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    name, mark, query = uri.partition("?")
    partial = database.with_name(f"{database.name}{PARTIAL}")
    partial.unlink(missing_ok=True)  # of a process that was killed; the lock keeps living ones away
    try:
        SqlAlchemyStore(f"{name}{PARTIAL}{mark}{query}", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()
        partial.rename(database)
    finally:
        for path in (partial, partial.with_name(f"{partial.name}-journal")):
            path.unlink(missing_ok=True)

"""A sweep's folder that was moved or renamed together with MLflow's database: what it has sent is still sent."""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.records.ledger import Ledger
from experiments.records.record_types import read_record, write_json

SQLITE, DRIVER = "sqlite:///", "sqlite+pysqlite:///"
SENT = "mlflow.json"


def sqlite_uri(database: Path) -> str:
    """The address of a database; `?` and `%` in its path are escaped, which SQLAlchemy would interpret."""
    path = str(database)
    if not {"?", "%"} & set(path):
        return f"{SQLITE}{path}"
    from sqlalchemy import make_url

    # With the driver's name, for MLflow makes a folder of what follows the shorter form, which is escaped here.
    escaped = f"{DRIVER}{path.replace('%', '%25').replace('?', '%3F')}"
    if make_url(escaped).database == path:
        return escaped
    # SQLAlchemy before 2.1 takes every letter up to a `?` as it is; a `?` only SQLite itself can be told.
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


def moved_to(facts: Mapping[str, Any], default: str) -> str | None:
    """The address of the database beside the sweep, where it has the run and the one that the sweep names is gone.

    Args:
        facts: as `sweep.json` has them.
        default: the address of the database beside the sweep's folder.
    """
    before = database_at(str(facts.get("tracking_uri")))
    if before is None or before.exists():
        return None
    return default if _has_run(database_at(default), facts.get("run_id")) else None


def follow(ledger: Ledger, uri: str, closed: Mapping[str, str]) -> None:
    """Notes in the sweep's folder that its runs are at `uri`, where a database has them that was moved there.

    Of any other address nothing is noted: a second server has none of the runs.

    Args:
        closed: by address, the marks (`experiments.sweep.execution.closed_mark`) that say MLflow has everything.
    """
    facts = ledger.sweep
    before = str(facts.get("tracking_uri"))
    if before == uri or before not in closed or database_at(before) is None:
        return
    if not _has_run(database_at(uri), facts.get("run_id")):
        return
    for folder in _trials(ledger.root):
        sent = read_record(folder / SENT)
        if isinstance(sent, dict) and sent.get("uri") == before:
            write_json(folder / SENT, {**sent, "uri": uri})
    known = {"closed": closed[uri]} if facts.get("closed") == closed[before] else {}
    ledger.set_sweep(tracking_uri=uri, **known)


def _trials(root: Path) -> Iterable[Path]:
    return sorted(path.parent for path in root.glob(f"trials/*/{SENT}"))


def _has_run(database: Path | None, run_id: object) -> bool:
    """Whether a database of MLflow has a run; the file is not changed, nor made."""
    if database is None or not database.is_file() or not isinstance(run_id, str):
        return False
    with contextlib.suppress(sqlite3.Error):
        address = f"file:{quote(str(database.absolute()))}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return connection.execute("select 1 from runs where run_uuid = ?", (run_id,)).fetchone() is not None
    return False

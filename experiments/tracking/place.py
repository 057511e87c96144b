"""Where a sweep's folder is and was, and which of the addresses written in it are obeyed.

A folder may come from a colleague, a download or a copy. An address that it names is obeyed if the user gave the same
one, or if it lies within the folder or beside it; any other is shown and refused.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from experiments.records.ledger import Ledger
from experiments.records.record_types import read_record, write_json
from experiments.tracking.client import default_tracking_uri
from experiments.tracking.connection import Guard, without_password
from experiments.tracking.database import database_at, has_run, move_artifacts, sqlite_uri
from refavs.errors import ConfigError

ARTIFACTS = "mlartifacts"  # beside a sweep's folder
ENVIRONMENT = "MLFLOW_TRACKING_URI"
SENT = "mlflow.json"


def place_of(out: Path) -> dict[str, Any]:
    """What a sweep records about its folder; a copy differs, and so does a folder moved to another disk."""
    found = out.resolve()
    return {"path": str(found), "inode": found.stat().st_ino}


def original_of(out: Path, facts: Mapping[str, Any], uri: str) -> str | None:
    """The folder of the original if `out` is a copy of a sweep; None for an original, even if it was moved.

    A folder from another disk or machine may be either. It counts as a copy unless MLflow's database lies beside it:
    two sweeps with one id in one MLflow would delete each other's runs.

    Args:
        facts: content of `sweep.json`.
        uri: MLflow's address.
    """
    noted = facts.get("place")
    if not isinstance(noted, dict) or "id" not in facts:
        return None
    here, before = place_of(out), str(noted.get("path"))
    if before == here["path"]:
        return None
    try:
        there = (read_record(Path(before) / "sweep.json") or {}).get("id") == facts["id"]
        same = there and os.path.samefile(before, out)
    except (OSError, ValueError, AttributeError, ConfigError):
        there = same = False
    if there and not same:
        return before
    if same or noted.get("inode") == here["inode"]:
        return None
    return None if uri == default_tracking_uri(out) else before


def tracking_address(out: Path, facts: Mapping[str, Any], given: str | None) -> str:
    """MLflow's address for the sweep in `out`: the one given, else the recorded one, else the database beside it.

    Args:
        facts: content of `sweep.json`.

    Raises:
        ConfigError: the recorded address lies outside of the sweep's folder and was not given by the user.
    """
    default, named = default_tracking_uri(out), facts.get("tracking_uri")
    if given:
        return given
    if not named or named == default:
        return default
    if named == os.environ.get(ENVIRONMENT):
        return named
    noted = facts.get("place")
    before = Path(str(noted["path"])) if isinstance(noted, dict) and noted.get("path") else out.resolve()
    if named == default_tracking_uri(before) or moved_to(facts, default):
        return default
    database = database_at(str(named))
    if database is not None and database.is_relative_to(before):
        within = out.resolve() / database.relative_to(before)
        if within.resolve().is_relative_to(out.resolve()):
            return sqlite_uri(within)
    shown = without_password(str(named))
    raise ConfigError(
        f"{out / 'sweep.json'} names the MLflow {shown}, outside of that folder, and this command was not given that "
        f"address; give --tracking-uri {shown} if you trust it, or another one"
    )


def moved_to(facts: Mapping[str, Any], uri: str) -> str | None:
    """`uri` if its database has the sweep's run and the recorded database is gone, hence was moved; else None."""
    before = database_at(str(facts.get("tracking_uri")))
    moved = before is not None and not before.exists() and has_run(database_at(uri), facts.get("run_id"))
    return uri if moved else None


def follow_database(ledger: Ledger, uri: str, closed: Mapping[str, str]) -> None:
    """Records the new address of a sweep's moved database: what was sent to it counts as sent.

    Any other new address changes nothing, as a second server has none of the runs.

    Args:
        closed: the marks (`experiments.sweep.outcome.closed_mark`) of a complete sweep for both addresses.
    """
    facts = ledger.sweep
    before = str(facts.get("tracking_uri"))
    if before == uri or database_at(before) is None or not has_run(database_at(uri), facts.get("run_id")):
        return
    for path in ledger.root.glob(f"trials/*/{SENT}"):
        sent = read_record(path)
        if isinstance(sent, dict) and sent.get("uri") == before:
            write_json(path, {**sent, "uri": uri})
    known = {"closed": closed[uri]} if facts.get("closed") == closed[before] else {}
    ledger.set_sweep(tracking_uri=uri, **known)


def follow_artifacts(out: Path, facts: Mapping[str, Any], uri: str) -> None:
    """Updates the addresses of artifacts in a database that was moved or copied together with the sweep."""
    noted, run_id, database = facts.get("place"), facts.get("run_id"), database_at(uri)
    if not isinstance(noted, dict) or not isinstance(run_id, str) or uri != default_tracking_uri(out):
        return
    before, here = Path(str(noted.get("path"))), out.resolve()
    if before.is_absolute() and before.parent != here.parent and database is not None and database.is_file():
        old, new = ((path.parent / ARTIFACTS).as_uri() for path in (before, here))
        move_artifacts(database, run_id, old, new)


def guard_of(out: Path, uri: str, given: str | None) -> Guard:
    """A guard that refuses artifacts outside the sweep in `out`, unless the user named the MLflow at `uri`."""
    if uri in (given, os.environ.get(ENVIRONMENT)):
        return lambda artifacts, names: None
    return functools.partial(refuse_elsewhere, out=out)


def refuse_elsewhere(artifacts: str, names: Iterable[str], out: Path) -> None:
    """Refuses to write artifacts anywhere but in the sweep's folder or beside it.

    Args:
        artifacts: address of the artifacts of a run or an experiment in MLflow's database.
        names: paths of the files below it.

    Raises:
        ConfigError: they would be written elsewhere; names the address.
    """
    parts = urlsplit(artifacts)
    allowed = [out.resolve(), out.resolve().parent / ARTIFACTS]
    root = Path(unquote(parts.path) if parts.scheme == "file" else artifacts)
    paths = [root, *(root / name for name in names)]
    local = parts.scheme in ("", "file") and not parts.netloc and root.is_absolute()
    if local and all(any(path.resolve().is_relative_to(one) for one in allowed) for path in paths):
        return
    raise ConfigError(
        f"its artifacts would go to {without_password(artifacts)}, outside of {allowed[1]} and the sweep's folder, "
        "because a database says so that this command was not given; give by --tracking-uri the MLflow that you trust"
    )

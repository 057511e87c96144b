"""Where a sweep's folder is and was, and which addresses that are written in it hold.

A folder may come from anywhere: a colleague, a download, a copy. What it names is obeyed where the user gave the same
address, or where it lies with the sweep; everything else is named and refused.
"""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from experiments.records.record_types import read_record
from experiments.tracking.client import Guard, default_tracking_uri, without_password
from experiments.tracking.database import move_artifacts
from experiments.tracking.moved import database_at, moved_to, sqlite_uri
from refavs.errors import ConfigError

ARTIFACTS = "mlartifacts"  # beside a sweep's folder
ENVIRONMENT = "MLFLOW_TRACKING_URI"


def place_of(out: Path) -> dict[str, Any]:
    """What a sweep notes of its folder: a copy has another one, and so has a folder that was moved to another disk."""
    found = out.resolve()
    return {"path": str(found), "inode": found.stat().st_ino}


def original_of(out: Path, facts: Mapping[str, Any], uri: str) -> str | None:
    """The folder of the original if `out` is a copy of a sweep; None for an original, even if it was moved.

    A folder that came from another disk or machine is itself or a copy, which cannot be told there. It counts as a copy
    unless MLflow's database lies beside it, which then came with it: two sweeps of one name in one MLflow would delete
    each other's runs.

    Args:
        facts: as `sweep.json` has them.
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
    """Where MLflow is for the sweep in `out`: as given, else as the sweep notes it, else in the database beside it.

    Args:
        facts: as `sweep.json` has them.

    Raises:
        ConfigError: the sweep names another address than the user, outside of its own folder.
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
    if named == default_tracking_uri(before) or moved_to(facts, default):  # it was moved
        return default
    database = database_at(str(named))
    if database is not None and database.is_relative_to(before):
        within = out.resolve() / database.relative_to(before)
        if within.resolve().is_relative_to(out.resolve()):
            return sqlite_uri(within)
    shown = without_password(str(named))
    raise ConfigError(
        f"{out / 'sweep.json'} names the MLflow {shown}, outside of that folder, and this command was not given that "
        f"address; give --tracking-uri {shown} where you trust it, or another one"
    )


def follow_move(out: Path, facts: Mapping[str, Any], uri: str) -> None:
    """Artifacts lie beside a sweep that was moved or copied with its database, where MLflow's addresses are older."""
    noted, run_id, database = facts.get("place"), facts.get("run_id"), database_at(uri)
    if not isinstance(noted, dict) or not isinstance(run_id, str) or uri != default_tracking_uri(out):
        return
    before, here = Path(str(noted.get("path"))), out.resolve()
    if before.is_absolute() and before.parent != here.parent and database is not None and database.is_file():
        old, new = ((path.parent / ARTIFACTS).as_uri() for path in (before, here))
        move_artifacts(database, run_id, old, new)


def guard_of(out: Path, uri: str, given: str | None) -> Guard:
    """What refuses artifacts elsewhere than with the sweep in `out`, unless the user named the MLflow at `uri`."""
    if uri in (given, os.environ.get(ENVIRONMENT)):
        return lambda artifacts, names: None
    return functools.partial(refuse_elsewhere, out=out)


def refuse_elsewhere(artifacts: str, names: Iterable[str], out: Path) -> None:
    """Refuses artifacts that would not be written beside the sweep or in it, where the user gave no address.

    Args:
        artifacts: the address of a run's or an experiment's artifacts, as MLflow's database has it.
        names: of the files, with their folders.

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
        f"its artifacts would go to {without_password(artifacts)}, outside of {allowed[1]} and the sweep's folder, by "
        "the word of a database that this command was not given; give by --tracking-uri the MLflow that you trust"
    )

"""The ledger: the state of a sweep on disk, with one folder per trial, named by the trial's key."""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.grid.trial import Trial, known_defaults, recorded_defaults
from experiments.records.record_types import (
    STOP_FILE,
    Epoch,
    Sent,
    Settings,
    Status,
    SweepFacts,
    read_lines,
    read_record,
    write_json,
)
from experiments.records.stores import Features
from refavs.config import flat
from refavs.errors import ConfigError
from refavs.files.locks import NO_LOCKS
from refavs.files.plain_file import open_lock
from refavs.model.heads.registry import DEFAULT

State = Literal["new", "running", "finished", "failed", "stopped", "pruned"]
KEY_LENGTH = 16
LOCK_ATTEMPTS = 5  # refavs-sweep status holds the lock for a moment to see whether anyone else does
KEPT_BY_RERUN = ("config.json", "status.json", "mlflow.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial in the ledger.

    States: `new`; `running`, also after its driver was killed; `stopped` by the user, resumes from its last epoch;
    `finished`, with its results on disk (`mlflow.json` tells how much MLflow has of them); `failed`; and `pruned`,
    given up by a search and as complete as a finished one.
    """

    trial: Trial
    key: str
    folder: Path

    @property
    def status(self) -> dict[str, Any]:
        """`state` and since when (`time_s`); optionally `started_s`, `reason` and `seconds`, and in a search the last
        epoch after which the trial was allowed to continue (`passed`), or why it was not (`given_up`)."""
        return read_record(self.folder / "status.json", Status) or {"state": "new"}

    @property
    def state(self) -> State:
        """The trial's state; `running` also after its driver was killed."""
        return self.status["state"]

    @property
    def result(self) -> dict[str, Any] | None:
        """The record with the final metrics; None before the trial has finished."""
        return read_record(self.folder / "result.json", Epoch)

    def score(self, metric: str) -> float | None:
        """A metric of the weights that the trial kept: of the best epoch with early stopping, else of the last."""
        values = [record["metrics"].get(metric) for record in read_metrics(self.folder)]
        known = [value for value in values if value is not None]
        if not known:
            return None
        return max(known) if self.trial.config.train.patience else known[-1]

    def set_status(self, state: State, **facts: Any) -> None:
        """Writes `state` and adds `facts` to the status."""
        known = {name: value for name, value in self.status.items() if name != "reason"}
        write_json(self.folder / "status.json", {**known, **facts, "state": state, "time_s": round(time.time(), 3)})

    def ask_to_stop(self) -> None:
        """Makes the trial end after its present epoch, with its state saved and without a result."""
        (self.folder / STOP_FILE).touch()

    @property
    def asked_to_stop(self) -> bool:
        """Whether the trial was asked to stop since its sweep started."""
        return (self.folder / STOP_FILE).exists()


class Ledger:
    """The folder of a sweep. A finished trial never runs again; what MLflow lacks of it is sent from here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writing = threading.Lock()

    def entries(self, trials: tuple[Trial, ...], features: Features) -> list[Entry]:
        """The entries of `trials`; writes nothing.

        Args:
            features: names what a trial reads, as `stores.features_in` does.
        """
        defaults = self.defaults
        keys = [trial.key(features(trial), defaults) for trial in trials]
        return [
            Entry(trial=trial, key=key, folder=self.root / "trials" / key[:KEY_LENGTH])
            for trial, key in zip(trials, keys, strict=True)
        ]

    def enter(self, entry: Entry, fingerprint: str) -> None:
        """Creates a trial's folder with its resolved settings, and forgets earlier requests to stop."""
        entry.folder.mkdir(parents=True, exist_ok=True)
        (entry.folder / STOP_FILE).unlink(missing_ok=True)
        write_json(
            entry.folder / "config.json",
            {
                "key": entry.key,
                "name": entry.trial.name,
                "seed": entry.trial.config.seed,
                **_store_facts(entry.trial, fingerprint),
                "config": flat(entry.trial.config),
                "digests": dict(entry.trial.digests),
                "weights_dir": None if entry.trial.weights_dir is None else str(entry.trial.weights_dir),
            },
        )

    def beginning_with(self, prefixes: Sequence[str], entries: Sequence[Entry]) -> list[Entry]:
        """The trials whose keys begin with one of `prefixes`.

        Raises:
            ConfigError: a prefix matches no trial, or several.
        """
        found: dict[str, Entry] = {}
        for prefix in prefixes:
            same = [entry for entry in entries if prefix and entry.key.startswith(prefix)]
            if len(same) != 1:
                shown = ", ".join(f"{e.key[:KEY_LENGTH]} ({e.trial.title})" for e in (same or entries)[:8])
                problem = f"{len(same)} trials have" if same else "no trial of the grid has"
                raise ConfigError(
                    f"{problem} a key that begins with {prefix!r}; accepted: the beginning of one key, as --dry-run "
                    f"shows them: {shown}{' ...' * (len(same or entries) > 8)}"
                )
            found[same[0].key] = same[0]
        return list(found.values())

    def discard(self, entry: Entry) -> None:
        """Deletes a trial's result and epochs, so that it runs again from the start, as a new run in MLflow.

        A kill at any point leaves the trial finished, failed or ready to run again.

        Raises:
            ConfigError: the trial's folder is a link.
        """
        if entry.state == "new":
            return
        if entry.folder.is_symlink():
            raise ConfigError(f"{entry.folder} is a link to {os.readlink(entry.folder)}, whose content is not deleted; "
                              "put the trial's folder in its place, or remove the link")  # fmt: skip
        sent = read_record(entry.folder / "mlflow.json", Sent) or {}
        write_json(entry.folder / "mlflow.json", {"attempt": sent.get("attempt", 0) + 1})
        shutil.rmtree(entry.folder / "state", ignore_errors=True)
        entry.set_status("new", passed=0, given_up="")
        for path in (entry.folder / "result.json", *entry.folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in KEPT_BY_RERUN:
                path.unlink(missing_ok=True)

    @property
    def defaults(self) -> dict[str, Any]:
        """Every setting's default when the sweep began; the keys of its trials are formed relative to these.

        A setting added to the code since then counts with its first default; a removed one no longer counts.
        """
        return self.sweep.get("defaults", {})

    def record_defaults(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Those defaults, and of the heads of these trials the ones that are not recorded yet."""
        return recorded_defaults({DEFAULT, *(entry.trial.config.model.head for entry in entries)}) | self.defaults

    def changes(self, entries: list[Entry]) -> str:
        """Says which changed defaults made new trials of some that may have been finished; empty where none did."""
        recorded, changed, num_new = self.defaults, {}, 0
        heads = {entry.trial.config.model.head for entry in entries}
        known = {head: (known_defaults(head, recorded), known_defaults(head, {})) for head in heads}
        for entry in entries:
            then, now = known[entry.trial.config.model.head]
            other = [name for name in now if then[name] != now[name]]
            if other and entry.state == "new":
                own = flat(entry.trial.config)
                found = {name: (then[name], now[name]) for name in other if own[name] == now[name]}
                num_new += bool(found)
                changed |= found
        if not num_new:
            return ""
        told = ", ".join(f"{name} from {then} to {now}" for name, (then, now) in sorted(changed.items()))
        return (
            f"defaults have changed since {self.root} began: {told}; {num_new} trials that take them are new, and "
            "what was finished with the former values stays (to go on with those, set them in the grid's base)"
        )

    def elsewhere(self, entries: Sequence[Entry], fingerprint: str) -> str:
        """Says how many of the new trials are finished here on other features; empty where none are.

        Args:
            fingerprint: of the store of the trials that name none.
        """
        new = {(entry.trial.name, entry.trial.config.seed): _store_facts(entry.trial, fingerprint)["store"]
               for entry in entries if entry.state == "new"}  # fmt: skip
        num_known = 0
        for path in (self.root / "trials").glob("*/result.json") if new else ():
            with contextlib.suppress(ConfigError):  # a damaged record of a trial that nobody asks for
                known = read_record(path.with_name("config.json"), Settings)
                num_known += bool(known) and new.get((known["name"], known["seed"]), known["store"]) != known["store"]
        if not num_known:
            return ""
        return (f"{self.root} has {num_known} finished trials of these names from other features, of another store or "
                "of this one before it was changed or upgraded; they stay, and the trials run again")  # fmt: skip

    @property
    def sweep(self) -> dict[str, Any]:
        """Facts of the sweep itself, such as its id and its MLflow run."""
        return read_record(self.root / "sweep.json", SweepFacts) or {}

    def set_sweep(self, **facts: Any) -> None:
        """Adds `facts` to those of the sweep; safe to call from several threads."""
        with self._writing:
            facts = {**self.sweep, **facts}
            # The tracking address may contain a password: then the file is for its owner only.
            mode = 0o600 if "@" in str(facts.get("tracking_uri")) else 0o644
            write_json(self.root / "sweep.json", facts, mode)

    def ask_to_stop(self) -> None:
        """Makes all trials end after their present epochs."""
        (self.root / STOP_FILE).touch()

    @property
    def asked_to_stop(self) -> bool:
        """Whether the sweep was asked to stop since it started."""
        return (self.root / STOP_FILE).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the sweep for this process; the kernel releases the lock however the process ends.

        Raises:
            ConfigError: another process holds it, or the file system has no locks.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with open_lock(self.root / ".lock") as file:
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if attempt + 1 == LOCK_ATTEMPTS:
                        raise ConfigError(
                            f"{self.root} is in use by another refavs-sweep; wait for it or give another --out"
                        ) from error
                    time.sleep(0.05)
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
                    raise ConfigError(
                        f"{self.root} lies on a file system without locks ({error.strerror}), so that two sweeps could "
                        "write there at once; mount it with locks (Lustre: -o flock) or give another --out"
                    ) from error
            (self.root / STOP_FILE).unlink(missing_ok=True)
            yield


def _store_facts(trial: Trial, fingerprint: str) -> dict[str, Any]:
    """Identifies a trial's features; in a sweep over several stores also by name and location."""
    own = trial.store
    if own is None:
        return {"store": fingerprint}
    return {"store": own.fingerprint, "store_name": own.name, "store_location": own.location}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The per-epoch records of a trial's folder, oldest first."""
    return read_lines(folder / "metrics.jsonl", Epoch)

"""The ledger: what is done of a sweep, kept in its folder, one folder per trial named by the trial's key."""

import contextlib
import fcntl
import json
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
    Status,
    SweepFacts,
    read_lines,
    read_record,
    write_json,
)
from refavs.config import flat
from refavs.errors import ConfigError
from refavs.files.locks import NO_LOCKS
from refavs.files.plain_file import open_lock
from refavs.model.heads.registry import DEFAULT

State = Literal["new", "running", "finished", "failed", "stopped", "pruned"]
KEY_LENGTH = 16
LOCK_ATTEMPTS = 5  # refavs-sweep status holds the lock for the moment in which it looks whether anyone does
KEPT_BY_RERUN = ("config.json", "status.json", "mlflow.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial's place in the ledger.

    States: `new`; `running`, which a driver that was killed leaves behind; `stopped` by its user, goes on from its last
    epoch; `finished`, its results are here (what MLflow lacks of them, `mlflow.json` tells); `failed`; and `pruned`,
    which a search gave up and which is as done as a finished one.
    """

    trial: Trial
    key: str
    folder: Path

    @property
    def status(self) -> dict[str, Any]:
        """What is known: `state` and since when (`time_s`); where they apply `started_s`, `reason`, `seconds`,
        and in a search the last epoch after which it was let go on (`passed`), or why it was not (`given_up`)."""
        return read_record(self.folder / "status.json", Status) or {"state": "new"}

    @property
    def state(self) -> State:
        """The trial's state; a driver that was killed leaves `running` behind."""
        return self.status["state"]

    @property
    def result(self) -> dict[str, Any] | None:
        """The record with the final metrics, once the trial has them."""
        return read_record(self.folder / "result.json", Epoch)

    def score(self, metric: str) -> float | None:
        """An epoch's metric of the weights that the trial kept: the best epoch's with early stopping, else the last."""
        values = [record["metrics"].get(metric) for record in read_metrics(self.folder)]
        known = [value for value in values if value is not None]
        if not known:
            return None
        return max(known) if self.trial.config.train.patience else known[-1]

    def set_status(self, state: State, **facts: Any) -> None:
        """Writes `state` and adds `facts` to what was known."""
        known = {name: value for name, value in self.status.items() if name != "reason"}
        write_json(self.folder / "status.json", {**known, **facts, "state": state, "time_s": round(time.time(), 3)})

    def ask_to_stop(self) -> None:
        """The trial ends after the epoch it is in, whose state is kept, and has no result then."""
        (self.folder / STOP_FILE).touch()

    @property
    def asked_to_stop(self) -> bool:
        """Whether it was asked to, since its sweep started."""
        return (self.folder / STOP_FILE).exists()


class Ledger:
    """The folder of a sweep. What is finished in it never runs again; what MLflow lacks of it is sent without that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._writing = threading.Lock()

    def entries(self, trials: tuple[Trial, ...], fingerprint: str) -> list[Entry]:
        """The places of `trials` on features of this fingerprint; writes nothing."""
        defaults = self.defaults
        keys = [trial.key(fingerprint, defaults) for trial in trials]
        return [
            Entry(trial=trial, key=key, folder=self.root / "trials" / key[:KEY_LENGTH])
            for trial, key in zip(trials, keys, strict=True)
        ]

    def enter(self, entry: Entry, fingerprint: str) -> None:
        """Makes a trial's folder with its resolved settings; that it was once asked to stop is forgotten."""
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
            ConfigError: a prefix that no trial has, or that several have.
        """
        found: dict[str, Entry] = {}
        for prefix in prefixes:
            same = [entry for entry in entries if prefix and entry.key.startswith(prefix)]
            if len(same) != 1:
                told = ", ".join(f"{e.key[:KEY_LENGTH]} ({e.trial.title})" for e in (same or entries)[:8])
                problem = f"{len(same)} trials have" if same else "no trial of the grid has"
                raise ConfigError(
                    f"{problem} a key that begins with {prefix!r}; accepted: the beginning of one key, as --dry-run "
                    f"shows them: {told}{' ...' * (len(same or entries) > 8)}"
                )
            found[same[0].key] = same[0]
        return list(found.values())

    def discard(self, entry: Entry) -> None:
        """Throws a trial's result and epochs away, so that it runs anew, as a new run in MLflow.

        A kill at any point leaves the trial with its result, failed, or on its way to run anew.

        Raises:
            ConfigError: the trial's folder is a link.
        """
        if entry.state == "new":
            return
        if entry.folder.is_symlink():
            raise ConfigError(f"{entry.folder} is a link to {os.readlink(entry.folder)}, and what lies there is not "
                              "thrown away; put the trial's folder in its place, or remove the link")  # fmt: skip
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
        """Every setting's default when the sweep began, against which the keys of its trials are formed.

        A setting that the code got since then counts with the default it came with; one that it lost no longer counts.
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

    @property
    def sweep(self) -> dict[str, Any]:
        """Facts of the sweep itself: its id, its MLflow run and whether that is closed."""
        return read_record(self.root / "sweep.json", SweepFacts) or {}

    def set_sweep(self, **facts: Any) -> None:
        """Adds `facts` to those of the sweep; threads may do so at the same time."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self._writing:
            _write_facts(self.root / "sweep.json", {**self.sweep, **facts})

    def ask_to_stop(self) -> None:
        """All trials end after the epochs they are in."""
        (self.root / STOP_FILE).touch()

    @property
    def asked_to_stop(self) -> bool:
        """Whether they were asked to, since the sweep started."""
        return (self.root / STOP_FILE).exists()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the sweep for this process; the kernel lets go when the process ends, however it ends.

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
                        f"{self.root} lies on a file system without locks ({error.strerror}), which keep two sweeps "
                        "apart; mount it with them (Lustre: -o flock) or give another --out"
                    ) from error
            (self.root / STOP_FILE).unlink(missing_ok=True)
            yield


def _write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Facts for all to read, or for the user alone where the tracking address may name a password."""
    if "@" not in str(facts.get("tracking_uri")):
        write_json(path, facts)
        return
    partial = path.with_name(f".{path.name}.private")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _store_facts(trial: Trial, fingerprint: str) -> dict[str, Any]:
    """What names the features of a trial; in a sweep over several stores also where they are."""
    own = trial.store
    if own is None:
        return {"store": fingerprint}
    return {"store": own.fingerprint, "store_name": own.name, "store_location": own.location}


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The per-epoch records of a trial's folder, oldest first."""
    return read_lines(folder / "metrics.jsonl", Epoch)

"""Progress of a sweep's trials, read from its folder without torch or Ray."""

import fcntl
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.records.record_types import Epoch, Sent, ShownSettings, Status, SweepFacts, read_lines, read_record
from refavs.choices import SCORE
from refavs.errors import ConfigError
from refavs.files.locks import NO_LOCKS
from refavs.files.plain_file import UnusableFileError, open_plain

LOSS = "train/loss"
RUNNABLE = ("running", "stopped", "new")
ORDER = ("running", "failed", "stopped", "new", "pruned", "finished")


@dataclass(kw_only=True)
class Progress:
    """One trial.

    Attributes:
        key: name of its folder, the beginning of its key.
        epoch: number of finished epochs, of `epochs`.
        started_s: time of its last start, in seconds since 1970; NaN before the first.
        reason: why it failed or was given up.
        pending: whether MLflow lacks some of its data.
    """

    key: str
    name: str
    seed: int
    epochs: int
    state: str = "new"
    epoch: int = 0
    loss: float = math.nan
    score: float = math.nan
    seconds_per_epoch: float = math.nan
    started_s: float = math.nan
    reason: str = ""
    pending: bool = False
    _ends: dict[int, tuple[float, float]] = field(default_factory=dict, repr=False)  # epoch: (time of end, seconds)

    @property
    def title(self) -> str:
        """The name with the seed."""
        return f"{self.name}, seed {self.seed}"

    def see(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes the records of all its epochs, or only of new ones."""
        if not records:
            return
        last = records[-1]
        self.epoch = max(self.epoch, last["epoch"])
        self.loss = last["metrics"].get(LOSS, math.nan)
        self.score = last["metrics"].get(SCORE, math.nan)
        self._ends |= {
            record["epoch"]: (record.get("time_ms", math.nan) / 1000, record["seconds"])
            for record in records if "seconds" in record
        }  # fmt: skip
        if times := sorted(map(self._seconds_of, sorted(self._ends)[-5:])):
            self.seconds_per_epoch = times[(len(times) - 1) // 2]  # the median, as one may include a pause

    def _seconds_of(self, epoch: int) -> float:
        """Time since the end of the epoch before; a record's own seconds are only its share of a fused process."""
        end, seconds = self._ends[epoch]
        before = [moment for moment in (self._ends.get(epoch - 1, (math.nan, 0.0))[0], self.started_s) if moment < end]
        return max(seconds, end - max(before)) if before else seconds

    def seconds_left(self, typical_s: float = math.nan) -> float:
        """Expected seconds of its remaining epochs; NaN if unknown.

        Args:
            typical_s: seconds of another trial's epoch, used before the first one ends.
        """
        if self.state not in RUNNABLE:
            return 0.0
        known = typical_s if math.isnan(self.seconds_per_epoch) else self.seconds_per_epoch
        return (self.epochs - self.epoch) * known


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """State of a sweep's folder.

    Attributes:
        facts: content of `sweep.json`.
        active: whether a refavs-sweep is running on it.
    """

    facts: dict[str, Any]
    trials: tuple[Progress, ...]
    active: bool


def read_sweep(root: Path) -> Sweep:
    """Reads a sweep's folder, which another process may be writing.

    Raises:
        ConfigError: it is not the folder of a sweep.
    """
    facts = read_record(root / "sweep.json", SweepFacts)
    if facts is None:
        raise ConfigError(
            f"{root} is not the folder of a sweep: it has no sweep.json; give the --out of a refavs-sweep command, "
            "for example runs/smoke"
        )
    folders = sorted(path for path in (root / "trials").glob("*") if (path / "config.json").is_file())
    current = facts.get("current")  # the trials of the last command; earlier grids may have had others
    if current is not None:
        places = {name: place for place, name in enumerate(current)}
        folders = sorted((path for path in folders if path.name in places), key=lambda path: places[path.name])
    active = is_held(root)
    trials = tuple(map(read_progress, folders))
    for trial in trials:
        if trial.state == "running" and not active:  # its driver was killed
            trial.state, trial.pending = "stopped", True
    return Sweep(facts=facts, trials=trials, active=active)


def read_progress(folder: Path) -> Progress:
    """Reads a trial's folder."""
    settings = read_record(folder / "config.json", ShownSettings)
    if settings is None:
        raise ConfigError(f"{folder} has no config.json any more; run the same command again")
    sent: Mapping[str, Any] = read_record(folder / "mlflow.json", Sent) or {}
    status: Mapping[str, Any] = read_record(folder / "status.json", Status) or {"state": "new"}
    found = Progress(
        key=folder.name, name=settings["name"], seed=settings["seed"], epochs=settings["config"]["train.epochs"],
        state=status["state"], started_s=status.get("started_s", math.nan), reason=status.get("reason", ""),
    )  # fmt: skip
    records = read_lines(folder / "metrics.jsonl", Epoch)
    found.see(records)
    older = "run_id" in status and not sent  # written by a version that recorded a completely sent run here
    found.pending = found.state != "new" and not older and (
        sent.get("epochs", 0) < len(records) if found.state == "running" else sent.get("time_s") != status.get("time_s")
    )
    return found


def typical_seconds(trials: Sequence[Progress]) -> float:
    """Mean seconds of an epoch over the trials with a finished one; NaN without any."""
    known = [trial.seconds_per_epoch for trial in trials if not math.isnan(trial.seconds_per_epoch)]
    return sum(known) / len(known) if known else math.nan


def seconds_left(trials: Sequence[Progress], to_come: int = 0) -> float:
    """Expected seconds until all trials end, with as many at once as now; NaN if unknown.

    Args:
        to_come: trials that a search has yet to suggest.
    """
    typical = typical_seconds(trials)
    at_once = max(1, sum(trial.state == "running" for trial in trials))
    longest = max((trial.epochs for trial in trials), default=0)
    each = [trial.seconds_left(typical) for trial in trials if trial.state in RUNNABLE]
    left = sum(each) + (to_come * longest * typical if to_come else 0.0)
    return max(left / at_once, *each, 0.0) if each else left / at_once


def counts(trials: Sequence[Progress]) -> str:
    """Number of trials in each state, on one line."""
    states = [trial.state for trial in trials]
    return ", ".join(f"{states.count(state)} {state}" for state in ORDER if state in states) or "no trials"


def duration(seconds: float) -> str:
    """A readable time such as 40 s, 12 min, 3.4 h or 2.1 days; empty if unknown."""
    if math.isnan(seconds):
        return ""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{1 if unit == 3600 else 0}f} {name}"
    return f"{seconds / 86400:.1f} days"


def is_held(root: Path) -> bool:
    """Whether a refavs-sweep is running on the folder."""
    try:
        with open(open_plain(root / ".lock"), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (FileNotFoundError, UnusableFileError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:  # without locks no refavs-sweep starts
            raise
    return False

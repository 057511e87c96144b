"""Options and outcome of one call of a sweep, and which of its trials are left to run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.records.ledger import Entry, Ledger
from experiments.sweep.search import Search
from experiments.tracking.connection import without_password
from experiments.tracking.sync import WAIT_S
from refavs.choices import SCORE
from refavs.config import digest


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of one call of a sweep.

    Attributes:
        retry_failed: run failed trials again, from their last epoch.
        rerun: beginnings of keys; the results of these trials are discarded, and they run again from the start.
        register: a name in MLflow's model registry for the model of the best trial by J on val.
        grid_file: path of the grid, a tag in MLflow.
        wait_s: how long to wait at the end for an MLflow that does not answer.
        experiment: the MLflow experiment of a new sweep; None for the name of its folder.
        tags: of all runs in MLflow.
        notify: address of a web hook for failed trials and the end of the sweep.
    """

    retry_failed: bool = False
    rerun: tuple[str, ...] = ()
    register: str | None = None
    grid_file: str = ""
    wait_s: float = WAIT_S
    experiment: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    notify: str | None = None


@dataclass(kw_only=True)
class Outcome:
    """The state of a sweep after a call.

    Attributes:
        num_run: trials that this call finished.
        num_ended: trials that ended in this call in any state.
        unsent: titles of trials that MLflow does not have in full; `unsent_reason` says why.
        refused: by title, why MLflow refuses data of a trial; sending it again does not help.
        interrupted: the call was asked to stop before its end.
        controls: metrics of the constant predictions; empty if the call ended before they were computed.
    """

    entries: list[Entry]
    tracking_uri: str
    num_run: int = 0
    num_ended: int = 0
    unsent: list[str] = field(default_factory=list)
    unsent_reason: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    controls: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """Reason by title of all failed trials."""
        failed = [entry for entry in self.entries if entry.state == "failed"]
        return {entry.trial.title: entry.status.get("reason", "unknown") for entry in failed}


def to_run(entries: Sequence[Entry], retry_failed: bool = False) -> list[Entry]:
    """The unfinished trials, with the failed ones if `retry_failed`."""
    states = ("new", "running", "stopped", *(["failed"] if retry_failed else []))
    return [
        entry for entry in entries
        if (state := entry.state) in states or (state == "finished" and entry.result is None)
    ]  # fmt: skip


def num_to_come(search: Search | None, ledger: Ledger) -> int:
    """Trials that a search has yet to suggest; 0 if it could not find another new point."""
    if search is None or ledger.sweep.get("exhausted") == exhausted_mark(search):
        return 0
    return search.num_to_come


def exhausted_mark(search: Search) -> str:
    """Identifies the state of a search in which no new point was found."""
    return digest([search.identity, search.points])


def best_by_val(entries: Sequence[Entry]) -> Entry | None:
    """The finished trial whose saved model has the highest J on val; the first in a tie."""
    scores: dict[str, float] = {}
    for entry in entries:
        if entry.state == "finished" and (score := entry.score(SCORE)) is not None:
            scores[entry.key] = score
    return max((entry for entry in entries if entry.key in scores), key=lambda e: scores[e.key], default=None)


def closed_mark(entries: Sequence[Entry], uri: str) -> str:
    """Identifies a set of trials that MLflow at `uri` has completely."""
    return digest([sorted(entry.key for entry in entries), without_password(uri)])

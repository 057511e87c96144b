"""Progress of a running sweep: a live table on a terminal, a line every few seconds elsewhere."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.sweep.progress import ORDER, Progress, counts, duration, seconds_left, typical_seconds
from refavs.terminal.console import PlainConsole, ProgressBar

if TYPE_CHECKING:
    from experiments.records.ledger import Entry

INTERVAL_S = 0.5
LINES_AROUND = 8  # of a terminal, left free above and below the table
STYLES = {"running": "bold", "failed": "red", "stopped": "yellow", "finished": "green", "new": "dim", "pruned": "dim"}


class Watch:
    """Shows the trials of one call; use it as a context manager.

    Args:
        trials: the trials to run, by key; `add` adds more.
        to_come: trials that a search has yet to suggest, each with this number of `epochs`.
    """

    def __init__(self, title: str, trials: Mapping[str, Progress], to_come: int = 0, epochs: int = 0) -> None:
        self.title, self.trials, self.to_come = title, dict(trials), to_come
        self.note = ""
        total = sum(trial.epochs for trial in trials.values()) + to_come * epochs
        self._console = PlainConsole(stderr=True)
        self._display = (
            Live(console=self._console, auto_refresh=False, transient=True) if sys.stderr.isatty()
            else ProgressBar(title, total, "epochs", time_left=False)
        )  # fmt: skip
        self._shown = -math.inf

    def __enter__(self) -> "Watch":
        self._display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.__exit__(kind, error, trace)

    def add(self, entry: "Entry", suggested: bool = True) -> None:
        """Adds a trial that a search suggested, or another terminal added."""
        self.trials[entry.key] = progress_of(entry)
        self.to_come = max(0, self.to_come - suggested)

    def see(self, entry: "Entry", records: Sequence[Mapping[str, Any]]) -> None:
        """Takes records of epochs, new or repeated."""
        trial = self.trials[entry.key]
        before = trial.epoch
        trial.see(records)
        if isinstance(self._display, ProgressBar):
            score = "" if math.isnan(trial.score) else f" val J {100 * trial.score:.1f}"
            left = duration(seconds_left(list(self.trials.values()), self.to_come))
            note = f"{trial.title}: epoch {trial.epoch}{score}{f', about {left} left' if left else ''}"
            self._display.advance(trial.epoch - before, note)

    def state(self, entry: "Entry", state: str, reason: str = "") -> None:
        """Takes a trial's new state."""
        trial = self.trials[entry.key]
        trial.state, trial.reason = state, reason
        if state == "running":
            trial.started_s = time.time()
        self.tick()

    def tick(self, note: str | None = None) -> None:
        """Refreshes the display; called several times a second.

        Args:
            note: replaces the line below the table.
        """
        self.note = self.note if note is None else note
        if isinstance(self._display, ProgressBar):
            self._display.advance(0)
        elif time.monotonic() - self._shown >= INTERVAL_S:
            self._shown = time.monotonic()
            self._display.update(self.view(), refresh=True)

    def view(self) -> Group:
        """The present table: running trials first, as many as the terminal has lines for."""
        trials = list(self.trials.values())
        shown = sorted(trials, key=lambda trial: ORDER.index(trial.state))
        shown = shown[: max(3, self._console.height - LINES_AROUND)]
        left = duration(seconds_left(trials, self.to_come))
        lines = [f"{counts(trials)}{f', {self.to_come} to come' if self.to_come else ''}"
                 f"{f'; about {left} left' if left else ''}", *([self.note] if self.note else [])]  # fmt: skip
        table = progress_table(shown, self.title, typical_seconds(trials))
        return Group(table, *lines)


def progress_of(entry: "Entry") -> Progress:
    """A trial before its first record of this call."""
    config = entry.trial.config
    return Progress(
        key=entry.folder.name, name=entry.trial.name, seed=config.seed, epochs=config.train.epochs, state=entry.state
    )


def progress_table(trials: Sequence[Progress], title: str, typical_s: float = math.nan, keys: bool = False) -> Table:
    """A table with a line for each trial.

    Args:
        typical_s: seconds of an epoch, for trials without a finished one.
        keys: add a column for the keys.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("trial", overflow="fold")
    for name in ("seed", *(["key"] if keys else []), "epoch", "loss", "val J", "s/epoch", "ETA", "state"):
        table.add_column(name, justify="left" if name in ("state", "key") else "right", no_wrap=True)
    for trial in trials:
        left = trial.seconds_left(typical_s) if trial.state == "running" else math.nan
        table.add_row(
            trial.name, str(trial.seed), *([trial.key] if keys else []), f"{trial.epoch}/{trial.epochs}",
            "" if math.isnan(trial.loss) else f"{trial.loss:.3f}",
            "" if math.isnan(trial.score) else f"{100 * trial.score:.1f}",
            "" if math.isnan(trial.seconds_per_epoch) else f"{trial.seconds_per_epoch:.3g}",
            duration(left), Text(trial.state, style=STYLES.get(trial.state, "")),
        )  # fmt: skip
    return table

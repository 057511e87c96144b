"""Progress on a terminal as a live bar, elsewhere as a plain line every few seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_INTERVAL_S = 5.0


class ProgressBar:
    """Counts finished units of one long job on stderr.

    A terminal shows a bar with the elapsed and the remaining time; anything else gets a line every few seconds and one
    at the end, so that logs of batch systems stay readable.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self.unit),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print_line()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished units; `note` is shown beside them until the next one."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._started
        note = f", {self._note}" if self._note else ""
        print(f"{self.title}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s{note}", file=sys.stderr, flush=True)

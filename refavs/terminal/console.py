"""rich without markup, and progress: a live bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from refavs.terminal.printing import printable, printable_lines, warn

LINE_INTERVAL_S = 5.0
WIDE = 160


class PlainConsole(Console):
    """A rich console that shows each string literally: one line, no markup, no emoji names, no terminal codes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Renders any string: printed, in a cell, a title or a caption."""
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments to print; only rich's own escape codes reach the terminal."""
        for piece in super().render(renderable, options):
            yield piece if piece.control else piece._replace(text=printable_lines(piece.text))


def wide_console() -> PlainConsole:
    """Standard output, as wide as the terminal, or wide enough for a table in a file or pipe."""
    terminal = sys.stdout.isatty()
    return PlainConsole(width=None if terminal else WIDE, soft_wrap=not terminal)


class ProgressBar:
    """Counts finished units of one long job on stderr.

    A terminal shows a bar with elapsed and remaining time. Anything else gets a line with both every few seconds and
    one at the end, which keeps logs of batch systems readable.

    Args:
        time_left: whether lines estimate the remaining time; the notes of some jobs say it better.
    """

    def __init__(self, title: str, total: int, unit: str, time_left: bool = True) -> None:
        self.title, self.total, self.unit, self.time_left = printable(title), total, unit, time_left
        self.done = 0
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn(self.unit, markup=False), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False), console=PlainConsole(stderr=True),
            )
            self._bar.add_task(self.title, total=self.total, note="")
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
        """Adds `count` finished units; `note` stays beside them until the next note."""
        self.done += count
        self._note = printable(note) or self._note
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, note=self._note)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL_S:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        elapsed = self._last_line - self._started
        known = self.time_left and 0 < self.done < self.total
        left_note = f", about {elapsed / self.done * (self.total - self.done):.0f} s left" if known else ""
        note = f", {self._note}" if self._note else ""
        warn(f"{self.title}: {self.done}/{self.total} {self.unit}, {elapsed:.0f} s{left_note}{note}")

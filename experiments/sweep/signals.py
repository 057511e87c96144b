"""Ctrl-C once finishes the running epochs, twice stops at once; SIGTERM, by which Slurm announces the end, as once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD = (
    "\nrefavs-sweep: {name}: finishing the running epochs, then stopping; once more stops at once and "
    "loses the epochs that are not finished\n"
)


class Interrupts:
    """Counts the signals that ask the process to stop, in the main thread; elsewhere it does nothing.

    Args:
        ask: called at the first one, within a signal handler: it may only do what is safe there.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether to stop."""
        return self.count > 0

    def __enter__(self) -> "Interrupts":
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Takes the signals; again after `ray.init`, which takes SIGTERM for itself."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.signal(number, self._receive)
            self._before.setdefault(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
        self.ask()
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        os.write(2, TOLD.format(name=name).encode())  # print could meet itself here

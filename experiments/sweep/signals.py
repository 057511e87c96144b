"""Signals: the first Ctrl-C or SIGTERM (sent by Slurm before the end) finishes the running epochs, a second stops."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MESSAGE = (
    "\nrefavs-sweep: {name}: finishing the running epochs, then stopping; once more stops at once and "
    "loses the unfinished epochs\n"
)


class Interrupts:
    """Counts signals that ask the process to stop; does nothing outside the main thread.

    Args:
        ask: called at the first signal, within the signal handler.
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
        """Installs the handlers; call it again after `ray.init`, which takes SIGTERM for itself."""
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
        os.write(2, MESSAGE.format(name=name).encode())  # print is not reentrant

"""The stages of a worker's jobs: how long each takes, and whose turn it is at the encoders."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("decode", "encode", "write", "commit", "waiting")
SPARE_CLIPS = 2


class Stages:
    """Seconds spent in each stage of one job, by all of its threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.encoded: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Counts the time inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    @contextmanager
    def encoder(self, name: str, num_inputs: int) -> Iterator[None]:
        """Counts the time inside as that of one encoder for so many inputs."""
        started = time.perf_counter()
        yield
        known, seconds = self.encoded.get(name, (0, 0.0))
        self.encoded[name] = known + num_inputs, seconds + time.perf_counter() - started


class Turns:
    """One job at a time encodes, and none while another has more than `SPARE_CLIPS` clips of features to write."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._unwritten = 0

    @contextmanager
    def encoding(self, num_clips: int, stages: Stages) -> Iterator[None]:
        """The time in which a job has the encoders; it leaves the features of `num_clips` clips to be written."""
        with stages("waiting"), self._changed:
            self._changed.wait_for(lambda: not self._busy and self._unwritten <= SPARE_CLIPS)
            self._busy = True
        made = 0
        try:
            with stages("encode"):
                yield
            made = num_clips
        finally:
            with self._changed:
                self._busy = False
                self._unwritten += made
                self._changed.notify_all()

    def written(self, num_clips: int = 1) -> None:
        """The features of so many clips are gone from memory."""
        with self._changed:
            self._unwritten -= num_clips
            self._changed.notify_all()

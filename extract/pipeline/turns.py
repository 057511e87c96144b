"""The stages of a worker's jobs: how long each takes, and whose turn it is at the encoders."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

JOB_STAGES = ("decode", "encode", "write", "commit", "waiting")
SPARE_CLIPS = 2


class Stages:
    """Seconds spent in each stage of one job, by all of its threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(JOB_STAGES, 0.0)
        self.encoded: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time inside the context to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] += time.perf_counter() - started

    @contextmanager
    def encoder(self, name: str, num_inputs: int) -> Iterator[None]:
        """Adds the time inside the context to that of one encoder, with the number of its inputs."""
        started = time.perf_counter()
        yield
        known, seconds = self.encoded.get(name, (0, 0.0))
        self.encoded[name] = known + num_inputs, seconds + time.perf_counter() - started


class Turns:
    """Lets one job at a time encode, and none while another has more than `SPARE_CLIPS` clips left to write."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._unwritten = 0

    @contextmanager
    def encoding(self, num_clips: int, stages: Stages) -> Iterator[None]:
        """Context with exclusive access to the encoders, which produces features of `num_clips` clips to write."""
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
        """Reports that the features of `num_clips` clips were written and freed."""
        with self._changed:
            self._unwritten -= num_clips
            self._changed.notify_all()

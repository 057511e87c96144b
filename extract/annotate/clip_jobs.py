"""Does one step for many clips: in this process, or on the workers of a Ray pool."""

import errno
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from extract.pipeline.ray_pool import PoolResources, run_pool
from refavs.errors import DatasetError, RefAVSError, StoreError
from refavs.terminal.command import Exit
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import say, show_trace, warn

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class ClipJob:
    """One clip of a step.

    Attributes:
        work: what the step needs to know of it.
    """

    clip: str
    work: Any = None

    @property
    def names(self) -> Sequence[str]:
        """Its only unit, for the pool."""
        return (self.clip,)


class Step(Protocol):
    """A step of the command; it is sent to workers, so its models have not read their weights yet."""

    def begin(self) -> None:
        """Looks for what a worker needs; raises as `refavs.errors` says."""
        ...

    def run(self, job: ClipJob) -> Sequence[str]:
        """Does the step for one clip; returns lines for people.

        Raises:
            DatasetError, StoreError: this clip cannot be used; the others can.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What became of a clip.

    Attributes:
        lines: for people.
        failure: why it was not done; None if it was.
        error: what went wrong inside of the program, or stops every other clip too.
        trace: traceback of `error`.
    """

    clip: str
    lines: Sequence[str] = ()
    failure: str | None = None
    error: Exception | None = None
    trace: str = ""


class ClipWorker:
    """Does a step for one clip after the other; the pool's actor."""

    def __init__(self, step: Step, num_threads: int = 1) -> None:
        self._step, self._num_threads = step, num_threads
        self._turn = threading.Lock()  # the pool gives a worker two jobs at a time

    def ready(self) -> str:
        """Finds the weights; returns the name of this worker."""
        import os
        import platform

        self._step.begin()
        return f"{platform.node()}:{os.getpid()}"

    def run(self, job: ClipJob, condemned: Mapping[str, str] | None = None) -> ClipResult:
        """Does a clip; an error is returned, not raised."""
        import torch

        with self._turn:
            torch.set_num_threads(self._num_threads)
            return done(self._step, job)

    def probe(self, job: ClipJob, name: str) -> None:
        """A job has one clip, so the pool never asks for a part of it."""


def done(step: Step, job: ClipJob) -> ClipResult:
    """Does a clip; what goes wrong is part of the result.

    Raises:
        AcceleratorError: the GPU is no longer usable in this process.
    """
    from torch import AcceleratorError

    try:
        return ClipResult(clip=job.clip, lines=tuple(step.run(job)))
    except (DatasetError, StoreError) as error:
        return ClipResult(clip=job.clip, failure=str(error))
    except AcceleratorError:
        raise
    except Exception as error:  # one clip is the unit of failure: report it and go on
        return ClipResult(clip=job.clip, error=error.with_traceback(None), trace=traceback.format_exc())


def run_clips(step: Step, jobs: Sequence[ClipJob], resources: PoolResources, name: str) -> int:
    """Does a step for the clips, shows the progress and lists what went wrong; returns the exit status.

    Args:
        resources: `num_workers` None or 1 without an address computes in this process.
        name: of the command and the step, for messages.

    Raises:
        RefAVSError: what stops every clip, such as missing weights.
    """
    totals = _Totals()
    with ProgressBar(name, len(jobs), "clips") as bar:
        for result in _results(step, jobs, resources, name):
            if result is None:
                bar.advance(0)
                continue
            totals.add(result)
            bar.advance(1)
    return totals.told(name)


def _results(step: Step, jobs: Sequence[ClipJob], resources: PoolResources, name: str) -> Iterator[ClipResult | None]:
    if resources.address is None and (resources.num_workers or 1) == 1:
        step.begin()
        yield from (done(step, job) for job in jobs)
        return

    def given_up(job: ClipJob, failures: Mapping[str, str]) -> ClipResult:
        return ClipResult(clip=job.clip, failure=failures[job.clip])

    yield from run_pool(jobs, ClipWorker, lambda threads: (step, threads), given_up, resources,
                        lambda line: warn(f"{name}: {line}"))  # fmt: skip


@dataclass
class _Totals:
    num_done: int = 0
    lines: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)

    def add(self, result: ClipResult) -> None:
        error = result.error
        if isinstance(error, RefAVSError) or (isinstance(error, OSError) and error.errno in _WRITE_ERRORS):
            raise error
        self.lines += [f"{result.clip}: {line}" for line in result.lines]
        if error is not None:
            self.broken[result.trace] += 1
        elif result.failure is not None:
            self.failures[result.clip] = result.failure
        else:
            self.num_done += 1

    def told(self, name: str) -> int:
        """Prints the totals; returns the exit status."""
        for line in self.lines:
            say(line)
        for clip, reason in self.failures.items():
            warn(f"{name}: clip {clip}: {reason}")
        for trace, count in self.broken.items():
            show_trace(trace.rstrip("\n"))
            warn(f"{name}: {count} clips broke for this reason")
        say(f"{self.num_done} clips done, {len(self.failures) + self.broken.total()} failed, {len(self.lines)} lines "
            "to look at")  # fmt: skip
        if self.broken:
            return Exit.ERROR
        return Exit.FAILURES if self.failures else Exit.COMPLETE

"""Assigns jobs to workers, and handles the jobs of workers that die; independent of Ray.

Jobs are assigned in order, two per worker, so that one is written while the other is encoded. A worker gets its first
job once it is ready, so that one without room on the cluster holds no job.

A job whose worker died runs again alone, after all others, so that another job cannot be the cause of a second death.
If its worker dies again, each of its keys is probed: computed alone, and the result discarded. A key whose probe kills
two workers is condemned, and the job runs once more without it. A job that has killed three workers although every
single key passes is given up.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MOST_RUNS = 3
MOST_PROBES = 2
# So many deaths without any finished task in between are not the fault of one job or one machine.
FRUITLESS_DEATHS = 20


@dataclass(frozen=True)
class Task:
    """One piece of work for a worker.

    Attributes:
        job: number of the job.
        condemned: keys of the job to skip, with the reason.
        probe: the single key to compute without writing it; None runs the job.
        alone: the worker may run nothing else at the same time.
    """

    job: int
    condemned: Mapping[str, str] = field(default_factory=dict, hash=False)
    probe: str | None = None
    alone: bool = False


@dataclass(kw_only=True)
class _Suspect:
    """State of a job whose worker died."""

    deaths: int = 0
    to_probe: deque[str] = field(default_factory=deque)
    probes_died: dict[str, int] = field(default_factory=dict)
    condemned: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GivenUp:
    """A job that is not tried again, and the reason for each of its keys."""

    job: int
    failures: dict[str, str]


class Schedule:
    """Assigns jobs to workers; every method takes constant time.

    Attributes:
        num_left: jobs that are neither done nor given up.
        fruitless: deaths since a worker last finished a task.
    """

    def __init__(self, keys: Sequence[Sequence[str]], depth: int = 2) -> None:
        self._keys, self._depth = keys, depth
        self._next = 0
        self._suspects: dict[int, _Suspect] = {}
        self._tried_alone: deque[Task] = deque()
        self._running: dict[Hashable, set[Task]] = {}
        self._num_idle = self._most_workers = 0
        self.num_left = len(keys)
        self.fruitless = 0

    @property
    def hopeless(self) -> bool:
        """Whether workers die whatever they do."""
        return self.fruitless >= FRUITLESS_DEATHS + 2 * self._most_workers

    def enlist(self, worker: Hashable) -> None:
        """Adds a worker that is ready."""
        self._running[worker] = set()
        self._most_workers = max(self._most_workers, len(self._running))
        self._num_idle += 1

    def assign(self, worker: Hashable, num_expected: int = 0) -> Iterator[Task]:
        """The tasks for a worker now; leaves a job each for `num_expected` workers that are about to be ready."""
        running = self._running.get(worker)
        if running is None:
            return
        while (task := self._choose(running, num_expected)) is not None:
            self._num_idle -= not running
            running.add(task)
            yield task

    def done(self, worker: Hashable, task: Task) -> GivenUp | None:
        """Takes note that a worker finished a task."""
        self.fruitless = 0
        running = self._running.get(worker)
        if running is not None:
            running.discard(task)
            self._num_idle += not running
        if task.probe is not None:
            return self._retry(task.job)
        self._suspects.pop(task.job, None)
        self.num_left -= 1
        return None

    def lost(self, worker: Hashable, reason: str) -> list[GivenUp]:
        """Puts the tasks of a dead or unreachable worker back; returns the jobs that are given up."""
        running = self._running.pop(worker, set())
        self._num_idle -= not running
        self.fruitless += 1
        given_up = [self._died(task, reason) for task in sorted(running, key=lambda task: task.job)]
        return [job for job in given_up if job is not None]

    def _choose(self, running: set[Task], num_expected: int) -> Task | None:
        if any(task.alone for task in running):
            return None
        left = len(self._keys) - self._next
        if left:
            # A second job only while enough are left for every idle worker.
            if running and (len(running) >= self._depth or left <= self._num_idle + num_expected):
                return None
            self._next += 1
            return Task(self._next - 1)
        return self._tried_alone.popleft() if self._tried_alone and not running else None

    def _died(self, task: Task, reason: str) -> GivenUp | None:
        suspect = self._suspects.setdefault(task.job, _Suspect())
        if task.probe is not None:
            count = suspect.probes_died[task.probe] = suspect.probes_died.get(task.probe, 0) + 1
            if count < MOST_PROBES:
                suspect.to_probe.appendleft(task.probe)
            else:
                suspect.condemned[task.probe] = f"its worker process died each time it was computed ({reason})"
            return self._retry(task.job)
        suspect.deaths += 1
        keys = self._keys[task.job]
        if suspect.deaths >= MOST_RUNS:
            alone = ", although each key alone passed" if len(keys) > 1 else ""
            return self._give_up(task.job, f"its worker process died {suspect.deaths} times ({reason}){alone}")
        if suspect.deaths == MOST_RUNS - 1 and len(keys) > 1:
            suspect.to_probe.extend(keys)
        return self._retry(task.job)

    def _retry(self, job: int) -> GivenUp | None:
        """Queues the next task for a job that killed a worker."""
        suspect = self._suspects[job]
        if len(suspect.condemned) == len(self._keys[job]):
            return self._give_up(job, "")
        probe = suspect.to_probe.popleft() if suspect.to_probe else None
        self._tried_alone.append(Task(job, dict(suspect.condemned), probe, alone=True))
        return None

    def _give_up(self, job: int, reason: str) -> GivenUp:
        suspect = self._suspects.pop(job)
        self.num_left -= 1
        return GivenUp(job, {key: suspect.condemned.get(key, reason) for key in self._keys[job]})

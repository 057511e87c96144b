"""Which job goes to which worker, and what becomes of the jobs of a worker that dies; knows nothing of Ray.

Jobs are handed out in their order, two to a worker so that one is written while the other is encoded. A worker gets
nothing before it has reported ready, so one that finds no room on the cluster holds no job.

A job whose worker died is run again by itself, after all others: whoever dies then is not the victim of a neighbour.
If its worker dies again, each of its keys is probed: computed alone, and thrown away. A key whose probe kills two
workers is condemned, and the job is run once more without it, so that the others are computed. A job that has killed
three workers although each key alone passes is given up.
"""

from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

MOST_RUNS = 3
MOST_PROBES = 2
# So many deaths without one piece of work done between them are no longer the fault of one job or one machine.
FRUITLESS_DEATHS = 20


@dataclass(frozen=True)
class Task:
    """One piece of work for a worker.

    Attributes:
        job: number of the job.
        condemned: keys of the job that are not to be computed, with the reason.
        probe: the one key to try, without writing anything; None runs the job.
        alone: nothing else may run in the worker beside it.
    """

    job: int
    condemned: Mapping[str, str] = field(default_factory=dict, hash=False)
    probe: str | None = None
    alone: bool = False


@dataclass(kw_only=True)
class _Suspect:
    """What is known of a job that a worker died of."""

    deaths: int = 0
    to_probe: deque[str] = field(default_factory=deque)
    probes_died: dict[str, int] = field(default_factory=dict)
    condemned: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GivenUp:
    """A job that is not tried again, and why."""

    job: int
    failures: dict[str, str]


class Schedule:
    """Hands out jobs to workers; every method takes time that does not grow with the number of jobs.

    Attributes:
        num_left: jobs that are neither done nor given up.
        fruitless: deaths since a worker last brought something to its end.
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
        """Whether workers die whatever they are given."""
        return self.fruitless >= FRUITLESS_DEATHS + 2 * self._most_workers

    def enlist(self, worker: Hashable) -> None:
        """A worker has reported ready."""
        self._running[worker] = set()
        self._most_workers = max(self._most_workers, len(self._running))
        self._num_idle += 1

    def assign(self, worker: Hashable, num_expected: int = 0) -> Iterator[Task]:
        """What to give to a worker now; `num_expected` workers are on their way and will have no job."""
        running = self._running.get(worker)
        if running is None:
            return
        while (task := self._choose(running, num_expected)) is not None:
            self._num_idle -= not running
            running.add(task)
            yield task

    def done(self, worker: Hashable, task: Task) -> GivenUp | None:
        """A worker has brought a task to its end."""
        self.fruitless = 0
        running = self._running.get(worker)
        if running is not None:
            running.discard(task)
            self._num_idle += not running
        if task.probe is not None:
            return self._go_on(task.job)
        self._suspects.pop(task.job, None)
        self.num_left -= 1
        return None

    def lost(self, worker: Hashable, reason: str) -> list[GivenUp]:
        """A worker is dead or out of reach: what it had goes back into the queue; returns what is given up."""
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
            # A second job only while every worker without one finds its own.
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
            return self._go_on(task.job)
        suspect.deaths += 1
        keys = self._keys[task.job]
        if suspect.deaths >= MOST_RUNS:
            alone = ", although each key alone passed" if len(keys) > 1 else ""
            return self._give_up(task.job, f"its worker process died {suspect.deaths} times ({reason}){alone}")
        if suspect.deaths == MOST_RUNS - 1 and len(keys) > 1:
            suspect.to_probe.extend(keys)
        return self._go_on(task.job)

    def _go_on(self, job: int) -> GivenUp | None:
        """Queues the next thing to do about a job that killed a worker."""
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

"""Runs jobs on Ray: each worker is an actor that keeps its encoders and writes features directly to the store."""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from torch import AcceleratorError

from extract.encoders.streams import StreamSet
from extract.pipeline.local_ray import ray_at
from extract.pipeline.plan import Job
from extract.pipeline.schedule import GivenUp, Schedule, Task
from extract.pipeline.worker import JobResult, Worker
from refavs.errors import ConfigError, RefAVSError
from refavs.machine.processors import num_processors
from refavs.store.writer import StoreWriter

POLL_S = 1.0
# An autoscaler takes minutes to add a node.
WAIT_FOR_ROOM_S = 300.0
# For this long a new worker is expected to become ready, and near the end of the run a job is reserved for it.
SOON_READY_S = 60.0
JOBS_PER_WORKER = 2
MOST_STILLBORN = 5


@dataclass(frozen=True, kw_only=True)
class PoolResources:
    """Where to run, and with how many workers.

    Attributes:
        address: address of a running Ray cluster; None starts one on this machine for the time of the run.
        num_workers: worker processes; None takes one per processor.
        gpus_per_worker: share of a GPU that each worker takes; 0 runs on processors.
        batch_clips: clips in one pass through the visual encoders; None takes 4 on a GPU, else 1.
    """

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 0.0
    batch_clips: int | None = None

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"--workers is {self.num_workers}; accepted: 1 or more")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; accepted: 0 or more")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; accepted: up to 1, or a whole number")
        if self.batch_clips is not None and self.batch_clips < 1:
            raise ConfigError(f"--batch-clips is {self.batch_clips}; accepted: 1 or more")

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """The device of the encoders."""
        return "cuda" if self.gpus_per_worker else "cpu"

    @property
    def clips_per_pass(self) -> int:
        """Clips in one pass through the visual encoders."""
        return self.batch_clips or (4 if self.gpus_per_worker else 1)

    def local_workers(self) -> int:
        """Workers on this machine."""
        return self.num_workers or num_processors()


@dataclass(frozen=True, kw_only=True)
class _Room:
    """Workers that a cluster has room for, and their threads."""

    num_workers: int
    threads_per_worker: int


def run_jobs(
    jobs: Sequence[Job], location: str, streams: StreamSet, resources: PoolResources,
    note: Callable[[str], None] | None = None,
) -> Generator[JobResult | None, None, None]:  # fmt: skip
    """Yields None when work has begun, then each job's result as it ends, and None once a second in between.

    Args:
        jobs: in the order in which to start them.
        location: path or URL of the store, the same for every worker.
        streams: with their encoders, sent to each worker.
        resources: where to run.
        note: called with one line about each lost worker.

    Raises:
        ConfigError: as for `run_pool`.
        StoreError: a worker does not find the store.
    """
    yield from run_pool(
        jobs, Worker, lambda threads: (location, streams, threads, resources.clips_per_pass),
        lambda job, failures: result_without_worker(job, failures, location), resources, note,
    )  # fmt: skip


class PoolJob(Protocol):
    """A job of a pool: the names of its units, each of which may be blamed for the death of a worker."""

    @property
    def names(self) -> Sequence[str]: ...


AnyJob = TypeVar("AnyJob", bound=PoolJob)
Result = TypeVar("Result")


def run_pool(
    jobs: Sequence[AnyJob], worker: type, arguments: Callable[[int], tuple[Any, ...]],
    given_up: Callable[[AnyJob, Mapping[str, str]], Result], resources: PoolResources,
    note: Callable[[str], None] | None = None,
) -> Generator[Result | None, None, None]:  # fmt: skip
    """Runs jobs on actors of a class; yields as `run_jobs` does.

    Args:
        jobs: in the order in which to start them.
        worker: has `ready() -> name`, `run(job, condemned) -> result` and `probe(job, unit)`, as
            `extract.pipeline.worker.Worker`.
        arguments: of the class, for a number of threads.
        given_up: the result of a job that killed its workers, from the reasons of its units.
        resources: where to run.
        note: called with one line about each lost worker.

    Raises:
        ConfigError: no cluster answers at the address; it has too few GPUs or no room for any worker; or workers die
            whatever they do.
    """
    with _cluster(resources, len(jobs)) as room:
        import ray

        # Spread over the nodes, so that few workers share a node's disk and network; by default Ray packs nodes.
        actor = ray.remote(worker).options(
            num_cpus=1, num_gpus=resources.gpus_per_worker, max_restarts=0, max_concurrency=JOBS_PER_WORKER,
            scheduling_strategy="SPREAD",
        )

        def hire() -> Any:
            return actor.remote(*arguments(room.threads_per_worker))

        crew = _Crew(jobs, given_up, hire, room.num_workers, note or (lambda line: None))
        try:
            yield None
            yield from crew.results()
        finally:
            crew.dismiss()


@dataclass(frozen=True, eq=False)
class _Member:
    """One worker process."""

    handle: Any


class _Crew:
    """The worker processes of one run: starts them, gives them tasks of the schedule, and replaces those that die."""

    def __init__(
        self, jobs: Sequence[AnyJob], given_up: Callable[[AnyJob, Mapping[str, str]], Any], hire: Callable[[], Any],
        num_workers: int, note: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._jobs, self._given_up, self._hire, self._note = jobs, given_up, hire, note
        self._num_wanted = num_workers
        self._schedule = Schedule([job.names for job in jobs], JOBS_PER_WORKER)
        self._ready: dict[_Member, str] = {}
        self._coming: set[_Member] = set()
        self._calls: dict[Any, tuple[_Member, Task | None]] = {}
        self._stillborn = 0
        self._nobody_since = self._last_hired = time.monotonic()

    def results(self) -> Iterator[Any]:
        """Runs until every job is done or given up."""
        import ray

        while self._schedule.num_left:
            self._fill_up()
            calls = list(self._calls)
            done, _ = ray.wait(calls, timeout=POLL_S)
            if not done:
                self._refuse_no_room()
                yield None
                continue
            # Take all that have ended: waiting on a thousand calls costs the same for one result as for all.
            done, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            for reference in done:
                if reference in self._calls:
                    yield from self._answer(reference)

    def dismiss(self) -> None:
        """Ends every process, including those that still wait for room."""
        import ray

        for member in (*self._ready, *self._coming):
            ray.kill(member.handle)
        self._calls.clear()

    def _fill_up(self) -> None:
        """Starts the wanted number of workers, but no more than jobs are left."""
        while len(self._ready) + len(self._coming) < min(self._num_wanted, self._schedule.num_left):
            self._last_hired = time.monotonic()
            member = _Member(self._hire())
            self._coming.add(member)
            self._calls[member.handle.ready.remote()] = member, None

    def _answer(self, reference: Any) -> Iterator[Any]:
        """Handles the end of one call."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        member, task = self._calls.pop(reference)
        answer: Any
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, AcceleratorError):  # a broken GPU would fail one job after the other
                yield from self._lost(member, error.cause)
                return
            raise error.cause if isinstance(error.cause, RefAVSError) else error from None
        except RayError as error:  # the process or its node died, perhaps with the answer
            yield from self._lost(member, error)
            return
        if task is None:
            self._stillborn = 0
            self._coming.discard(member)
            self._ready[member] = answer
            self._schedule.enlist(member)
        else:
            given_up = self._schedule.done(member, task)
            if task.probe is None:
                yield answer
            if given_up is not None:
                yield self._failed(given_up)
        self._give_work(member)

    def _give_work(self, member: _Member) -> None:
        soon = time.monotonic() - self._last_hired < SOON_READY_S
        for task in self._schedule.assign(member, len(self._coming) if soon else 0):
            job = self._jobs[task.job]
            call = (member.handle.run.remote(job, dict(task.condemned)) if task.probe is None
                    else member.handle.probe.remote(job, task.probe))  # fmt: skip
            self._calls[call] = member, task

    def _lost(self, member: _Member, error: Exception) -> Iterator[Any]:
        """Puts the jobs of a lost worker back, and gives them to free workers."""
        import ray

        ray.kill(member.handle)  # an unreachable worker must not continue beside its replacement
        lost = [call for call, (other, _) in self._calls.items() if other is member]
        for call in lost:
            del self._calls[call]
        reason = type(error).__name__
        if member in self._coming:
            self._coming.discard(member)
            self._count_stillborn(error)
            return
        self._note(f"worker {self._ready.pop(member)} is lost ({reason}); its jobs go back into the queue")
        if not self._ready:
            self._nobody_since = time.monotonic()
        for given_up in self._schedule.lost(member, reason):
            yield self._failed(given_up)
        if self._schedule.hopeless:
            raise ConfigError(f"{self._schedule.fruitless} workers died one after the other without finishing "
                              f"anything (the last: {_gist(error)}); check memory and drivers of the nodes, "
                              "then run the same command again, perhaps with fewer --workers")
        for other in self._ready:
            self._give_work(other)

    def _failed(self, given_up: GivenUp) -> Any:
        return self._given_up(self._jobs[given_up.job], given_up.failures)

    def _count_stillborn(self, error: Exception) -> None:
        self._stillborn += 1
        if self._stillborn < MOST_STILLBORN:
            return
        if not self._ready:
            raise ConfigError(f"{self._stillborn} workers died before they were ready ({_gist(error)}); check "
                              "memory and installation of the nodes, then run the same command again")
        self._num_wanted = len(self._ready) + len(self._coming)
        self._stillborn = 0

    def _refuse_no_room(self) -> None:
        import ray

        if self._ready or time.monotonic() - self._nobody_since < WAIT_FOR_ROOM_S:
            return
        free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
        num_nodes = sum(node["Alive"] for node in ray.nodes())
        raise ConfigError(f"no worker found room on the Ray cluster in {WAIT_FOR_ROOM_S:.0f} s: it has {num_nodes} "
                          f"nodes with {free['CPU']:g} free CPUs and {free['GPU']:g} free GPUs, and a worker takes 1 "
                          "CPU and the GPUs of --gpus-per-worker; end other jobs there or add nodes, then run the "
                          "same command again")


def result_without_worker(job: Job, failures: Mapping[str, str], location: str) -> JobResult:
    """The result of a job that is given up: its worker may have committed shards before it died.

    Args:
        failures: reason for each unit, unless all of its rows are in the store.
    """
    writer = StoreWriter.attach(location)
    rows = {shard.table: writer.committed(shard.table) for shard in job.shards}
    lost = {unit.name: failures[unit.name] for unit in job.units
            if any(key not in rows[table] for table, key in unit.keys.items())}  # fmt: skip
    return JobResult(kind=job.kind, num_done=len(job.units) - len(lost), failures=lost)


def _gist(error: Exception) -> str:
    """One line of a Ray error: the last of a traceback in it, else the first."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1] if 'creation task' in lines[0] else lines[0]}"


def limited_by_gpus(num_workers: int, gpus_per_worker: float, gpus_of_nodes: Iterable[float]) -> int:
    """`num_workers`, or fewer if the GPUs do not suffice for all of them.

    Raises:
        ConfigError: they do not suffice for one.
    """
    if not gpus_per_worker:
        return num_workers
    gpus = list(gpus_of_nodes)
    fitting = sum(_shares(count, gpus_per_worker) for count in gpus)
    if not fitting:
        raise ConfigError(f"--gpus-per-worker is {gpus_per_worker:g}, but Ray finds {sum(gpus):g} GPUs on {len(gpus)} "
                          "nodes, too few for one worker; leave it out to run on processors, or give --address of a "
                          "cluster with GPUs")
    return min(num_workers, fitting)


def _shares(num_gpus: float, gpus_per_worker: float) -> int:
    """Workers for which the GPUs of one node suffice."""
    return int(num_gpus) * int(1 / gpus_per_worker) if gpus_per_worker <= 1 else int(num_gpus / gpus_per_worker)


def threads_per_worker(num_workers: int, gpus_per_worker: float, nodes: Iterable[Mapping[str, float]]) -> int:
    """Threads of each worker when workers are spread over the nodes; the node with the fewest per worker decides.

    Args:
        nodes: resources of each node by Ray's names, such as `{"CPU": 16.0, "GPU": 2.0}`.
    """
    places = []
    for node in nodes:
        cpus = int(node.get("CPU", 0))
        places.append((cpus, min(cpus, _shares(node.get("GPU", 0), gpus_per_worker)) if gpus_per_worker else cpus))
    taken = [0] * len(places)
    for _ in range(min(num_workers, sum(most for _, most in places))):
        free = [index for index, (_, most) in enumerate(places) if taken[index] < most]
        taken[min(free, key=taken.__getitem__)] += 1
    return max(1, min((cpus // count for (cpus, _), count in zip(places, taken, strict=True) if count), default=1))


def _room(resources: PoolResources, processors: int | None = None) -> _Room:
    """Room on the connected cluster; `processors` replaces the number of its processors."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = resources.num_workers or processors or max(1, int(ray.cluster_resources().get("CPU", 1)))
    num_workers = limited_by_gpus(wanted, resources.gpus_per_worker, (node.get("GPU", 0) for node in nodes))
    threads = (max(1, processors // num_workers) if processors
               else threads_per_worker(num_workers, resources.gpus_per_worker, nodes))  # fmt: skip
    return _Room(num_workers=num_workers, threads_per_worker=threads)


@contextmanager
def _cluster(resources: PoolResources, num_jobs: int) -> Iterator[_Room]:
    """Connects to Ray, or starts it for the time of the run; yields the room for workers."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield _room(resources)
        return
    # Not the number of jobs, which is smaller in a resumed run: the last bits of a sum may depend on the threads.
    processors = num_processors() if resources.address is None else None
    with ray_at(resources.address, num_cpus=min(resources.local_workers(), num_jobs)):
        yield _room(resources, processors)

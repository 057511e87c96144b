"""Runs jobs on Ray: one actor per worker, which keeps its encoders and writes its features straight to the store."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from extract.plan import Job
from extract.presets import Encoders, Preset
from extract.worker import JobResult, Worker
from refavs.errors import ConfigError

POLL_S = 1.0
# Maps never enter the object store, so it can be as small as Ray allows.
OBJECT_STORE_BYTES = 100 * 2**20
RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Where and how widely to run.

    Attributes:
        address: of a running Ray cluster; None starts one on this machine for the time of the run.
        num_workers: worker processes; None takes one per processor.
        gpus_per_worker: share of a GPU that each worker takes; 0 runs on processors.
    """

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"--workers is {self.num_workers}; accepted: 1 or more")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; accepted: 0 or more")
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ConfigError(f"--gpus-per-worker is {self.gpus_per_worker}; accepted: up to 1, or a whole number")

    @property
    def device(self) -> str:
        """The device of the encoders."""
        return "cuda" if self.gpus_per_worker else "cpu"

    def local_workers(self) -> int:
        """Workers where no cluster says how many processors there are."""
        return self.num_workers or len(os.sched_getaffinity(0))


def run_jobs(
    jobs: Sequence[Job], store: str, preset: Preset, encoders: Encoders, resources: Resources
) -> Iterator[JobResult | None]:
    """Yields None when the work has begun, then the result of each job as it ends, and None once a second in between.

    Raises:
        ConfigError: no cluster answers at the address given, or it has less GPU than one worker takes.
    """
    with _cluster(resources, len(jobs)) as num_workers:
        import ray
        from ray.exceptions import RayActorError

        actor = ray.remote(Worker).options(
            num_cpus=1, num_gpus=resources.gpus_per_worker, max_restarts=RETRIES, max_task_retries=RETRIES
        )
        waiting = list(reversed(jobs))
        running: dict[Any, tuple[Any, Job]] = {}

        def start(worker: Any) -> None:
            if waiting:
                job = waiting.pop()
                running[worker.run.remote(job)] = worker, job

        def hire() -> Any:
            return actor.remote(store, preset, encoders, 1)

        for _ in range(min(num_workers, len(jobs))):
            start(hire())
        yield None
        while running:
            done, _ = ray.wait(list(running), timeout=POLL_S)
            if not done:
                yield None
            for reference in done:
                worker, job = running.pop(reference)
                try:
                    result = ray.get(reference)
                except RayActorError as error:
                    reason = f"its worker process died {RETRIES + 1} times ({type(error).__name__})"
                    result = JobResult(table=job.shard.table, failures=dict.fromkeys(job.shard.keys, reason))
                    worker = hire()
                start(worker)
                yield result


def limited_by_gpus(num_workers: int, gpus_per_worker: float, gpus_of_nodes: Iterable[float]) -> int:
    """Workers that find their share of a GPU; one more would wait for it until the others end.

    Raises:
        ConfigError: none finds it.
    """
    if not gpus_per_worker:
        return num_workers
    gpus = list(gpus_of_nodes)
    fitting = sum(int(count) * int(1 / gpus_per_worker) if gpus_per_worker <= 1 else int(count / gpus_per_worker)
                  for count in gpus)  # fmt: skip
    if not fitting:
        raise ConfigError(f"--gpus-per-worker is {gpus_per_worker:g}, but Ray finds {sum(gpus):g} GPUs on {len(gpus)} "
                          "nodes, too few for one worker; leave it out to run on processors, or give --address of a "
                          "cluster with GPUs")
    return min(num_workers, fitting)


def _num_workers(resources: Resources) -> int:
    """Workers for which the cluster that is connected has room."""
    import ray

    wanted = resources.num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return limited_by_gpus(wanted, resources.gpus_per_worker, (node.get("GPU", 0) for node in nodes))


@contextmanager
def _cluster(resources: Resources, num_jobs: int) -> Iterator[int]:
    """Connects to Ray, or starts it for the time of the run; gives the number of workers."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield _num_workers(resources)
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if resources.address is not None:
        try:
            ray.init(address=resources.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"no Ray cluster answers at --address {resources.address} ({str(error).splitlines()[0]}); start one "
                "with 'ray start --head', or leave out --address to run on this machine"
            ) from error
    else:
        num_workers = min(resources.local_workers(), num_jobs)
        ray.init(
            address="local", num_cpus=num_workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    try:
        yield _num_workers(resources)
    finally:
        ray.shutdown()

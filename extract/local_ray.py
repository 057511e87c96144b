"""Ray for the time of a run: the cluster at an address, or one on this machine that is a good neighbour."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from extract.entrypoint import note_any_command_line
from refavs.choices import Device
from refavs.errors import ConfigError
from refavs.printing import warn
from refavs.processors import PASSIVE_WAITING

# Neither maps nor weights enter the object store, so it can be about as small as Ray allows.
OBJECT_STORE_BYTES = 100 * 2**20
START_ATTEMPTS = 2
SHARED_MEMORY = Path("/dev/shm")
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

# The C library gives each block above 32 MB back to the kernel, which clears it page by page when it is next asked for:
# a quarter of preset base's processor time. Here blocks up to 4 GiB are kept, all in one heap, for those of further
# threads hold no more than 64 MB. A process then keeps the most that it once took, at most a tenth more than without,
# which does not grow with the number of clips or epochs.
KEPT_BLOCKS = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}  # fmt: skip
# Of Ray's own time limits those that a busy machine passes, 5 to 60 s each.
PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "90",
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_py_gcs_connect_timeout_s": "90",
    "RAY_gcs_rpc_server_connect_timeout_s": "90",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
LOCAL_ENVIRONMENT = {
    # Ray starts its workers at nice 15: beside any other work they get a thirtieth of a processor.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    **PATIENCE, **PASSIVE_WAITING, **KEPT_BLOCKS,
}  # fmt: skip


@contextmanager
def ray_at(address: str | None, num_cpus: int) -> Iterator[None]:
    """Ray for the time of a run: the cluster at the address, or one of its own on this machine.

    Args:
        address: of a running cluster; None starts one here.
        num_cpus: of the one that is started here.

    Raises:
        ConfigError: no cluster answers at the address, or Ray does not start here.
    """
    import ray

    try:
        if address is None:
            _start(num_cpus)
        else:
            _connect(address)
        yield
    finally:
        ray.shutdown()


def chosen_gpus(
    device: Device, asked: float | None, address: str | None, option: str, warn: Callable[[str], None]
) -> float:
    """GPUs of each worker or trial, by the command line and by what this machine or the cluster has.

    Args:
        device: `--device`.
        asked: the number given by `option`; None where it was left out.
        address: `--address`; None is this machine.
        warn: told in one line of a GPU here that torch cannot use.

    Raises:
        ConfigError: contradicting options, `--device cuda` without a GPU here, or no cluster at the address.
    """
    from refavs.accelerator import gpus_each, local_gpus_seen

    if address is not None:
        return gpus_each(device, asked, lambda: cluster_has_gpus(address), option)
    if device == "cuda":
        local_gpus_seen(device, warn)
    return gpus_each(device, asked, lambda: local_gpus_seen(device, warn), option)


def cluster_has_gpus(address: str) -> bool:
    """Whether the Ray cluster at an address has a GPU.

    Raises:
        ConfigError: no cluster answers there.
    """
    import ray

    if ray.is_initialized():
        return ray.cluster_resources().get("GPU", 0) > 0
    with ray_at(address, num_cpus=1):
        return ray.cluster_resources().get("GPU", 0) > 0


def _connect(address: str) -> None:
    import ray

    note_any_command_line()
    try:
        ray.init(address=address, job_config=own_modules(), **QUIET)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster answers at --address {address} ({_first_line(error)}); start one with 'ray start --head', "
            "or leave out --address to run on this machine"
        ) from error


def _start(num_cpus: int) -> None:
    """Starts Ray here, a second time where the machine was too busy for it."""
    import ray

    store = plasma_directory()
    settings: dict[str, Any] = {} if store is None else {"_plasma_directory": str(store)}
    reason = ""
    for attempt in range(1, START_ATTEMPTS + 1):
        note_any_command_line()
        before = _children()
        try:
            with environment_of(LOCAL_ENVIRONMENT):
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, job_config=own_modules(),
                         object_store_memory=OBJECT_STORE_BYTES, **settings, **QUIET)  # fmt: skip
            return
        except Exception as error:
            # What Ray raises where a process of its does not answer in time; its other errors are of other kinds.
            if type(error) is not Exception and not isinstance(error, (RuntimeError, ConnectionError, TimeoutError)):
                raise
            reason = _first_line(error)
            _kill(_children() - before)
        if attempt < START_ATTEMPTS:
            warn(f"Ray did not start on this machine ({reason}); trying again")
    raise ConfigError(
        f"Ray did not start on this machine in {START_ATTEMPTS} attempts ({reason}); look for other work, too little "
        f"memory or a full disk here, and into raylet.err in {_temporary() / 'ray/session_latest/logs'}, then run the "
        "same command again"
    )


class _Kept(list[str]):
    """Folders to which Ray, which would have the current one come first, adds none."""

    def extend(self, folders: Iterable[str], /) -> None:
        """Leaves the list as it is."""


def own_modules() -> Any:
    """Has workers find the modules that this process has found, whatever files lie in the current folder.

    A user's own `extract.py` there would otherwise take the place of our package.
    """
    from ray.job_config import JobConfig

    root = Path(__file__).resolve().parents[1]
    installed = root.name in ("site-packages", "dist-packages")  # where workers look anyway
    job = JobConfig()
    job._py_driver_sys_path = _Kept([] if installed else [str(root)])
    return job


@contextmanager
def environment_of(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables for what is started inside; those that the user has set stay, and all is as before afterwards."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def plasma_directory() -> Path | None:
    """Where the object store lies if not in shared memory, which a container may lack or have too little of."""
    with suppress(OSError):
        if shutil.disk_usage(SHARED_MEMORY).free > OBJECT_STORE_BYTES and os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            return None
    return _temporary()


def _temporary() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _children() -> set[int]:
    """Processes that this one has started."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def _kill(pids: set[int]) -> None:
    """Ends what a failed start left; what these processes have started ends with them."""
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

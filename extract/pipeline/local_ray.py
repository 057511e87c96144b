"""Ray for the time of a run: the cluster at an address, or a local one that nobody else can use."""

import logging
import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from refavs.choices import Device
from refavs.errors import ConfigError
from refavs.files.temporary import temporary_folder
from refavs.machine.environment import environment_of
from refavs.machine.processors import PASSIVE_WAITING
from refavs.terminal.printing import warn

# About the minimum that Ray accepts; neither maps nor weights enter the object store.
OBJECT_STORE_BYTES = 100 * 2**20
START_ATTEMPTS = 2
SHARED_MEMORY = Path("/dev/shm")
QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

# By default the C library returns each block above 32 MB to the kernel, which clears it page by page at the next
# allocation: a quarter of the processor time with preset base. These settings keep blocks up to 4 GiB, in one heap, as
# the heaps of further threads are limited to 64 MB. A process then keeps its peak memory, at most a tenth more than
# without, which does not grow with the number of clips or epochs.
KEPT_BLOCKS = {
    "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
}  # fmt: skip
# Ray's defaults for these limits, 5 to 60 s, are too short on a busy machine.
PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "90",
    "RAY_raylet_start_wait_time_s": "90",
    "RAY_py_gcs_connect_timeout_s": "90",
    "RAY_gcs_rpc_server_connect_timeout_s": "90",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
}
# For each worker, here and on a cluster; the scripts in infra/ set the same there.
WORKER_ENVIRONMENT = {**PASSIVE_WAITING, **KEPT_BLOCKS}
LOCAL_ENVIRONMENT = {
    # Ray starts workers at nice 15, with which they get a thirtieth of a processor beside any other work.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    **PATIENCE, **WORKER_ENVIRONMENT,
}  # fmt: skip
LOOPBACK = "127.0.0.1"
LOOPBACK_DEVICE = Path("/sys/class/net/lo")
# Path of a socket below Ray's folder, with the longest process id; the system's limit; and the size of a run's logs.
SOCKET = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
MAX_SOCKET_BYTES = 107
LOG_BYTES = 32 * 2**20


@contextmanager
def ray_at(address: str | None, num_cpus: int) -> Iterator[None]:
    """Connects to the cluster at the address, or starts a local one, for the time of a run.

    Args:
        address: address of a running cluster; None starts one on this machine.
        num_cpus: processors of the local one.

    Raises:
        ConfigError: no cluster answers at the address, or Ray does not start here.
    """
    import ray

    with own_token() if address is None else nullcontext():
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
    """GPUs of each worker or trial, from the command line and the hardware of this machine or the cluster.

    Args:
        device: value of `--device`.
        asked: value of `option`; None if it was left out.
        address: value of `--address`; None means this machine.
        warn: called with one line about a local GPU that torch cannot use.

    Raises:
        ConfigError: contradicting options, `--device cuda` without a GPU here, or no cluster at the address.
    """
    from refavs.machine.accelerator import gpus_each, local_gpus_seen

    if address is not None:
        return gpus_each(device, asked, lambda: cluster_has_gpus(address), option)
    if device == "cuda":
        local_gpus_seen(device, warn)
    return gpus_each(device, asked, lambda: local_gpus_seen(device, warn), option)


def cluster_has_gpus(address: str) -> bool:
    """Whether the Ray cluster at an address has a GPU.

    Raises:
        ConfigError: no cluster answers at the address.
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
        from refavs.store.backends.disk_cache import SETTINGS

        cache = {name: os.environ[name] for name in SETTINGS if name in os.environ}  # which local workers inherit
        ray.init(address=address, job_config=own_modules(), runtime_env={"env_vars": cache} if cache else None, **QUIET)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"no Ray cluster answers at --address {address} ({_first_line(error)}); start one with 'ray start --head', "
            "or leave out --address to run on this machine"
        ) from error


def note_any_command_line() -> None:
    """Makes Ray record this process's command line even if a path in it is not valid Unicode."""
    from ray._private import utils

    found = utils.get_entrypoint_name()
    escaped = found.encode("utf-8", "backslashreplace").decode()
    if escaped != found:
        utils.get_entrypoint_name = lambda: escaped


def _start(num_cpus: int) -> None:
    """Starts Ray here, with a second attempt if the machine was too busy."""
    import ray

    store = plasma_directory()
    folder = checked_folder(LOG_BYTES + (0 if store is None else OBJECT_STORE_BYTES))
    settings: dict[str, Any] = {"_temp_dir": str(folder), "_node_ip_address": LOOPBACK}
    settings |= {} if store is None else {"_plasma_directory": str(store)}
    reason = ""
    for attempt in range(1, START_ATTEMPTS + 1):
        note_any_command_line()
        before = _children()
        try:
            with environment_of(LOCAL_ENVIRONMENT | _loopback_device()), _loopback(), few_processes():
                ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, job_config=own_modules(),
                         object_store_memory=OBJECT_STORE_BYTES, **settings, **QUIET)  # fmt: skip
            return
        except Exception as error:
            # The kinds that Ray raises when one of its processes does not answer in time.
            if type(error) is not Exception and not isinstance(error, (RuntimeError, ConnectionError, TimeoutError)):
                raise
            reason = _first_line(error)
            _kill(_children() - before)
        if attempt < START_ATTEMPTS:
            warn(f"Ray did not start on this machine ({reason}); trying again")
    raise ConfigError(
        f"Ray did not start on this machine in {START_ATTEMPTS} attempts ({reason}); look for other work, too little "
        f"memory or a full disk, and read raylet.err in {folder / 'session_latest/logs'}, then run the same command "
        "again"
    )


class _FixedList(list[str]):
    """A list of folders to which Ray cannot add the current one."""

    def extend(self, folders: Iterable[str], /) -> None:
        """Leaves the list as it is."""


def own_modules() -> Any:
    """A job configuration in which workers do not import from the current folder.

    Otherwise a user's own `extract.py` there would shadow our package.
    """
    from ray.job_config import JobConfig

    root = Path(__file__).resolve().parents[2]
    installed = root.name in ("site-packages", "dist-packages")  # already on the workers' path
    job = JobConfig()
    job._py_driver_sys_path = _FixedList([] if installed else [str(root)])
    return job


@contextmanager
def own_token() -> Iterator[None]:
    """Sets a random token for this run's Ray, without which no other process can run code there.

    Overrides tokens in the user's environment, which are for clusters, and restores them afterwards.
    """
    try:
        with environment_of({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}, override=True):
            _reload_token()
            yield
    finally:
        _reload_token()


def _reload_token() -> None:
    """Makes Ray read the token from the environment again, which it does only once per process."""
    from ray import _raylet

    compiled: Any = _raylet
    compiled.Config.initialize("")
    compiled.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _loopback() -> Iterator[None]:
    """Lets Ray use the loopback address, which no other machine reaches.

    On Linux it would replace that by an external address, and listen on every interface.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def few_processes() -> Iterator[None]:
    """Starts Ray without three of its processes, which take half of the processor time of a start.

    They scale clusters, serve the dashboard and forward the workers' output. A local run needs none of this.
    """
    from ray._private.node import Node

    names = ("start_monitor", "start_api_server", "start_log_monitor")
    before = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _loopback_device() -> dict[str, str]:
    """Lets the workers of one trial communicate over the loopback interface instead of the host name's."""
    return {"GLOO_SOCKET_IFNAME": LOOPBACK_DEVICE.name} if LOOPBACK_DEVICE.exists() else {}


def checked_folder(num_bytes: int) -> Path:
    """The folder for Ray's sockets and logs.

    Raises:
        ConfigError: it cannot be written, has less free space than `num_bytes`, or too long a path for a socket in it.
    """
    above = _temporary()
    folder = above / "ray"
    fact, remedy = f"Ray keeps its sockets and logs in {folder}", "name another folder, such as RAY_TMPDIR=/tmp"
    longest = MAX_SOCKET_BYTES - len(f"/ray{SOCKET}")
    if (length := len(os.fsencode(above))) > longest:
        raise ConfigError(f"{fact}, and the path of a socket has at most {MAX_SOCKET_BYTES} bytes; {above} has "
                          f"{length} bytes, accepted: up to {longest}; {remedy}")  # fmt: skip
    try:
        above.mkdir(parents=True, exist_ok=True)
        there = folder if folder.exists() else above
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise ConfigError(f"{fact}, which cannot be created ({error.strerror}); {remedy}") from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{fact}, where this user may not write; {remedy}")
    if free < num_bytes:
        raise ConfigError(f"{fact}, where {free / 1e6:.0f} MB are free and {num_bytes / 1e6:.0f} MB are needed; free "
                          f"space, or {remedy}")  # fmt: skip
    return folder


def plasma_directory() -> Path | None:
    """A folder for the object store if shared memory is too small, as in some containers; else None."""
    with suppress(OSError):
        if shutil.disk_usage(SHARED_MEMORY).free > OBJECT_STORE_BYTES and os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            return None
    return _temporary()


def _temporary() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or temporary_folder()).absolute()


def _children() -> set[int]:
    """Child processes of this one."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


def _kill(pids: set[int]) -> None:
    """Kills processes of a failed start; their own children end with them."""
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

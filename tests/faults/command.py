"""Runs a command as a process of its own that can be killed with all that it started; for the fault tests."""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from refavs.store.format.schema import StoreSchema, StreamSpec
from refavs.store.verify import verify
from refavs.store.writer import StoreWriter

REPOSITORY = Path(__file__).parents[2]
OPTIONS = ("--preset", "tiny", "--weights", "random")
MARK = "REFAVS_FAULT_RUN"
# Of a run, not of the store: what the log holds are times.
NOT_COMPARED = ("extract.jsonl", ".lock", "lease.json")
PATIENCE_S = 1200
_PROGRESS = re.compile(r"refavs-extract: (worker|\d+/\d+ )")


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own at `folder`, as large as `size` says (`6m`); skips the test where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def benchmark(root: Path, num_clips: int) -> Path:
    """A small synthetic benchmark."""
    from refavs.synthetic.write import write_benchmark

    write_benchmark(root, num_clips=num_clips, seed=2, size=96, videos=False)
    return root


def prepare(store: Path, rows_per_shard: dict[str, int] | None = None) -> Path:
    """An empty store with small shards, so that a short run has many commits; a store keeps its own shard sizes."""
    from tests.extract.command import streams_of  # what imports an encoder takes seconds

    rows = rows_per_shard or {"clips": 1, "objects": 2, "text": 8}
    StoreWriter.open(store, StoreSchema(
        streams=small_shards(streams_of().specs(), rows), source="benchmark", seconds=10, fps=1.0, mask_size=96,
        objects_per_shard=rows["objects"],
    ))  # fmt: skip
    return store


def small_shards(specs: dict[str, StreamSpec], rows: dict[str, int]) -> dict[str, StreamSpec]:
    """Streams with so many rows in a shard, by `clips` and `text`."""
    return {id: replace(spec, rows_per_shard=rows["text" if id.startswith("text/") else "clips"])
            for id, spec in specs.items()}  # fmt: skip


def files_of(store: Path) -> dict[str, bytes]:
    """Every file of a store, commit records without the time they took."""
    found = {}
    for path in sorted(store.rglob("*")):
        name = path.relative_to(store).as_posix()
        if not path.is_file() or name in NOT_COMPARED:
            continue
        data = path.read_bytes()
        if name.startswith("commits/") and "seconds" in (record := json.loads(data)["record"]):
            data = json.dumps({**record, "seconds": 0}, sort_keys=True).encode()
        found[name] = data
    return found


def commits_of(store: Path) -> dict[str, bytes]:
    """The commit records of shards that are there."""
    commits = store / "commits"
    return {path.relative_to(commits).as_posix(): path.read_bytes() for path in commits.rglob("*.json")
            if path.parent != commits}  # fmt: skip


def assert_whole(store: Path, before: dict[str, bytes] | None = None) -> None:
    """Nothing that was committed is torn or lost; what comes after the last shard may be missing."""
    found = commits_of(store)
    assert (before or {}).items() <= found.items(), "a commit was lost or written again"
    if (store / "zarr.json").exists():
        assert not verify(store).damage


# Has imported the command once and forks a driver for each line on stdin: arguments, and files for its output.
NURSERY = """
import json, os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
import extract.cli, extract.pipeline.dry_run, extract.pipeline.extraction, extract.pipeline.worker, ray
print("ready", flush=True)
for line in sys.stdin:
    call = json.loads(line)
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.setsid()
    for number, file in ((1, call["out"]), (2, call["err"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    status = extract.cli.main(call["arguments"])
    with open(call["status"], "w") as file:
        file.write(str(int(status)))
    os._exit(0)
"""


class Driver:
    """One refavs-extract, forked; `status` is None while it runs and -9 where it was killed."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder

    @property
    def running(self) -> bool:
        """Whether it is alive."""
        return Path(f"/proc/{self.pid}").exists()

    @property
    def out(self) -> str:
        """What it has printed."""
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        """What it has said on stderr, without the lines of progress."""
        lines = (self._folder / "err").read_text().splitlines()
        return "\n".join(line for line in lines if not _PROGRESS.match(line))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits; False where the driver has ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if not self.running:
                return False
            assert time.monotonic() < deadline, f"it hangs:\n{self.out}\n{self.err}"
            time.sleep(0.01)
        return True

    def wait(self) -> int:
        """The exit status, -9 where it was killed."""
        self.until(lambda: False)
        file = self._folder / "status"
        return int(file.read_text()) if file.exists() else -int(signal.SIGKILL)

    def kill(self) -> bool:
        """Kills it; False where it had ended."""
        return kill(self.pid)


class Cluster:
    """A Ray on this machine, and drivers that use it; use it as a context manager.

    Starting Ray and importing everything takes longer than the runs, and happens once here.
    """

    def __init__(self, folder: Path, num_cpus: int) -> None:
        self._folder, self._num_cpus = folder, num_cpus

    def __enter__(self) -> "Cluster":
        from ray.cluster_utils import Cluster as Nodes

        self._folder.mkdir(parents=True, exist_ok=True)
        self._nodes = Nodes(initialize_head=True, head_node_args={
            "num_cpus": self._num_cpus, "object_store_memory": 100 * 2**20, "include_dashboard": False,
        })  # fmt: skip
        self._nursery = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env=os.environ | _variables(),
        )
        assert self._nursery.stdout is not None and self._nursery.stdout.readline() == "ready\n"
        self._drivers: list[Driver] = []
        return self

    def __exit__(self, *error: object) -> None:
        for driver in self._drivers:
            driver.kill()
        with self._nursery:  # closes its pipes
            self._nursery.kill()
        self._nodes.shutdown()

    def start(self, source: Path, store: Path, *options: str) -> Driver:
        """A driver."""
        folder = self._folder / str(len(self._drivers))
        folder.mkdir()
        call = {name: str(folder / name) for name in ("out", "err", "status")}
        arguments = [str(source), str(store), *OPTIONS, "--address", self._nodes.address, *options]
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(json.dumps(call | {"arguments": arguments}) + "\n")
        self._nursery.stdin.flush()
        driver = Driver(int(self._nursery.stdout.readline()), folder)
        self._drivers.append(driver)
        driver.until((folder / "err").exists)
        return driver

    def run(self, source: Path, store: Path, *options: str) -> Driver:
        """A driver that has ended."""
        driver = self.start(source, store, *options)
        driver.wait()
        return driver

    def workers(self) -> list[int]:
        """Processes in which features are computed."""
        raylet = self._nodes.head_node.all_processes["raylet"][0].process.pid
        children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        return [int(child) for child in children if _command_line(int(child)).startswith(b"ray::Worker")]


def _variables() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


class Python:
    """A running Python with a Ray of its own; use it as a context manager, which ends whatever is left.

    Args:
        environment: further variables.
        before: a command that runs it.
    """

    def __init__(
        self, *arguments: str, environment: dict[str, str] | None = None, before: Sequence[str] = ()
    ) -> None:
        self._token = secrets.token_hex(8)
        self._folder = tempfile.mkdtemp(prefix="rf-", dir="/tmp")  # short: sockets lie in it
        variables = _variables() | {MARK: self._token, "RAY_TMPDIR": self._folder}
        self._out, self._err = Path(self._folder, "out"), Path(self._folder, "err")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*before, sys.executable, *arguments],
                stdout=out, stderr=err, cwd=REPOSITORY, env=os.environ | variables | (environment or {}),
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.clean()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        """Whether the driver is alive."""
        return self.process.poll() is None

    @property
    def out(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has said on stderr, without the lines of progress."""
        return "\n".join(line for line in self._err.read_text().splitlines() if not _PROGRESS.match(line))

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE_S)

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits; False where the driver has ended before."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if not self.running:
                return False
            assert time.monotonic() < deadline, f"it hangs:\n{self.out}\n{self.err}"
            time.sleep(0.01)
        return True

    def processes(self) -> list[int]:
        """The driver and all that it started."""
        return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and self._is_ours(Path("/proc", entry))]

    def workers(self) -> list[int]:
        """Processes of Ray in which features are computed."""
        return [pid for pid in self.processes() if _command_line(pid).startswith(b"ray::")]

    def kill(self) -> None:
        """Kills the driver, then what it left, as a kill by the system's memory manager or a user would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.clean()

    def clean(self) -> None:
        """Ends every process of this run and of no other."""
        deadline = time.monotonic() + PATIENCE_S
        while left := self.processes():
            for pid in left:
                kill(pid)
            self.process.poll()
            assert time.monotonic() < deadline, f"processes {left} do not end"
            time.sleep(0.02)

    def _is_ours(self, process: Path) -> bool:
        try:
            if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
            # A worker of Ray overwrites its environment by its title, but logs into the folder.
            marked = f"{MARK}={self._token}".encode() in (process / "environ").read_bytes()
            named = self._folder.encode() in (process / "cmdline").read_bytes()
            return marked or named or os.readlink(process / "fd" / "1").startswith(f"{self._folder}/ray")
        except OSError:
            return False


class Command(Python):
    """A running refavs-extract.

    Args:
        options: of the command, beside `OPTIONS`.
        settings: as those of `Python`.
    """

    def __init__(self, source: Path, store: Path, *options: str, **settings: Any) -> None:
        super().__init__("-m", "extract.cli", str(source), str(store), *OPTIONS, *options, **settings)


def kill(pid: int) -> bool:
    """Kills one process; False where it has ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""

"""A lab of several hosts for the fault tests: one with the servers, the others with a Ray cluster."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from tests.faults.command import OPTIONS, PATIENCE_S, Python, kill
from tests.faults.sweeps import COMMAND, Sweep
from tests.support.hosts import RAY_PORT, Host, Hosts

S3_PORT, MLFLOW_PORT = 9000, 5000
BUCKET = "features"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


class Lab:
    """Use it as a context manager.

    Args:
        folder: what the servers keep.
        num_hosts: with a processor for Ray each.

    Attributes:
        nodes: hosts with Ray; the first is the head.
        killed: what was killed or cut off, in order.
    """

    def __init__(self, folder: Path, num_hosts: int = 3) -> None:
        self._folder, self._num_hosts = folder, num_hosts
        self.bucket = folder / BUCKET
        self.bucket.mkdir(parents=True)
        self.nodes: list[Host] = []
        self.killed: list[str] = []
        self._former: list[Python] = []
        self._s3: subprocess.Popen[bytes] | None = None
        self._mlflow: Python | None = None

    def __enter__(self) -> Self:
        self.hosts = Hosts(CREDENTIALS).__enter__()
        self.servers = self.hosts.add()
        self.hosts.variables["AWS_ENDPOINT_URL"] = f"http://{self.servers.address}:{S3_PORT}"
        self.start_s3()
        self.fill()
        return self

    def __exit__(self, *error: object) -> None:
        for driver in self._former:
            driver.__exit__()
        self.hosts.__exit__()
        if self._s3 is not None:
            self._s3.wait()

    @property
    def tracking_uri(self) -> str:
        """MLflow's address on every host."""
        return f"http://{self.servers.address}:{MLFLOW_PORT}"

    @property
    def database(self) -> str:
        """MLflow's database, past its server."""
        return f"sqlite:///{self._folder / 'mlflow.db'}"

    def fill(self) -> None:
        """Adds nodes up to the number; a cluster without its head is given up."""
        if self.nodes and not self.nodes[0].pid:
            for node in self.nodes:
                node.die()
        self.nodes = [node for node in self.nodes if node.pid]
        while len(self.nodes) < self._num_hosts:
            node = self.hosts.add()
            self.nodes.append(node)
            self.hosts.start_ray(node, self.nodes[0])

    def python(self, host: Host, *arguments: str) -> Python:
        """A Python on a host."""
        made = Python(*arguments, before=host.inside(), environment=self.hosts.variables)
        self._former.append(made)
        return made

    def extraction(self, host: Host, source: Path, store: str) -> Python:
        """A refavs-extract whose driver is on a host."""
        address = f"{self.nodes[0].address}:{RAY_PORT}"
        return self.python(host, "-m", "extract.cli", str(source), store, *OPTIONS, "--address", address)

    def sweep(self, host: Host, sweep: Sweep) -> Python:
        """A refavs-sweep whose driver is on a host; trials that failed for want of a server run again."""
        address = f"{self.nodes[0].address}:{RAY_PORT}"
        return self.python(host, "-c", COMMAND, *sweep.arguments("--address", address, "--retry-failed"))

    def start_s3(self) -> None:
        """Starts the S3 server, whose objects are in the folder."""
        where = [str(self._folder), self.servers.address, str(S3_PORT)]
        self._s3 = self.servers.start("-m", "tests.support.s3_folder", *where, environment=self.hosts.variables)
        self._answers(S3_PORT)

    def kill_s3(self) -> None:
        """Kills it at once."""
        assert self._s3 is not None
        (process,) = (pid for pid in self.servers.processes(os.fsencode(sys.executable))
                      if b"s3_folder" in Path(f"/proc/{pid}/cmdline").read_bytes())  # fmt: skip
        kill(process)
        self._s3.wait()

    def start_mlflow(self) -> None:
        """Starts the MLflow server."""
        self._mlflow = self.python(
            self.servers, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--artifacts-destination",
            str(self._folder / "artifacts"), "--host", self.servers.address, "--port", str(MLFLOW_PORT),
            "--workers", "1",
        )  # fmt: skip

    def kill_mlflow(self) -> None:
        """Kills it and its workers at once."""
        assert self._mlflow is not None
        self._mlflow.clean()

    def mlflow_answers(self) -> None:
        """Returns when it does."""
        self._answers(MLFLOW_PORT)

    def _answers(self, port: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.servers.reaches(self.servers.address, port):
            assert time.monotonic() < deadline, self.hosts.log(self.servers)
            time.sleep(0.2)

"""Several hosts on one machine: Linux namespaces, joined by a bridge, each with its own network, processes and name.

A host is one process with namespaces of its own and all that runs in them. Killing it is pulling its plug: everything
on it is gone at once, and nobody is told. Its cable can be pulled, lose packets and be slow. Only the file system is
shared, as by NFS; `/dev/shm` and `Hosts.own` are each host's own. Everything ends with the process that made it, even
if that is killed. It takes root, `unshare`, `nsenter`, `ip` and `tc` (Debian: util-linux and iproute2).
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

REPOSITORY = Path(__file__).parents[2]
SUBNET = "10.83.7"
RAY_PORT = 6379
PATIENCE_S = 600
# A host's first process. It takes in orphans, and ends with whoever holds the other end of its input.
INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""
RAY = """
import sys
from extract.pipeline.local_ray import few_processes
from ray.scripts.scripts import cli
with few_processes():
    cli(sys.argv[1:])
"""
# A packet filter in the kernel's own language: a random number above the bound passes, below it the packet is dropped.
DROP = "4,32 0 0 4294963256,37 1 0 {bound},6 0 0 2,6 0 0 0"
# Ray takes 40 s to see that a silent host is gone.
QUICK_TO_NOTICE = {
    "RAY_health_check_period_ms": "2000", "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "10000",
}  # fmt: skip


def missing() -> str:
    """What hosts need and this machine lacks; empty if they can be made."""
    if os.geteuid() != 0:
        return "hosts need root"
    absent = [name for name in ("unshare", "nsenter", "ip", "tc", "mount") if shutil.which(name) is None]
    if absent:
        return f"hosts need {', '.join(absent)}"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "add", "one", "type", "veth"], capture_output=True)
    return "" if tried.returncode == 0 else "this kernel makes no virtual cables"


@dataclass(eq=False)
class Host:
    """One host.

    Attributes:
        pid: its first process.
    """

    number: int
    switch: "_Space"
    own: Path
    pid: int = 0
    _space: "_Space | None" = None
    _ray: "subprocess.Popen[bytes] | None" = None

    @property
    def name(self) -> str:
        """Host name."""
        return f"host{self.number}"

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"{SUBNET}.{self.number}"

    def boot(self, folder: Path) -> None:
        """Starts it with an empty own folder and a plugged cable."""
        self._space = _Space("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc")
        self.pid = self._space.pid
        disk = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=folder))
        port = f"port{self.number}"
        self.switch.run(f"ip link add {port} type veth peer name eth0 netns {self.pid}; "
                        f"ip link set {port} master bridge; ip link set {port} up")  # fmt: skip
        names = folder / "names"
        names.write_text("127.0.0.1 localhost\n" + "".join(f"{SUBNET}.{each} host{each}\n" for each in range(1, 255)))
        (folder / "resolver").write_text("")
        self._space.run(
            f"hostname {self.name}; ip link set lo up; ip addr add {self.address}/24 dev eth0; ip link set eth0 up; "
            f"ip route add default dev eth0; mount --bind {disk} {self.own}; mount -t tmpfs tmpfs /dev/shm; "
            f"mount --bind {names} /etc/hosts; mount --bind {folder / 'resolver'} /etc/resolv.conf"
        )

    def inside(self, *environment: str) -> list[str]:
        """The beginning of a command that runs on this host."""
        return ["nsenter", "-t", str(self.pid), "-a", "env", "-C", str(REPOSITORY), f"TMPDIR={self.own}", *environment]

    def start(self, *arguments: str, environment: dict[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """A Python on this host, whose output goes to a file of the host."""
        variables = [f"{name}={value}" for name, value in (environment or {}).items()]
        with (self.own / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self.inside(*variables), sys.executable, *arguments], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def reaches(self, address: str, port: int) -> bool:
        """Whether something there takes connections from here."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), 2)"
        return subprocess.run([*self.inside(), sys.executable, "-c", code], capture_output=True).returncode == 0

    def processes(self, title: bytes) -> list[int]:
        """Processes on this host whose command line begins so."""
        if self.pid == 0:
            return []
        here, found = os.readlink(f"/proc/{self.pid}/ns/pid"), []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == here:
                    found += [int(entry)] if Path(f"/proc/{entry}/cmdline").read_bytes().startswith(title) else []
            except OSError:
                continue  # it has ended
        return found

    def plug(self, plugged: bool) -> None:
        """Puts its cable in, or pulls it out."""
        self.switch.run(f"ip link set port{self.number} {'up' if plugged else 'down'}")

    def lose(self, share: float) -> None:
        """Drops so much of the packets in both directions."""
        assert self._space is not None
        rule = f"bpf da bytecode '{DROP.format(bound=int(share * (2**32 - 1)))}'"
        self._space.run(f"tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress {rule}; "
                        f"tc filter add dev eth0 egress {rule}")  # fmt: skip

    def slow(self, megabits: float) -> None:
        """Limits both directions; packets beyond the queue are lost."""
        assert self._space is not None
        limit = f"root tbf rate {megabits}mbit burst 64kb latency 300ms"
        self._space.run(f"tc qdisc add dev eth0 {limit}")
        self.switch.run(f"tc qdisc add dev port{self.number} {limit}")

    def die(self) -> None:
        """Pulls its plug."""
        if self._space is not None:
            self._space.end()
            if self._ray is not None:
                self._ray.wait()
            self._space, self.pid = None, 0


class _Space:
    """A process in namespaces of its own."""

    def __init__(self, *namespaces: str) -> None:
        self._process = subprocess.Popen(
            ["unshare", *namespaces, sys.executable, "-c", INIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"
        inner = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.pid = int(inner[0]) if inner else self._process.pid

    def run(self, script: str) -> None:
        """Runs a shell script in them."""
        command = ["nsenter", "-t", str(self.pid), "-a", "sh", "-ec", script]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stderr}"

    def end(self) -> None:
        """Ends it, and with it all that is in its process namespace."""
        os.kill(self.pid, signal.SIGKILL)
        with self._process:
            self._process.wait()


@dataclass
class Hosts:
    """A bridge and the hosts at it; use it as a context manager.

    Attributes:
        own: a folder whose content each host has for itself.
        environment: variables of Ray on every host.
    """

    environment: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix="rfh-", dir="/tmp"))  # short: Ray's sockets lie in it
        self.own = self.folder / "own"
        self.own.mkdir()
        self._switch = _Space("--net")
        self._switch.run("ip link add bridge type bridge; ip link set bridge up")
        self._hosts: list[Host] = []
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        self.variables = {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", **QUICK_TO_NOTICE, **token, **self.environment,
        }  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        for host in self._hosts:
            host.die()
        self._switch.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self) -> Host:
        """One more host, which runs nothing."""
        host = Host(len(self._hosts) + 1, self._switch, self.own)
        self._hosts.append(host)
        host.boot(self.folder)
        return host

    def start_ray(self, host: Host, head: Host, num_cpus: int = 1) -> None:
        """Starts a Ray node; returns when it has joined the head's cluster."""
        role = ["--head", f"--port={RAY_PORT}", f"--temp-dir={self.own}", "--include-dashboard=false"]
        role = role if host is head else [f"--address={head.address}:{RAY_PORT}"]
        host._ray = host.start(
            "-c", RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={host.address}",
            f"--num-cpus={num_cpus}", "--object-store-memory=100000000", *role, environment=self.variables,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while not host.processes(b"ray::IDLE") and not host.processes(b"ray::"):
            assert host._ray.poll() is None and time.monotonic() < deadline, self.log(host)
            time.sleep(0.2)

    def log(self, host: Host) -> str:
        """What the programs on a host have printed."""
        return "\n".join(path.read_text() for path in self.own.glob(f"{host.name}.log"))

    def cluster(self, num_hosts: int) -> Sequence[Host]:
        """Hosts with one processor each for Ray; the first is the head."""
        hosts = [self.add() for _ in range(num_hosts)]
        for host in hosts:
            self.start_ray(host, hosts[0])
        return hosts

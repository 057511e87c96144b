"""Whether another machine reaches the Ray of a run, tried from a network of its own."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
HERE, THERE = "198.51.100.1", "198.51.100.2"  # of the range for documentation
RUN = """
import json, os, socket, sys
from extract.pipeline.local_ray import ray_at
from tests.extract.listening import listening
control = socket.create_server(("", 0))
with ray_at(None, num_cpus=1):
    import ray
    from ray.util import get_node_ip_address
    ray.get(ray.remote(lambda: None).remote())
    print(json.dumps([control.getsockname()[1], [port for _, port in listening(os.getpid())], get_node_ip_address()]))
    sys.stdout.flush()
    sys.stdin.read()
"""
KNOCK = """
import json, socket, sys
def answers(port):
    try:
        socket.create_connection((sys.argv[1], port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True
print(json.dumps([port for port in map(int, sys.argv[2:]) if answers(port)]))
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Two networks with a cable between them, as of two machines."""
    if shutil.which("ip") is None:
        pytest.skip("no networks can be made: the command ip (package iproute2) is not installed")
    first, second = (f"refavs-{name}-{uuid.uuid4().hex[:6]}" for name in "ab")
    try:
        try:
            for name in (first, second):
                ip("netns", "add", name)
            ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no networks can be made here: {error.stderr.decode().strip()}")
        for name, address in ((first, HERE), (second, THERE)):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        ip("-n", first, "route", "add", "default", "via", THERE)  # by which Ray finds the address that others reach
        yield first, second
    finally:
        for name in (first, second):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def test_another_machine_reaches_no_port_of_a_run(networks: tuple[str, str]) -> None:
    first, second = networks
    command = ["ip", "netns", "exec", first, sys.executable, "-c", RUN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                          env={**os.environ, "RAY_AUTH_MODE": "disabled"}) as run:  # fmt: skip
        assert run.stdin is not None and run.stdout is not None
        open_to_all, ports, address = json.loads(run.stdout.readline())
        assert len(ports) >= 6 and address == "127.0.0.1"
        command = ["ip", "netns", "exec", second, sys.executable, "-c", KNOCK, HERE, *map(str, ports)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == [open_to_all], "what listens on every interface is reached, Ray is not"
        run.stdin.close()
    assert run.returncode == 0

"""infra/slurm.sh under a real Slurm: controller and two nodes on this machine, which it takes root to start."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.command import PATIENCE_S
from tests.faults.sweeps import Sweep

ROOT = Path(__file__).resolve().parents[2]
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")
DAEMONS = ("munged", "slurmctld", "slurmd")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, DAEMONS)), reason=f"needs root and {', '.join(DAEMONS)}"
    ),
]

CONFIGURATION = """
ClusterName=try
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={one} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={other} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment for Slurm's commands."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    daemons = []
    if not _munged_answers():
        subprocess.run(["install", "-d", "-o", "munge", str(MUNGE_SOCKET.parent)], check=True)
        daemons.append(subprocess.Popen(["munged", "--foreground"], user="munge", group="munge", extra_groups=[],
                                        stderr=subprocess.DEVNULL))  # fmt: skip
        wait_for(_munged_answers)
    ports = _free_ports("controller", "one", "other")
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, **ports))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    commands = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
    daemons += [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for command in commands]
    try:
        wait_for(lambda: _asked(environment, "sinfo", "-h", "-o", "%T %D") == "idle 2")
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            daemon.wait(PATIENCE_S)


def _munged_answers() -> bool:
    """Whether a daemon listens at the socket, which stays when its daemon is killed."""
    with socket.socket(socket.AF_UNIX) as end:
        return end.connect_ex(str(MUNGE_SOCKET)) == 0


def _free_ports(*names: str) -> dict[str, int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.5)


def _asked(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip()


def submit(environment: dict[str, str], sweep: Sweep, output: Path) -> str:
    """Gives the sweep to Slurm on both nodes; returns the job's number."""
    checkout = output.parent / "checkout"  # with the environment that runs these tests
    if not checkout.is_dir():
        (checkout / ".venv" / "bin").mkdir(parents=True)
        run = f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        for name, module in (("refavs-sweep", "experiments.cli"), ("ray", "ray.scripts.scripts")):
            script = checkout / ".venv" / "bin" / name
            script.write_text(f"{run}from {module} import main\nsys.exit(main())\n")
            script.chmod(0o755)
    command = [
        "sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", "--time=30", f"--output={output}",
        str(ROOT / "infra" / "slurm.sh"), "refavs-sweep", *sweep.arguments(),
    ]  # fmt: skip
    environment = {**environment, "REFAVS": str(checkout), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=output.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_sweep_runs_on_two_nodes_and_is_told_of_the_end_of_its_time(slurm: dict[str, str], tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "one", "  train: {epochs: 2, steps_per_epoch: 2, batch_size: 2}\nseeds: [0, 1, 2, 3]\n")
    job = submit(slurm, sweep, tmp_path / "one.txt")
    wait_for(lambda: not _asked(slurm, "squeue", "-h", "-j", job))
    told = (tmp_path / "one.txt").read_text()
    assert "JobState=COMPLETED" in _asked(slurm, "scontrol", "show", "job", job), told
    assert "4 trials finished now, 4 of 4 in all" in told
    assert [entry.state for entry in sweep.entries] == ["finished"] * 4

    long = Sweep(
        tmp_path / "two", "  train: {epochs: 9999, steps_per_epoch: 2, batch_size: 2}\nseeds: [0, 1]\n",
        store=sweep.store,
    )  # fmt: skip
    job = submit(slurm, long, tmp_path / "two.txt")
    wait_for(lambda: all((entry.folder / "metrics.jsonl").is_file() for entry in long.entries))
    subprocess.run(["scancel", "--signal=TERM", "--batch", job], env=slurm, check=True)  # as --signal=B:TERM does
    wait_for(lambda: not _asked(slurm, "squeue", "-h", "-j", job))
    told = (tmp_path / "two.txt").read_text()
    assert "ExitCode=130:0" in _asked(slurm, "scontrol", "show", "job", job), told
    assert "run the same command again to resume" in told
    assert [entry.state for entry in long.entries] == ["stopped"] * 2
    assert not Path(f"/tmp/ray-{job}").exists()

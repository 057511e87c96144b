"""Processors that a process may use, by what it is bound to and by the limits of its control groups."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refavs.machine.processors import num_processors

ROOT = Path(__file__).resolve().parents[2]
V2 = "41 31 0:38 {root} {mount} rw,relatime - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {root} {mount} rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "35 31 0:32 {root} {mount} rw,relatime - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def sixteen_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))


def process(folder: Path, cgroup: str, mountinfo: str) -> Path:
    """What the kernel says of a process."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo)
    return proc


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


@pytest.mark.parametrize(("limit", "found"), [
    ("max 100000", 16), ("50000 100000", 1), ("100000 100000", 1), ("250000 100000", 3), ("10000 20000", 1),
    ("6400000 100000", 16),
])  # fmt: skip
def test_quota_of_version_2_is_rounded_up(tmp_path: Path, limit: str, found: int) -> None:
    write(tmp_path / "unified" / "job", cpu_max=limit)
    assert num_processors(process(tmp_path, "0::/job\n", V2.format(root="/", mount=tmp_path / "unified"))) == found


def test_tightest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    write(tmp_path / "unified" / "slice", cpu_max="200000 100000")
    write(tmp_path / "unified" / "slice" / "job", cpu_max="max 100000")
    write(tmp_path / "unified" / "slice" / "job" / "step", cpu_max="800000 100000")
    write(tmp_path / "unified" / "other", cpu_max="100000 100000")
    mount = V2.format(root="/", mount=tmp_path / "unified")
    assert num_processors(process(tmp_path, "0::/slice/job/step\n", mount)) == 2


@pytest.mark.parametrize(("quota", "found"), [("-1", 16), ("50000", 1), ("400000", 4)])
def test_quota_of_version_1_is_that_of_the_processors(tmp_path: Path, quota: str, found: int) -> None:
    cpu, memory = tmp_path / "cpu", tmp_path / "memory"
    write(cpu / "docker" / "1f", cpu_cfs_quota_us=quota, cpu_cfs_period_us="100000")
    write(cpu, cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    write(memory / "docker" / "1f", cpu_cfs_quota_us="1", cpu_cfs_period_us="100000")
    mounts = MEMORY.format(root="/", mount=memory) + V1.format(root="/", mount=cpu)
    groups = "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/\n"
    assert num_processors(process(tmp_path, groups, mounts)) == found


@pytest.mark.parametrize("group", ["/docker/1f", "/elsewhere"])
def test_container_sees_its_own_group_as_the_mount(tmp_path: Path, group: str) -> None:
    write(tmp_path / "cpu", cpu_cfs_quota_us="150000", cpu_cfs_period_us="100000")
    mount = V1.format(root="/docker/1f", mount=tmp_path / "cpu")
    assert num_processors(process(tmp_path, f"3:cpu,cpuacct:{group}\n", mount)) == 2


def test_processors_without_control_groups_are_those_that_the_process_is_bound_to(tmp_path: Path) -> None:
    assert num_processors(tmp_path / "nowhere") == 16
    write(tmp_path / "unified", cpu_max="100000")  # not in the kernel's form
    assert num_processors(process(tmp_path, "0::/\n", V2.format(root="/", mount=tmp_path / "unified"))) == 16


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """The list of processes of a real control group with half a processor."""
    top = Path("/sys/fs/cgroup")
    limits = {"cpu.max": "50000 100000"}
    if not (top / "cgroup.controllers").exists():
        top, limits = top / "cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    group = top / f"refavs-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip(f"making a control group under {top} needs root")
    try:
        for name, value in limits.items():
            if not (group / name).exists():
                pytest.skip(f"control groups under {top} have no {name}")
            (group / name).write_text(value)
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


@pytest.mark.process
def test_real_control_group_of_half_a_core_has_one_processor(half_a_core: Path) -> None:
    program = ("import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
               "os.sched_getaffinity = lambda process: set(range(16))\n"
               "from refavs.machine.processors import num_processors; print(num_processors())")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, str(half_a_core)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.process
def test_torch_has_no_more_threads_than_the_control_group_gives_processors() -> None:
    program = ("import refavs.machine.processors as processors; processors.num_processors = lambda: 1\n"
               "processors.share_processors(); import os, torch\n"
               "print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])")  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (0, "1 PASSIVE\n"), done.stderr

"""A private Ray on this machine: its workers' environment, access control, failing starts, and its folder."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extract.pipeline import local_ray
from extract.pipeline.local_ray import ray_at
from refavs.errors import ConfigError
from refavs.machine.environment import environment_of
from tests.extract.listening import listening, with_children

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


class Starts:
    """Stands for `ray.init`, which leaves processes and raises so many times."""

    def __init__(self, failures: int, error: type[Exception] = Exception) -> None:
        self.failures, self.error = failures, error
        self.left: list[subprocess.Popen[bytes]] = []
        self.settings: list[dict[str, Any]] = []

    def __call__(self, **settings: Any) -> None:
        self.settings.append(settings)
        if len(self.settings) <= self.failures:
            self.left.append(subprocess.Popen(["sleep", "600"]))
            raise self.error(f"{TIMED_OUT}\nand more")


def stranger(address: str, **variables: str) -> str:
    """What another process on this machine prints that tries to run code in a Ray."""
    code = "import ray, sys; ray.init(address=sys.argv[1]); print(ray.get(ray.remote(lambda: 'ran code').remote()))"
    near = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}  # loopback; one attempt
    done = subprocess.run([sys.executable, "-c", code, address], env={**os.environ, **near, **variables}, timeout=300,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.ray
def test_workers_are_as_nice_as_the_driver_and_share_processors_and_memory_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import ray

    for name in local_ray.LOCAL_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")  # the user's own
    monkeypatch.setattr(local_ray, "SHARED_MEMORY", tmp_path / "absent")
    ours = ("extract", "experiments", "refavs")
    for name in ours:  # the user's own, in the current folder, which Ray would put first
        (tmp_path / f"{name}.py").write_text("raise SystemError('not ours')\n")
    monkeypatch.chdir(tmp_path)
    roots = [Path(module.__path__[0]) for module in map(importlib.import_module, ours)]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", "/dev/null/none")  # which Ray's own tokens would be written to

    def look(data: bytes) -> tuple[int, dict[str, str], int, list[Path]]:
        found = [Path(module.__path__[0]) for module in map(importlib.import_module, ours)]
        return os.nice(0), dict(os.environ), len(data), found

    with ray_at(None, num_cpus=1):
        assert not set(local_ray.LOCAL_ENVIRONMENT) - {"MALLOC_ARENA_MAX"} & set(os.environ)
        nice, environment, num_bytes, found = ray.get(ray.remote(look).remote(ray.put(bytes(2**20))))
        address, places = ray.get_runtime_context().gcs_address, listening(os.getpid())
        programs = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in with_children(os.getpid()))
        known = stranger(address)
        refused = stranger(address, RAY_AUTH_MODE="disabled"), stranger(address, RAY_AUTH_TOKEN="0" * 64)
    assert len(places) >= 5 and all(place.is_loopback for place, _ in places), places
    assert b"raylet" in programs and not any(name in programs for name in (b"monitor.py", b"dashboard.py"))
    assert "ran code" in known and all("AuthenticationError" in told for told in refused), (known, refused)
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
    assert not ray.is_initialized()
    assert nice == os.nice(0) and num_bytes == 2**20 and found == roots
    own = {name: environment[name] for name in (*local_ray.PASSIVE_WAITING, *local_ray.KEPT_BLOCKS)}
    assert own == local_ray.PASSIVE_WAITING | local_ray.KEPT_BLOCKS | {"MALLOC_ARENA_MAX": "2"}


def test_variables_of_the_user_stay_and_ours_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with pytest.raises(ZeroDivisionError), environment_of({"MALLOC_ARENA_MAX": "1", "OMP_WAIT_POLICY": "PASSIVE"}):
        assert (os.environ["MALLOC_ARENA_MAX"], os.environ["OMP_WAIT_POLICY"]) == ("7", "PASSIVE")
        raise ZeroDivisionError
    assert os.environ["MALLOC_ARENA_MAX"] == "7" and "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.process
def test_start_that_a_busy_machine_delays_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = Starts(failures=1)
    monkeypatch.setattr("ray.init", starts)
    other = subprocess.Popen(["sleep", "600"])
    try:
        with ray_at(None, num_cpus=3):
            assert other.poll() is None, "a process that Ray did not start is ended"
    finally:
        other.kill()
        other.wait()
    assert [settings["num_cpus"] for settings in starts.settings] == [3, 3]
    (left,) = starts.left
    assert left.poll() is not None, "the first start's processes run on"
    said = capsys.readouterr().err
    assert said.startswith("Ray did not start on this machine (The current node timed out") and said.count("\n") == 1


@pytest.mark.process
def test_start_that_never_succeeds_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(failures=9, error=RuntimeError)
    monkeypatch.setattr("ray.init", starts)
    monkeypatch.setattr(local_ray, "checked_folder", lambda _: Path("/scratch/ray"))
    with pytest.raises(ConfigError) as caught, ray_at(None, num_cpus=1):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert f"in 2 attempts ({TIMED_OUT})" in message and "/scratch/ray/session_latest/logs" in message
    assert [left.poll() is not None for left in starts.left] == [True, True]


@pytest.mark.process
def test_error_of_another_kind_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(failures=9, error=TypeError)
    monkeypatch.setattr("ray.init", starts)
    with pytest.raises(TypeError), ray_at(None, num_cpus=1):
        pass
    for left in starts.left:
        left.kill()
        left.wait()
    assert len(starts.settings) == 1


@pytest.mark.parametrize(("free", "writable", "found"), [
    (2**30, True, None), (2**20, True, Path("/scratch")), (2**30, False, Path("/scratch")),
])  # fmt: skip
def test_object_store_lies_elsewhere_where_shared_memory_is_small_or_closed(
    monkeypatch: pytest.MonkeyPatch, free: int, writable: bool, found: Path | None
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    monkeypatch.setattr(local_ray.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(local_ray.os, "access", lambda path, mode: writable)
    assert local_ray.plasma_directory() == found


def refused_folder(num_bytes: int = 1) -> str:
    with pytest.raises(ConfigError) as caught:
        local_ray.checked_folder(num_bytes)
    assert "as RAY_TMPDIR=/tmp" in str(caught.value)
    return str(caught.value)


def test_folder_that_ray_cannot_use_is_named_before_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local_ray, "MAX_SOCKET_BYTES", 300)  # the folders of tests have long names
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "new" / "folder"))
    assert local_ray.checked_folder(1) == tmp_path / "new" / "folder" / "ray"
    assert "MB are free and 1000000000000000 MB are needed" in refused_folder(10**21)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "below"))
    assert f"in {tmp_path}/file/below/ray, which cannot be created (Not a directory)" in refused_folder()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", "near")
    assert local_ray.checked_folder(1) == tmp_path / "near" / "ray"
    monkeypatch.setattr(local_ray.os, "access", lambda path, mode: False)
    assert "where this user may not write" in refused_folder()


def test_name_too_long_for_a_socket_is_reported_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    monkeypatch.setattr(local_ray.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    monkeypatch.setattr(local_ray.os, "access", lambda path, mode: True)
    for length in (39, 40):
        monkeypatch.setenv("RAY_TMPDIR", f"/{'é' * 5}{'x' * (length - 11)}")
        folder = local_ray.checked_folder(1) if length == 39 else None
        assert folder is None or len(os.fsencode(f"{folder}{local_ray.SOCKET}")) == 107
    assert "has 40 bytes, accepted: up to 39; name another folder" in refused_folder()

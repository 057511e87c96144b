"""Two drivers on one store, with real processes that are stopped, continued and killed."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from refavs.errors import StoreError
from refavs.store import lease as lease_module
from refavs.store.backends.base import LocalFolder
from refavs.store.lease import NAME, Lease, Owner

BEAT_S, EXPIRES_S = 0.1, 1.0
# Of a lease that must not expire, however long its owner waits for a processor.
NEVER_S = 1e6
# Forks a process for each line on its standard input, since importing takes longer than all that the process does.
# It takes the lease, says so, then checks it at each line that it is sent; `reap` collects the remains of one.
NURSERY = """
import json, os, sys
from pathlib import Path
from refavs.errors import StoreError
from refavs.store.backends.base import LocalFolder
from refavs.store.lease import Lease

def hold(call):
    sys.stderr = open(call["err"], "w")
    with open(call["in"]) as asked, open(call["out"], "w", buffering=1) as said:
        try:
            with Lease(LocalFolder(Path(call["folder"])), call["program"], **call["times"]) as lease:
                print("held", file=said)
                for line in asked:
                    lease.check()
                    print("still held", file=said)
        except StoreError as error:
            print(error, file=said)

for line in sys.stdin:
    call = json.loads(line)
    if "reap" in call:
        print(os.waitpid(call["reap"], 0)[0], flush=True)
        continue
    child = os.fork()
    if not child:
        hold(call)
        sys.stderr.flush()
        os._exit(0)
    print(child, flush=True)
"""


class Nursery:
    """The process that starts those who hold leases."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def ask(self, **call: object) -> int:
        """Sends a line; the process that it is about."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


class Holder:
    """A process that holds, or waits for, the lease of a folder."""

    def __init__(self, nursery: Nursery, folder: Path, pipes: Path, program: str, expires_s: float) -> None:
        self._nursery, self._err, self._ended = nursery, pipes / "err", False
        for name in ("in", "out"):
            os.mkfifo(pipes / name)
        self.pid = nursery.ask(
            folder=str(folder), program=program, times={"beat_s": BEAT_S, "expires_s": expires_s},
            **{name: str(pipes / name) for name in ("in", "out", "err")},
        )  # fmt: skip
        self._in, self.out = (pipes / "in").open("w", buffering=1), (pipes / "out").open()

    def line(self) -> str:
        return self.out.readline().strip()

    def check(self) -> str:
        self._in.write("\n")
        return self.line()

    def end(self) -> str:
        """Ends it as a finished command; returns what it said on stderr."""
        self._in.close()
        self.out.read()
        self._reap()
        return self._err.read_text()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._reap()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def close(self) -> None:
        """Ends it whatever it does; closes the pipes."""
        if not self._ended:
            self.kill()
        self.out.close()
        with contextlib.suppress(BrokenPipeError):
            self._in.close()

    def _reap(self) -> None:
        self._ended = True
        assert self._nursery.ask(reap=self.pid) == self.pid


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def holders(
    nursery: Nursery, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Holder]]:
    started: list[Holder] = []

    def start(program: str = "refavs-first", expires_s: float = EXPIRES_S) -> Holder:
        started.append(Holder(nursery, tmp_path, tmp_path_factory.mktemp("pipes"), program, expires_s))
        return started[-1]

    yield start
    for holder in started:
        holder.close()


def lease(folder: Path, expires_s: float = EXPIRES_S) -> Lease:
    return Lease(LocalFolder(folder), "refavs-second", beat_s=BEAT_S, expires_s=expires_s)


def elsewhere(folder: Path) -> bytes:
    """Makes the lease in `folder` look as if its owner ran on another machine."""
    owner = Owner.from_bytes((folder / NAME).read_bytes())
    assert owner is not None
    data = json.dumps({**vars(owner), "host": "node7", "machine": "another boot"}).encode()
    (folder / NAME).write_bytes(data)
    return data


def test_lease_names_its_owner_beats_and_goes_with_it(tmp_path: Path) -> None:
    with lease(tmp_path / "new") as held:
        first = Owner.from_bytes((tmp_path / "new" / NAME).read_bytes())
        while (second := Owner.from_bytes((tmp_path / "new" / NAME).read_bytes())) == first:
            time.sleep(BEAT_S)
        held.check()
    assert first is not None and second is not None and (first.pid, first.program) == (os.getpid(), "refavs-second")
    assert first.token == second.token and second.beat > first.beat
    assert not (tmp_path / "new" / NAME).exists()
    with lease(tmp_path / "new"):  # it can be taken again
        pass


@pytest.mark.process
def test_living_owner_is_named_within_a_few_beats(tmp_path: Path, holders: Callable[..., Holder]) -> None:
    first = holders()
    assert first.line() == "held"
    with (
        pytest.raises(StoreError, match=rf"written by refavs-first \(process {first.pid} on .*wait for"),
        lease(tmp_path, NEVER_S),
    ):
        pass
    assert first.check() == "still held"


@pytest.mark.process
def test_killed_owner_on_this_machine_is_replaced_at_once(
    tmp_path: Path, holders: Callable[..., Holder], capsys: pytest.CaptureFixture[str]
) -> None:
    first = holders()
    assert first.line() == "held"
    first.kill()
    with lease(tmp_path, NEVER_S) as held:
        held.check()
    assert capsys.readouterr().err == (
        f"refavs-second: took over {tmp_path} from refavs-first (process {first.pid} on "
        f"{os.uname().nodename}), which no longer runs\n"
    )


@pytest.mark.process
def test_killed_zombie_owner_counts_as_gone(tmp_path: Path, holders: Callable[..., Holder]) -> None:
    first = holders()
    assert first.line() == "held"
    first.signal(signal.SIGKILL)
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    with lease(tmp_path, NEVER_S) as held:
        held.check()


def test_process_of_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    with lease(tmp_path):
        owner = Owner.from_bytes((tmp_path / NAME).read_bytes())
    assert owner is not None and not owner.gone()
    later = replace(owner, started=owner.started - 1)
    assert later.gone()
    assert not replace(later, machine="another boot").gone()
    assert not replace(later, machine="").gone()


@pytest.mark.long
def test_lease_of_another_machine_expires(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lease(tmp_path):
        data = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(data)
    elsewhere(tmp_path)
    began = time.monotonic()
    with lease(tmp_path) as held:
        assert time.monotonic() - began >= EXPIRES_S
        held.check()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "node7); waiting" in told[0] and "gave no sign of life for 1 s" in told[1]


@pytest.mark.process
def test_beat_of_another_machine_refuses(tmp_path: Path, holders: Callable[..., Holder]) -> None:
    first = holders()
    assert first.line() == "held"
    first.kill()
    owner = Owner.from_bytes(elsewhere(tmp_path))
    assert owner is not None
    second = holders("refavs-second", NEVER_S)
    for beat in range(owner.beat, 10**6):
        LocalFolder(tmp_path).write(NAME, replace(owner, beat=beat).to_bytes())
        if select.select([second.out], [], [], BEAT_S)[0]:
            break
    assert "written by refavs-first (process" in second.line()


@pytest.mark.process
def test_stopped_owner_notices_that_it_lost_its_lease(tmp_path: Path, holders: Callable[..., Holder]) -> None:
    first, second = holders(), None
    assert first.line() == "held"
    first.signal(signal.SIGSTOP)
    second = holders("refavs-second")
    assert second.line() == "held"
    first.signal(signal.SIGCONT)
    said = first.check()
    assert f"no longer held by this refavs-first: refavs-second (process {second.pid} on" in said, said
    assert second.check() == "still held"  # the first one's end did not touch it
    first.end()
    assert second.check() == "still held"
    assert "took over" in second.end()
    assert not (tmp_path / NAME).exists()


def test_renewing_thread_notices_a_lost_lease(tmp_path: Path) -> None:
    held = lease(tmp_path)
    with held:
        LocalFolder(tmp_path).write(NAME, elsewhere(tmp_path).replace(held._me.token.encode(), b"f" * 32))
        held._thread.join(timeout=600)
        assert not held._thread.is_alive()
        with pytest.raises(StoreError, match="no longer held"):
            held.check()
    assert (tmp_path / NAME).exists()


def test_removed_lease_counts_as_lost(tmp_path: Path) -> None:
    with lease(tmp_path) as held:
        (tmp_path / NAME).unlink()
        with pytest.raises(StoreError, match=r"lease\.json was removed"):
            held.check()


@pytest.mark.process
def test_suspended_owner_that_was_not_replaced_continues(tmp_path: Path, holders: Callable[..., Holder]) -> None:
    first = holders()
    assert first.line() == "held"
    first.signal(signal.SIGSTOP)
    time.sleep(1.5 * EXPIRES_S)
    first.signal(signal.SIGCONT)
    assert first.check() == "still held"


@pytest.mark.process
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_of_many_takers_one_wins(tmp_path: Path, holders: Callable[..., Holder], how: str) -> None:
    first = holders()
    assert first.line() == "held"
    if how == "killed":
        first.kill()
    else:
        first.signal(signal.SIGSTOP)
    # Of a killed owner it is known that it is gone; that of a stopped one expires, and the winner's must not.
    expires_s = NEVER_S if how == "killed" else 4.0
    takers = [holders(f"refavs-taker{number}", expires_s) for number in range(3)]
    lines = [taker.line() for taker in takers]
    assert lines.count("held") == 1, lines
    assert sum("is being written by refavs-taker" in line for line in lines) == len(takers) - 1, lines


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b"\xff\x00", b'{"pid": "x"}', b"[" * 100_000])
def test_damaged_lease_expires(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / NAME).write_bytes(data)
    with Lease(LocalFolder(tmp_path), "refavs-second", beat_s=0.02, expires_s=0.1) as held:
        held.check()
    assert "held by an unknown process" in capsys.readouterr().err


def test_clock_of_the_day_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("the time of day was asked for")

    monkeypatch.setattr(lease_module.time, "time", refuse)
    (tmp_path / NAME).write_bytes(b"stale")
    with Lease(LocalFolder(tmp_path), "refavs-second", beat_s=0.02, expires_s=0.1) as held:
        held.check()


def test_answer_that_was_lost_is_not_taken_for_a_lost_lease(tmp_path: Path) -> None:
    class Forgetful(LocalFolder):
        """Says of each write that it failed, as a network that breaks off after the request does."""

        def create(self, name: str, data: bytes) -> bool:
            return super().create(name, data) and False

        def swap(self, name: str, old: bytes, new: bytes) -> bool:
            return super().swap(name, old, new) and False

    with Lease(Forgetful(tmp_path), "refavs-second", beat_s=0.02, expires_s=0.1) as held:
        time.sleep(0.3)
        held.check()
    assert not (tmp_path / NAME).exists()


def test_disk_that_is_away_for_a_moment_is_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with lease(tmp_path) as held:
        with monkeypatch.context() as broken:
            broken.setattr(LocalFolder, "swap", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(OSError, match="No space"):
                while True:  # it asks the disk once half the time to its end is over
                    held.check()
                    time.sleep(BEAT_S)
        held.check()


def test_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="without hard links or locks"), lease(tmp_path):
        pass

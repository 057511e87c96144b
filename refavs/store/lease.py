"""The lease of a store: only one process at a time plans and finishes it, and a dead process does not block the next.

The file `lease.json` names its owner, which renews it every few seconds by incrementing its beat. Clocks of different
machines are never compared: a waiting process watches the beat with its own monotonic clock, so a wrong or changed
clock has no effect. A lease is taken over at once if its owner ran on this machine and has ended, otherwise after the
beat has not changed for `expires_s`. An owner that was suspended for that long detects this in `check`.

This relies on `Folder.create` and `Folder.swap` succeeding for only one of several concurrent callers. On a local or
network disk they use a hard link (atomic on NFS too) and flock (which Linux forwards to an NFS server unless it is
mounted with `nolock` or `local_lock`; Lustre needs `-o flock`), and the next `open` sees a renamed file (NFS:
close-to-open). Object stores have conditional writes. A process can always be suspended between `check` and the write
that follows; it then writes a complete file of its plan, never a partial one.
"""

import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType

from refavs.errors import StoreError
from refavs.files.locks import NO_LOCKS
from refavs.store.backends.base import Folder
from refavs.store.format.schema import LEASE
from refavs.terminal.printing import warn

NAME = LEASE
BEAT_S = 4.0
EXPIRES_S = 60.0
_LOOKS_PER_BEAT = 4


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The owner of a lease, as recorded in its file.

    Attributes:
        token: random id of one lease.
        machine: boot and process namespace in which `pid` is valid; empty if the system does not say.
        started: start time of the process in ticks since boot, which tells apart processes with the same pid.
        beat: incremented at each renewal.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: int
    program: str
    beat: int

    def __str__(self) -> str:
        return f"{self.program} (process {self.pid} on {self.host})"

    def to_bytes(self) -> bytes:
        """Content of the lease file."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Owner | None":
        """Parses a lease file; None if it is not one."""
        try:
            facts = json.loads(data)
            kinds = {name: type(value) for name, value in facts.items()}
        except (ValueError, AttributeError, RecursionError):
            return None
        return cls(**facts) if kinds == cls.__annotations__ and 0 < facts["pid"] < 2**31 else None

    def gone(self) -> bool:
        """Whether it ran on this machine and has ended; False if that is unknown."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # a process of another user, possibly the owner
        try:
            return _started(self.pid) != self.started
        except OSError:
            return False  # it has just ended, or the system hides it (hidepid)


class Lease:
    """Holds a store for this process; use it as a context manager.

    Args:
        folder: the store; created if it does not exist.
        program: name of the command, shown to waiting processes.
        beat_s: seconds between renewals.
        expires_s: seconds without a renewal after which another process may take over the lease.
    """

    def __init__(self, folder: Folder, program: str, *, beat_s: float = BEAT_S, expires_s: float = EXPIRES_S) -> None:
        self._folder, self._beat_s, self._expires_s = folder, beat_s, expires_s
        self._me = Owner(
            token=secrets.token_hex(16), host=socket.gethostname(), machine=_machine(), pid=os.getpid(),
            started=_started(os.getpid()) if _machine() else 0, program=program, beat=0,
        )  # fmt: skip
        self._data = self._me.to_bytes()
        self._lost = ""
        self._renewed = 0.0
        self._mutex = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        """Takes the lease; waits if it is unknown whether the owner is alive.

        Raises:
            StoreError: another process holds it, or the file system does not support leases.
        """
        try:
            self._acquire()
        except OSError as error:
            if error.errno in NO_LOCKS:
                raise StoreError(
                    f"{self._folder.location} is on a file system without hard links or locks ({error.strerror}), "
                    "needed to exclude a second writer; mount it with them (Lustre: -o flock) or name another store"
                ) from error
            raise
        self._renewed = _now()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self.check()
            self._folder.remove(NAME)
        except (OSError, StoreError):
            return  # another's, or out of reach: it will expire, and the error that ended the work is more important

    def check(self) -> None:
        """Checks that this process still owns the lease; call it before planning or finishing anything.

        Raises:
            StoreError: another process has taken it over.
        """
        with self._mutex:
            if not self._lost:
                # After a long suspension, renew first, so that no other process takes over in the meantime.
                stale = _now() - self._renewed > self._expires_s / 2
                if stale:
                    self._renew()
                else:
                    self._is_mine(self._read())
            if self._lost:
                raise StoreError(
                    f"{self._folder.location} is no longer held by this {self._me.program}: {self._lost} while this "
                    f"process was stopped or cut off for more than {self._expires_s:g} s; what it committed is kept; "
                    "run the same command again when the other one has ended"
                )

    def _acquire(self) -> None:
        look_s = self._beat_s / _LOOKS_PER_BEAT
        watched: bytes | None = None
        watched_s, last, told = 0.0, time.monotonic(), False
        while not self._created():
            found = self._read()
            owner = Owner.from_bytes(found or b"")
            now = time.monotonic()
            # Time during which this process itself was suspended does not count.
            watched_s, last = watched_s + min(now - last, 2 * look_s), now
            if owner is not None and owner.token == self._me.token:
                return  # the write succeeded although its answer was lost
            if found is not None and found != watched:
                if watched is not None and _token(found) == _token(watched):
                    raise StoreError(
                        f"{self._folder.location} is being written by {owner or 'another process'}, which is alive; "
                        "wait for its end, stop it or name another store"
                    )
                watched, watched_s, told = found, 0.0, False
            gone = owner is not None and owner.gone()
            free = gone or watched_s >= self._expires_s
            if found is not None and free and self._swapped(found, self._data):
                why = "no longer runs" if gone else f"gave no sign of life for {self._expires_s:g} s"
                self._tell(f"took over {self._folder.location} from {owner or 'an unknown process'}, which {why}")
                return
            if not told and watched_s > 2 * self._beat_s:  # a live owner would have been detected by now
                told = True
                self._tell(f"{self._folder.location} is held by {owner or 'an unknown process'}; waiting for a sign "
                           f"of life, at most {self._expires_s:g} s")  # fmt: skip
            time.sleep(look_s)

    def _keep(self) -> None:
        while not self._lost and not self._stop.wait(self._beat_s):
            with self._mutex:
                try:
                    self._renew()
                except OSError:
                    continue  # the disk or network may come back; otherwise `check` reports the same error

    def _renew(self) -> None:
        for _ in range(2):
            # An earlier renewal whose answer was lost counts: `_is_mine` then set `_data` to it.
            began = _now()
            owner = Owner.from_bytes(self._data)
            assert owner is not None
            new = replace(owner, beat=owner.beat + 1).to_bytes()
            if self._swapped(self._data, new):
                self._data, self._renewed = new, began
                return
            if not self._is_mine(self._read()):
                return

    def _is_mine(self, found: bytes | None) -> bool:
        """Whether the file still names this lease; if not, records the new owner."""
        if found is not None and _token(found) == self._me.token:
            self._data = found
            return True
        self._lost = f"{NAME} was removed" if found is None else f"{Owner.from_bytes(found) or 'somebody'} took it over"
        return False

    def _created(self) -> bool:
        try:
            return self._folder.create(NAME, self._data)
        except FileNotFoundError:  # the owner's sweep removed our temporary file
            return False

    def _swapped(self, old: bytes, new: bytes) -> bool:
        try:
            return self._folder.swap(NAME, old, new)
        except FileNotFoundError:
            return False

    def _read(self) -> bytes | None:
        try:
            return self._folder.read(NAME)
        except FileNotFoundError:
            return None

    def _tell(self, text: str) -> None:
        warn(f"{self._me.program}: {text}")


def writer_of(folder: Folder) -> str:
    """The other process that holds the store, unless it has ended; empty if there is none."""
    try:
        found = folder.read(NAME)
    except OSError:
        return ""
    owner = Owner.from_bytes(found)
    if owner is None:
        return ""
    here = (owner.machine, owner.pid) == (_machine(), os.getpid())
    return "" if here or owner.gone() else str(owner)


def _token(data: bytes) -> str:
    owner = Owner.from_bytes(data)
    return owner.token if owner else ""


def _now() -> float:
    """Monotonic seconds, including time asleep if the system counts it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _machine() -> str:
    """Identifies the scope in which process ids are unique: the boot and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int:
    """Start time of process `pid` in ticks since boot; -1 if it is a zombie."""
    facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    remains = facts[0] in "ZX" and len(os.listdir(f"/proc/{pid}/task")) < 2
    return -1 if remains else int(facts[19])

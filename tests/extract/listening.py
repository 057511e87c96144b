"""The addresses on which a process and its children listen, according to the kernel."""

import ipaddress
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"


def listening(pid: int) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Address and port of each socket that takes connections from a network."""
    sockets = {name for one in with_children(pid) for name in _sockets(one)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and fields[9] in sockets:
                place, port = fields[1].split(":")
                found.append((_address(bytes.fromhex(place)), int(port, 16)))
    return found


def _address(words: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The kernel writes words of four bytes in the processor's order."""
    packed = b"".join(words[start : start + 4][::-1] for start in range(0, len(words), 4))
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address


def with_children(pid: int) -> Iterator[int]:
    """A process and all that it started."""
    yield pid
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text().split():
                yield from with_children(int(child))


def _sockets(pid: int) -> Iterator[str]:
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            if (target := os.readlink(file)).startswith("socket:["):
                yield target[len("socket:[") : -1]

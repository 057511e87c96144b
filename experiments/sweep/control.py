"""Requests from another terminal to a running sweep: files in its folder `control/`, which the driver answers.

`refavs-sweep cancel`, `hold`, `resume` and `add` write a request; the driver looks for one a few times a second.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from experiments.records.record_types import read_record, write_json
from refavs.errors import ConfigError

FOLDER, ADDED = "control", "added"
REQUEST, ANSWER = ".request.json", ".answer.json"
INTERVAL_S = 0.3
Action = Literal["cancel", "hold", "resume", "add"]


class Request(TypedDict):
    """A request; `keys` are beginnings of trials' keys, `grid` is the name of a folder in `control/added`."""

    action: Action
    keys: list[str]
    now: bool
    grid: str
    set: list[str]


class Answer(TypedDict):
    """An answer of the driver."""

    ok: bool
    told: str


@dataclass(frozen=True)
class Received:
    """A request that the driver has read."""

    content: Request
    answer: Path

    def reply(self, told: str, ok: bool = True) -> None:
        """Answers the request."""
        with contextlib.suppress(OSError):  # e.g. a full disk; the request itself was carried out
            write_json(self.answer, {"ok": ok, "told": told})


class Inbox:
    """The requests to one call of a sweep. Requests to an earlier call are removed."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._looked = 0.0
        for path in self.folder.glob(f"*{REQUEST}"):
            path.unlink(missing_ok=True)

    def take(self, at_once: bool = False) -> Iterator[Received]:
        """Yields new requests, oldest first; looks at most every `INTERVAL_S`, unless `at_once`."""
        if not at_once and time.monotonic() - self._looked < INTERVAL_S:
            return
        self._looked = time.monotonic()
        for path in sorted(self.folder.glob(f"*{REQUEST}")):
            answer = path.with_name(path.name.removesuffix(REQUEST) + ANSWER)
            try:
                content = read_record(path, Request)
            except ConfigError as error:
                Received({"action": "hold", "keys": [], "now": False, "grid": "", "set": []}, answer).reply(
                    str(error), ok=False)  # fmt: skip
                content = None
            path.unlink(missing_ok=True)
            if content is not None:
                yield Received(content, answer)


def ask(root: Path, wait_s: float, **request: object) -> Answer | None:
    """Sends a request to the driver of a sweep; None if it has not answered in time.

    Args:
        request: the fields of `Request` that are not empty.
    """
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
    answer = folder / f"{name}{ANSWER}"
    write_json(folder / f"{name}{REQUEST}", {"keys": [], "now": False, "grid": "", "set": [], **request})
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        if (found := read_record(answer, Answer)) is not None:
            answer.unlink(missing_ok=True)
            return {"ok": found["ok"], "told": found["told"]}
        time.sleep(0.1)
    return None


def keep_grid(root: Path, name: str, text: str) -> str:
    """Keeps the text of a grid in the sweep's folder, so that a later call has it; returns the name of its folder."""
    folder = root / FOLDER / ADDED / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    (folder / f"{name}.yaml").write_text(text)
    return folder.name


def kept_grid(root: Path, name: str) -> Path:
    """The file of a kept grid.

    Raises:
        ConfigError: there is none.
    """
    found = list((root / FOLDER / ADDED / name).glob("*.yaml")) if name.isalnum() else []
    if len(found) != 1:
        raise ConfigError(f"{root / FOLDER / ADDED} has no grid {name!r}; add it again with refavs-sweep add")
    return found[0]


def drop_grid(root: Path, name: str) -> None:
    """Removes a grid that the driver has refused."""
    if name.isalnum():
        shutil.rmtree(root / FOLDER / ADDED / name, ignore_errors=True)

"""Shapes of the JSON files in a sweep's folder; a file of another shape is refused."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from refavs.choices import Role
from refavs.errors import ConfigError
from refavs.files.atomic import write_atomically
from refavs.files.plain_file import UnusableFileError, read_plain
from refavs.files.typed_json import Count, Measured, OddRecord, read_json, shaped

MOST_METRICS_BYTES = 2**26
STOP_FILE = ".stop"  # in a trial's folder or its sweep's: trials end after the epoch they are in
Values = dict[str, Measured | None]


class StoreFacts(TypedDict, total=False):
    """Facts about a store that a sweep records."""

    name: str
    store: str
    fingerprint: str
    random_features: bool
    encoders: dict[str, str]
    splits: dict[str, Role]


class StoreOfSeveral(StoreFacts):
    """One store of a sweep over several."""

    contents: str


class AddedGrid(TypedDict):
    """A grid that `refavs-sweep add` has added."""

    grid: str
    set: list[str]


class SweepFacts(StoreFacts, total=False):
    """`sweep.json`."""

    id: str
    grid: str
    run_id: str
    run_ids: dict[str, str]
    tracking_uri: str
    stores: dict[str, StoreOfSeveral]
    defaults: dict[str, Any]
    git: dict[str, str] | None
    place: dict[str, Any]  # `experiments.tracking.place.place_of`
    current: list[str] | None
    to_come: Count
    registered: dict[str, list[Any]]
    added: list[AddedGrid]
    held: bool


_Epochs = TypedDict("_Epochs", {"train.epochs": Annotated[int, range(2**31)]})


class WorkerSettings(TypedDict):
    """The part of `config.json` that a trial's process reads."""

    config: dict[str, Any]
    store: str  # the fingerprint
    weights_dir: NotRequired[str | None]
    store_location: NotRequired[str]


class Settings(WorkerSettings):
    """`config.json` of a trial."""

    key: str
    name: str
    seed: int
    digests: NotRequired[dict[str, str]]


class ShownSettings(TypedDict):
    """The part of `config.json` that a table of trials shows."""

    name: str
    seed: int
    config: _Epochs


class Status(TypedDict):
    """`status.json` of a trial."""

    state: Literal["new", "running", "finished", "failed", "stopped", "pruned"]
    time_s: NotRequired[float]
    started_s: NotRequired[float]
    seconds: NotRequired[float]
    reason: NotRequired[str]
    passed: NotRequired[int]
    given_up: NotRequired[str]


class Sent(TypedDict, total=False):
    """`mlflow.json` of a trial."""

    attempt: Count
    uri: str
    run_id: str
    epochs: Count
    time_s: float | None
    time_ms: float


class Epoch(TypedDict):
    """A line of `metrics.jsonl`, and `result.json`."""

    epoch: Count
    metrics: dict[str, Measured]
    seconds: NotRequired[float]
    time_ms: NotRequired[float]
    usage: NotRequired[list[dict[str, float]]]


class Controls(TypedDict):
    """`controls.json`: metrics of the constant predictions, by protocol, prediction, group and measure."""

    store: str
    metrics: NotRequired[list[str]]
    controls: NotRequired[dict[str, Values]]
    protocols: NotRequired[dict[str, dict[str, dict[str, Values]]]]


def write_json(path: Path, value: Any, mode: int = 0o644) -> None:
    """Writes `value` as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode(), mode)


def read_record(path: Path, kind: Any = dict[str, Any]) -> Any | None:
    """Reads JSON of the shape `kind`; None if the file is absent.

    Raises:
        ConfigError: the file is not JSON, or has another shape.
    """
    try:
        return shaped(read_json(read_plain(path)), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OddRecord, UnusableFileError) as error:
        raise _refused(path, str(error)) from error


def read_lines(path: Path, kind: Any) -> list[Any]:
    """Reads JSON lines of the shape `kind`; none if the file is absent.

    Raises:
        ConfigError: see `read_record`.
    """
    found: list[Any] = []
    try:
        for line in read_plain(path, MOST_METRICS_BYTES).splitlines():
            found.append(shaped(read_json(line), kind))
    except FileNotFoundError:
        return []
    except UnusableFileError as error:
        raise _refused(path, str(error)) from error
    except OddRecord as error:
        raise _refused(path, f"line {len(found) + 1}: {error}") from error
    return found


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} is not JSON of a sweep ({why}); remove it and run the same command again")

"""The JSON files of a sweep's folder, read without trust: each has the shape that is declared here, or is refused."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from refavs.choices import Role
from refavs.errors import ConfigError
from refavs.files.plain_file import UnusableFileError, read_plain
from refavs.files.typed_json import Count, Measured, OddRecord, read_json, shaped

MOST_METRICS_BYTES = 2**26
Values = dict[str, Measured | None]


class StoreFacts(TypedDict, total=False):
    """What a sweep notes of a store."""

    name: str
    store: str
    fingerprint: str
    random_features: bool
    encoders: dict[str, str]
    splits: dict[str, Role]


class StoreOfSeveral(StoreFacts):
    """One of a sweep over several stores."""

    contents: str


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
    place: dict[str, Any]  # `experiments.sweep.place.place_of`
    current: list[str] | None
    to_come: Count
    registered: dict[str, list[Any]]


_Epochs = TypedDict("_Epochs", {"train.epochs": Annotated[int, range(2**31)]})


class WorkerSettings(TypedDict):
    """What of `config.json` a trial's process reads."""

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
    """What of `config.json` a table of trials shows."""

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


class Controls(TypedDict):
    """`controls.json`: of the constant predictions, values by protocol, prediction, group and measure."""

    store: str
    controls: NotRequired[dict[str, Values]]
    protocols: NotRequired[dict[str, dict[str, dict[str, Values]]]]


def read_record(path: Path, kind: Any) -> Any | None:
    """The value in `path`, of the shape `kind`; None where the file is absent.

    Raises:
        ConfigError: a file of another shape, or one that is not JSON.
    """
    try:
        return shaped(read_json(read_plain(path)), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OddRecord, UnusableFileError) as error:
        raise _refused(path, str(error)) from error


def read_lines(path: Path, kind: Any) -> list[Any]:
    """The value in each line of `path`, of the shape `kind`; none where the file is absent.

    Raises:
        ConfigError: as for `read_record`.
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

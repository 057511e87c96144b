"""Shared fixtures; types and shapes written in annotations of `refavs` are checked at run time in every test.

A test that starts a process is marked `process` or `ray`, as is one whose fixtures do; any other that tries fails. So
`make check` can leave out what is marked, and nobody has to keep the marks up to date.
"""

import gc
import multiprocessing.util
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, wraps
from pathlib import Path
from typing import Any

# Before torch is imported: two processes of tests with two threads each wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For every Ray that a test starts. It would give its workers what the rest of a busy machine leaves, and search for
# accelerators and report its use.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest

from tests.checked_types import check_types

check_types("refavs")
# A developer's own MLflow gets nothing from a test.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_TAGS"):
    os.environ.pop(_name, None)

SHARED = Path(__file__).resolve().parents[2] / "shared"
PATIENCE_S = 600
WEIGHTS = {"ray": 200, "process": 60, "long": 30}  # of a test, by its mark; 1 without one
MAY_START = ("process", "ray", "slow", "faults")
HELPERS = ("git", "lscpu", "uname")  # asked for a line by what is tested and by libraries
SPAWN = "multiprocessing.spawn"  # of our own: Python tells no hook of it
STARTS = frozenset(
    [SPAWN, "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.exec", "os.system"]
)


class _Guard:
    """Refuses new processes while a test runs that may not start any, and remembers what was tried."""

    def __init__(self) -> None:
        self.active, self.tried = False, list[str]()
        sys.addaudithook(self._hook)
        spawn = multiprocessing.util.spawnv_passfds

        def told(path: bytes, *arguments: Any) -> int:
            sys.audit(SPAWN, path)
            return spawn(path, *arguments)

        multiprocessing.util.spawnv_passfds = told

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.active and event in STARTS and not (event == "subprocess.Popen" and arguments[0] in HELPERS):
            self.tried.append(f"{event}{arguments[:2]!r}"[:200])
            raise RuntimeError(f"a test without the mark 'process' starts one: {self.tried[-1]}")


_guard = _Guard()


@cache
def _make_ray_patient() -> None:
    """Ray gives a node that a test starts 30 s to come up, a number in its code that a busy machine exceeds."""
    from ray._private import services

    get_node = services.get_node

    def patient(*arguments: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = patient


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[object]:
    """What the imports make stays: the garbage collector would look through it again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest, as their marks tell, come first: at the end, each process has something short to do."""
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += next((number for mark, number in WEIGHTS.items() if item.get_closest_marker(mark)), 1)
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Lets the test and its fixtures start processes where a mark says that they do."""
    _guard.active, _guard.tried = not any(map(item.get_closest_marker, MAY_START)), []
    if item.get_closest_marker("ray"):
        _make_ray_patient()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test whose code has swallowed the refusal."""
    result = yield
    if _guard.tried:
        pytest.fail(f"mark this test 'process', for it starts {'; '.join(_guard.tried)}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """What a fixture of a wider scope starts at its end is not the test's."""
    _guard.active = False
    return (yield)


@pytest.fixture
def shared() -> Path:
    """The folder with the benchmark's metadata and the golden metrics, which the repository does not carry."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: the real metadata and golden values are not part of the repository")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Not even a killed process or a full disk loses what fsync guards, and it takes much of the time of a small store.

    No test loses power.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and the commands that they start keep out of the user's cache."""
    os.environ["REFAVS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def one_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow takes seconds to make a database; tests get copies of one that all their processes share."""
    from experiments.tracking import database as module

    base = tmp_path_factory.getbasetemp()
    template = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mlflow.db"
    create = module._create

    @wraps(create)
    def copied(uri: str, database: Path) -> None:
        if not template.exists():
            mine = base / "new.db"
            create(f"sqlite:///{mine}", mine)
            mine.rename(template)
        shutil.copyfile(template, database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_create", copied)
        yield


@pytest.fixture(scope="session", autouse=True)
def packages_read_once() -> Iterator[None]:
    """Which packages are installed changes with the path alone; to look through them all takes much of a command."""
    from refavs import plugins

    find = plugins.entry_points

    @cache
    def on(path: tuple[str, ...], group: str) -> Any:
        return find(group=group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda group: on(tuple(sys.path), group))
        yield


@pytest.fixture(scope="module")
def small_networks() -> Iterator[None]:
    """A few weights in the place of VGGish's 72 million, and the tiny Swin built once: most of a short extraction.

    For tests that extract in this process and look at nothing that the network finds.
    """
    from tests.support.quick_networks import built_once, few_weights

    with pytest.MonkeyPatch.context() as patch:
        few_weights(patch)
        built_once(patch)
        yield


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs packages, each with one metric: its name, the package's, and where the object is."""
    from refavs.metrics import metrics

    def installed(*found: tuple[str, str, str]) -> None:
        for name, package, place in found:
            folder = tmp_path / "site" / f"{package}-1.0.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
            (folder / "entry_points.txt").write_text(f"[refavs.metrics]\n{name} = {place}\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
        metrics.cache_clear()

    yield installed
    monkeypatch.undo()
    metrics.cache_clear()

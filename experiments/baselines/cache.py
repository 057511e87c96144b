"""The constant predictions of a sweep: computed while its trials run, and only once for all sweeps on the same masks.

They are read from the sweep's folder, where the report finds them, or from the user's cache under the hash of their
inputs, or else computed.
"""

import contextlib
import inspect
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from experiments.baselines import compute as constant_baselines
from experiments.baselines.compute import Computation, control_results_of
from experiments.records.record_types import Controls, write_json
from experiments.records.stores import contents_rows
from refavs.config import digest, file_stamp
from refavs.data.splits import Splits
from refavs.files.plain_file import read_plain
from refavs.files.typed_json import OddRecord, shaped
from refavs.files.typed_json import read_json as parsed
from refavs.files.user_cache import user_cache
from refavs.metrics import groups, metrics
from refavs.store import FeatureStore
from refavs.terminal.console import ProgressBar

FILE = "controls.json"
LOOK_S = 0.2
QUIET_S = 1.0  # no progress bar for shorter waits
Values = dict[str, dict[str, float]]


class Baselines:
    """The constant predictions on a sweep's store; the context manager starts and ends the computation.

    Args:
        out: the sweep's folder.
    """

    def __init__(self, out: Path, store: FeatureStore) -> None:
        self.path, self.store, self.progress = out / FILE, store, Computation()

    def __enter__(self) -> "Baselines":
        # The driver handles Ctrl-C; the processes started by this thread inherit the blocked signal.
        self._pool = ThreadPoolExecutor(1, "baselines", signal.pthread_sigmask, (signal.SIG_BLOCK, {signal.SIGINT}))
        self._found: Future[Values] = self._pool.submit(self._find)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop.set()
        self._pool.shutdown()

    @property
    def there(self) -> bool:
        """Whether they are already known."""
        return self._found.done() and self._found.exception() is None

    def values(self, give_up: Callable[[], bool] = lambda: False) -> Values:
        """Waits for the metrics, as fractions by prediction and metric; returns none if `give_up` returns True.

        Raises:
            RefAVSError: masks are damaged or cannot be accessed.
        """
        with contextlib.ExitStack() as shown:
            bar: ProgressBar | None = None
            wait([self._found], QUIET_S * (not give_up()))
            while not self._found.done():
                if give_up():
                    return {}
                if bar is None and self.progress.total:
                    bar = shown.enter_context(ProgressBar("constant predictions", self.progress.total, "masks"))
                if bar is not None:
                    bar.advance(self.progress.done - bar.done)
                wait([self._found], LOOK_S)
            return self._found.result()

    def _find(self) -> Values:
        known, made_of = _read(self.path), {"store": self.store.fingerprint, "metrics": list(metrics())}
        if known is None or any(known.get(name) != value for name, value in made_of.items()):
            known = {**made_of, **self._cached()}
            write_json(self.path, known)
        return known["controls"]

    def _cached(self) -> dict[str, Any]:
        folder, key = user_cache(), cache_key(self.store)
        place = None if folder is None else folder / "constant_baselines" / f"{key}.json"
        known = None if place is None else _read_sealed(place, key)
        if known is not None:
            return known
        results = control_results_of(self.store, self.progress)
        splits = Splits.of(self.store.attributes)
        known = {
            "controls": groups.canonical_values(results, splits), "protocols": groups.control_values(results, splits)
        }  # fmt: skip
        if place is not None:
            with contextlib.suppress(OSError):  # a full or read-only home folder only disables the cache
                write_json(place, {"seal": _seal(key, known), "values": known})
        return known


def cache_key(store: FeatureStore) -> str:
    """Hash of all inputs of the constant predictions: expressions, splits and masks in order, and the code."""
    of_metrics = {inspect.getfile(inspect.unwrap(metric.per_expression)) for metric in metrics().values()}
    code = {*map(inspect.getfile, (constant_baselines, Splits)), *of_metrics}
    code |= {*map(str, Path(groups.__file__).parent.glob("*.py"))}
    return digest({
        "code": file_stamp(*map(Path, sorted(code))), "metrics": list(metrics()),
        "torch": torch.__version__, "numpy": np.__version__,
        "frames": len(store.steps), "size": store.mask_size, "rows": contents_rows(store),
        "objects": store.expressions["object"].tolist(), "clips": store.expressions["clip"].tolist(),
        "splits": dict(Splits.of(store.attributes).roles),
    })  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    """Reads constant predictions from a file; None if it is missing, damaged or has an older form."""
    try:
        known = shaped(parsed(read_plain(path)), Controls)
    except (OSError, OddRecord):
        return None
    return known if {"controls", "protocols"} <= set(known) else None


def _read_sealed(path: Path, key: str) -> dict[str, Any] | None:
    """As `_read`, for a file with a hash of its content."""
    try:
        known = parsed(read_plain(path))
        return known["values"] if known["seal"] == _seal(key, known["values"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(key: str, values: dict[str, Any]) -> str:
    return digest([key, values])

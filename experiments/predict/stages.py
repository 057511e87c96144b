"""Counts the time that each stage of a prediction takes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Stages:
    """Wall time in seconds by the name of a stage, in the thread that computes."""

    def __init__(self) -> None:
        self.wall_s: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Counts the time of the block inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wall_s[name] += time.perf_counter() - started

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items; counts the time spent waiting for each."""
        coming = iter(items)
        while True:
            with self(name):
                item = next(coming, None)
            if item is None:
                return
            yield item

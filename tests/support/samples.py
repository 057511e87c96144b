"""Cases that `make test` leaves to `make test-slow`."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], quick: Callable[[Any], bool]) -> list[Any]:
    """All cases; `make test` tries those that are `quick`, which stand for the others."""
    return [case if quick(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases]

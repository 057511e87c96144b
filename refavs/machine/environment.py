"""Environment variables for a limited time."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment_of(variables: Mapping[str, str], override: bool = False) -> Iterator[None]:
    """Sets environment variables, and restores them afterwards.

    Args:
        override: also replace those that the user has set.
    """
    before = {name: os.environ.get(name) for name in variables if override or name not in os.environ}
    os.environ.update({name: variables[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})

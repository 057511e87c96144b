"""What several heads work out alike from the same batch, worked out once."""

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Value = TypeVar("Value")


class Once:
    """Keeps values that no parameter of a head enters, for the other heads that read the same batch.

    Args:
        keep: False for a single head, which works out everything anew and keeps no memory occupied.
    """

    def __init__(self, keep: bool = False) -> None:
        self._known: dict[Hashable, object] | None = {} if keep else None

    def __call__(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, which is made where it is not there yet. The key names all that the value depends on."""
        if self._known is None:
            return make()
        if key not in self._known:
            self._known[key] = make()
        return cast(Value, self._known[key])

    def of(self, part: Hashable) -> "Once":
        """The values that belong to a part of the batch."""
        return self if self._known is None else self(("part", part), lambda: Once(keep=True))

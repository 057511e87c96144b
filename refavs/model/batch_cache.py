"""Per-batch cache for results that several heads share."""

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

Value = TypeVar("Value")


class Once:
    """Caches values that depend on no head's parameters, for the other heads that read the same batch.

    Args:
        keep: False for a single head, which shares nothing and so should not occupy memory.
    """

    def __init__(self, keep: bool = False) -> None:
        self._known: dict[Hashable, object] | None = {} if keep else None

    def __call__(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Returns the value of `key`, computed by `make` on first use. The key names all that the value depends on."""
        if self._known is None:
            return make()
        if key not in self._known:
            self._known[key] = make()
        return cast(Value, self._known[key])

    def of(self, part: Hashable) -> "Once":
        """The cache for a part of the batch."""
        return self if self._known is None else self(("part", part), lambda: Once(keep=True))

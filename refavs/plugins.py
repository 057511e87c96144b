"""Tables of parts that are chosen by name: the built-in ones, and those that installed packages add by entry points."""

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from refavs.errors import ConfigError
from refavs.terminal.printing import warn

Part = TypeVar("Part")
OURS = "refavs"


def with_plugins(group: str, built_in: Mapping[str, Part], accepted: Callable[[str, Any], Part]) -> dict[str, Part]:
    """The built-in parts by name, then the plug-ins by theirs in alphabetical order.

    A plug-in that fails on import, or that is refused, is named in a warning and left out.

    Args:
        group: of the entry points, e.g. `refavs.metrics`; the name of an entry point is the name of the part.
        accepted: returns the part for a name and the object that its entry point refers to; raises if it is none.

    Raises:
        ConfigError: two packages have a part of one name; names both.
    """
    parts, owners = dict(built_in), dict.fromkeys(built_in, OURS)
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, _owner(point))):
        if point.name in owners:
            raise ConfigError(f"{owners[point.name]} and {_owner(point)} both have {point.name!r} under {group}; "
                              "uninstall one of them, or rename its entry point")
        owners[point.name] = _owner(point)
        try:
            parts[point.name] = accepted(point.name, point.load())
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            warn(f"refavs: the plug-in {point.name!r} of {_owner(point)} under {group} is left out ({reason})")
    return parts


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value

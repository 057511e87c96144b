"""Lookup by name of built-in entries and of those that installed packages add through an entry-point group."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.terminal.printing import warn


def entries_of(group: str, built_in: Mapping[str, str]) -> dict[str, EntryPoint]:
    """All entries of a group by name, without importing them.

    Args:
        group: e.g. `refavs.layouts`.
        built_in: the built-in entries, as `package.module:Name`.

    Raises:
        ConfigError: two entries have the same name; the message names both distributions.
    """
    found: dict[str, EntryPoint] = {}
    for entry in (*(EntryPoint(name, value, group) for name, value in built_in.items()), *entry_points(group=group)):
        other = found.setdefault(entry.name, entry)
        if other is not entry and (other.value, origin_of(other)) != (entry.value, origin_of(entry)):
            raise ConfigError(f"two packages add {entry.name!r} to {group}: {origin_of(other)} ({other.value}) and "
                              f"{origin_of(entry)} ({entry.value}); uninstall one of them")
    return found


def origin_of(entry: Any) -> str:  # the backport importlib_metadata has its own class of entries
    """Name of the distribution that adds an entry."""
    return entry.dist.name if entry.dist is not None else "refavs"


def entry_named(name: str, group: str, built_in: Mapping[str, str]) -> Any:
    """Imports the entry of that name.

    Raises:
        ConfigError: the name is unknown, its import fails, or as for `entries_of`.
    """
    entries = entries_of(group, built_in)
    if name not in entries:
        raise ConfigError(f"{group} has no {name!r}; {nearest(name, entries)}")
    try:
        return entries[name].load()
    except Exception as error:
        raise ConfigError(_failed(entries[name], error)) from error


def all_entries(group: str, built_in: Mapping[str, str]) -> dict[str, Any]:
    """Imports all entries of a group; warns about each one that fails and returns the others.

    Raises:
        ConfigError: as for `entries_of`.
    """
    found = {}
    for name, entry in entries_of(group, built_in).items():
        try:
            found[name] = entry.load()
        except Exception as error:
            warn(_failed(entry, error))
    return found


def _failed(entry: Any, error: Exception) -> str:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return (f"{entry.name!r} of {entry.group} cannot be imported from {entry.value} ({reason}); repair or uninstall "
            f"the package {origin_of(entry)}")

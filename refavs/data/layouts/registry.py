"""The layouts by name: the built-in ones and those of installed packages (entry-point group `refavs.layouts`)."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refavs.choices import LAYOUTS
from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.errors import ConfigError, DatasetError
from refavs.files.path_text import path_of
from refavs.plugins import all_entries, entry_named

GROUP = "refavs.layouts"
FALLBACK = "videos"  # used only if no other layout matches, because many layouts contain videos


def read_source(
    path: str | os.PathLike[str], expressions: str | os.PathLike[str] | None = None, layout: str | None = None
) -> Source:
    """Reads a folder with the named layout, or with the one that recognises it.

    Args:
        expressions: a CSV of expressions, for layouts that contain none.

    Raises:
        DatasetError: `path` is not a folder, no layout recognises it, or it cannot be read.
        ConfigError: the layout is unknown, several layouts recognise the folder, or two packages use the same name.
    """
    root = Path(path).absolute()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"{root} {found}; accepted: {_accepted(_all())}.")
    name, chosen = (layout, entry_named(layout, GROUP, LAYOUTS)()) if layout else _detected(root)
    return replace(chosen.read(root, None if expressions is None else Path(expressions)), layout=name)


def find_clip(store: Mapping[str, Any], clip_id: str) -> Clip | None:
    """Finds a stored clip's media, if it is still in the folder it was extracted from.

    Args:
        store: a store's root attributes.
        clip_id: not trusted: no file outside of the source folder is read.
    """
    told = store.get("extraction", {})
    root, layout = path_of(str(told.get("source") or "")), told.get("layout")
    if not told.get("source") or not os.path.isdir(root):
        return None
    try:
        chosen = entry_named(str(layout), GROUP, LAYOUTS)() if layout else _detected(root)[1]
        return chosen.clip(root, clip_id)
    except (ConfigError, DatasetError):
        return None


def _all() -> dict[str, Layout]:
    return {name: layout() for name, layout in all_entries(GROUP, LAYOUTS).items()}


def _detected(root: Path) -> tuple[str, Layout]:
    layouts = _all()
    fallback = {FALLBACK: layouts.pop(FALLBACK)}
    found = {name: one for name, one in layouts.items() if one.detect(root)}
    found = found or {name: one for name, one in fallback.items() if one.detect(root)}
    if not found:
        raise DatasetError(f"{root} matches no known layout; accepted: {_accepted({**layouts, **fallback})}.")
    if len(found) > 1:
        raise ConfigError(f"{root} matches the layouts {' and '.join(sorted(found))}; choose one with --layout NAME")
    return next(iter(found.items()))


def _accepted(layouts: Mapping[str, Layout]) -> str:
    return " or ".join(f"{layout.accepts} [{name}]" for name, layout in layouts.items())

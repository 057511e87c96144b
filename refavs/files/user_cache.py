"""The user's folder for what can be computed again."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """The folder that REFAVS_CACHE names, else `refavs` in the user's cache folder; None for a user without a home."""
    if named := os.environ.get("REFAVS_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refavs"
    except RuntimeError:
        return None

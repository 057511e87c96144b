"""The user's cache folder."""

import os
from pathlib import Path


def user_cache() -> Path | None:
    """REFAVS_CACHE if set, else `refavs` in the user's cache folder; None for a user without a home folder."""
    if named := os.environ.get("REFAVS_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "refavs"
    except RuntimeError:
        return None

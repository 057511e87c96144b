"""The system's folder for temporary files."""

import tempfile
from pathlib import Path

from refavs.errors import ConfigError


def temporary_folder() -> Path:
    """TMPDIR, or where that is missing or full another one that can be written.

    Raises:
        ConfigError: there is none.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(f"no folder for temporary files can be written ({error.strerror}); free space, or name a "
                          "folder by TMPDIR") from error  # fmt: skip

"""The folder for temporary files."""

import tempfile
from pathlib import Path

from refavs.errors import ConfigError


def temporary_folder() -> Path:
    """TMPDIR, or the system's next writable folder for temporary files.

    Raises:
        ConfigError: no such folder can be written.
    """
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(f"no folder for temporary files can be written ({error.strerror}); free space, or set TMPDIR "
                          "to a folder that can") from error  # fmt: skip

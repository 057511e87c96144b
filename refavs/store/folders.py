"""Opens the folder of a store: a local one, a prefix of an object store, or a folder of a web server."""

import errno
from pathlib import Path

from refavs.store.backends.base import Folder, LocalFolder
from refavs.store.backends.disk_cache import cache_in_use
from refavs.store.backends.object_store import RemoteFolder
from refavs.store.backends.remote_errors import RemoteMissing
from refavs.store.format.commits import LISTING, read_listing


class WebFolder(RemoteFolder):
    """A folder of a web server or of a repository on the hub, which cannot list its files.

    Their names come from the list that a store keeps.
    """

    def names(self, under: str = "") -> list[str]:
        """Names of the commit records below the folder `under`, as written by `StoreWriter.finalise`."""
        if not self.exists(LISTING):
            raise RemoteMissing(errno.ENOENT, "there is no list of commit records, which a store behind a web server "
                                "needs and the end of an extraction writes", self.where(LISTING))  # fmt: skip
        return sorted(name for name in read_listing(self)["names"] if name.startswith(f"{under}/") or not under)


def open_folder(location: str | Path, *, cached: bool = False) -> Folder:
    """Opens the folder at a path or URL (`s3://bucket/prefix`, `gs://`, `http(s)://`, `hf://`,
    `memory://`).

    Args:
        cached: read the files of a remote folder through the cache that the environment names, if any.

    Raises:
        StoreError: the URL's scheme is unknown.
        ConfigError: the cache cannot be used.
    """
    if isinstance(location, str) and "://" in location:
        kind = WebFolder if location.startswith(("http://", "https://", "hf://")) else RemoteFolder
        return kind(location, cache_in_use() if cached else None)
    return LocalFolder(Path(location))

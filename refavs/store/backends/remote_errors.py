"""One-line error messages about a store's URL and a server's answer, without secrets."""

import errno
import os
import re
from urllib.parse import urlsplit

from obstore.exceptions import NotSupportedError, PermissionDeniedError, UnauthenticatedError

from refavs.errors import StoreError

SCHEMES = ("s3", "gs", "http", "https", "hf", "memory")
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket"

HUB_CREDENTIALS = "set HF_TOKEN to a token that may read the repository, or look for a mistake in its name"


def refuse_url(location: str) -> None:
    """Checks the form of a URL; the message leaves out any part that could be a secret.

    Raises:
        StoreError: `RemoteFolder` does not accept it.
    """
    parts = urlsplit(location)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    forms = ("accepted: a path, s3://bucket/prefix, gs://bucket/prefix, http(s)://host/path, "
             "hf://datasets/ORG/NAME[@REVISION]/path, memory://name")  # fmt: skip
    if "@" in parts.netloc:
        raise StoreError(f"the URL of store {shown} carries a user or password; give credentials by the environment "
                         "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
    if parts.scheme not in SCHEMES:
        raise StoreError(f"store {shown} has the scheme {parts.scheme!r}; {forms}")
    if parts.query or parts.fragment or "?" in location or "#" in location:
        raise StoreError(f"the URL of store {shown} has a query or a fragment; {forms}")
    if not parts.netloc or any(part in ("", ".", "..") for part in parts.path.strip("/").split("/")[1:]):
        raise StoreError(f"store {shown} names no bucket or host, or has an empty part, '.' or '..'; {forms}")


class RemoteError(StoreError, OSError):
    """A failure with a file on a server: an OSError with the URL that is also shown to users as a StoreError."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class RemoteMissing(RemoteError, FileNotFoundError):
    """The file or bucket does not exist."""


class RemoteRefused(RemoteError, PermissionError):
    """The server rejects the credentials."""


class RemoteUnreachable(RemoteError, ConnectionError):
    """The server cannot be reached, or closed the connection."""


class RemoteTimeout(RemoteError, TimeoutError):
    """The server does not answer."""


def os_error(error: Exception, url: str) -> RemoteError:
    """Translates an error of the library into a one-line error about `url`."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return RemoteError(error.errno, error.strerror, url)
    kind = re.search(r"kind: (Timeout|Connect|Request|Decode|Interrupted|Unknown)", text)
    status = re.search(r"non-2xx status code: (\d{3} [\w ]+)", text)
    code, message = (re.search(f"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    said = ": ".join(found[1].strip() for found in (status, code, message) if found)
    reason = said or text.split("\n")[0].rpartition(" - ")[2].removeprefix("Operation not supported: ")
    for name in SECRETS:
        reason = reason.replace(os.environ.get(name) or "\0", f"<{name}>")
    if "169.254.169.254" in text or isinstance(error, UnauthenticatedError):
        remedy = HUB_CREDENTIALS if url.startswith("hf://") else CREDENTIALS
        return RemoteRefused(errno.EACCES, f"no credentials were accepted ({reason}); {remedy}", url)
    if code and "Expired" in code[1]:
        return RemoteRefused(errno.EACCES, f"the credentials have expired ({reason}); renew them, then run the same "
                             "command again", url)  # fmt: skip
    if isinstance(error, PermissionDeniedError) or reason.startswith("403"):
        return RemoteRefused(errno.EACCES, f"the server refuses it ({reason})", url)
    if isinstance(error, FileNotFoundError) or reason.startswith("404"):
        return RemoteMissing(errno.ENOENT, f"there is none ({reason})" if said else "there is none", url)
    lacking = isinstance(error, NotImplementedError | NotSupportedError)
    if lacking or text.startswith("Operation not supported") or reason.startswith("501"):
        return RemoteError(errno.EOPNOTSUPP, f"the server does not support what a store needs ({reason})", url)
    if status and (status[1].startswith("5") or status[1].startswith("429")):
        return RemoteUnreachable(errno.EAGAIN, f"the server was busy or failed at every attempt ({reason}); run the "
                                 "same command again later", url)  # fmt: skip
    if kind and not status:
        kinds = {"Timeout": (RemoteTimeout, errno.ETIMEDOUT, "the server does not answer in time")}
        what, number, says = kinds.get(kind[1], (RemoteUnreachable, errno.ECONNRESET, "the connection failed"))
        return what(number, f"{says} ({reason}); look at the network and the endpoint", url)
    return RemoteError(errno.EIO, reason, url)

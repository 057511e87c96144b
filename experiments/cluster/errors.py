"""How the workers of a trial fail."""

from refavs.errors import RefAVSError


class WorkerDiedError(Exception):
    """The process or its node died by no error of the trial, which can be resumed."""


class WorkersError(RefAVSError):
    """A worker failed; the message is its reason."""

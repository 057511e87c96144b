"""Errors of the workers of a trial."""

from refavs.errors import RefAVSError


class WorkerDiedError(Exception):
    """The process or node died; the trial can be resumed."""


class WorkersError(RefAVSError):
    """A worker failed; the message is its reason."""

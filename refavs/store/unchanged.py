"""Checks that the store at a path is still the one that was opened there."""

import itertools

from refavs.errors import StoreError
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import OBJECTS, root_attributes
from refavs.store.reader import FeatureStore
from refavs.store.snapshot import read_snapshot

_REMEDY = "put the store back, or run the same command again with the store that is meant"


def refuse_exchanged(store: FeatureStore, fingerprint: str | None = None) -> None:
    """Checks that the store is the planned one, and that its location still contains what was opened.

    For an untouched finished store this reads only one file. Adding rows, streams or expressions, or dropping a stream
    that is not in use, is allowed.

    Args:
        fingerprint: fingerprint of the planned store; None accepts any.

    Raises:
        StoreError: another store was opened, its location now has another store or none, or it cannot be read.
    """
    if fingerprint is not None and store.fingerprint != fingerprint:
        raise StoreError(f"the store at {store.location} is {store.fingerprint}, this work was planned with "
                         f"{fingerprint}: it was replaced or added to since; {_REMEDY}")
    attributes = root_attributes(store.folder)
    if store.finished and attributes == store.attributes:
        return
    found = read_snapshot(store.folder)
    schema, now = found.schema, {record.file: record for record in found.records}
    same_sizes = (schema.steps, schema.mask_size) == (store.steps, store.mask_size)
    used = {OBJECTS, *itertools.chain(*store.in_use.values())}
    if not same_sizes or not all(_holds(now.get(old.file), old) for old in store.records if old.table in used):
        raise StoreError(f"the store at {store.location} is no longer the one that was opened there "
                         f"({store.fingerprint}): it was replaced, or some of its rows were computed again; {_REMEDY}")


def _holds(record: CommitRecord | None, old: CommitRecord) -> bool:
    """Whether a record still contains an older one unchanged."""
    return record is not None and {**record.facts(), "failures": {}} == {**old.facts(), "failures": {}}

"""Whether the store at a path is still the one that was opened there."""

import itertools

from refavs.errors import StoreError
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import OBJECTS, root_attributes
from refavs.store.reader import FeatureStore
from refavs.store.snapshot import read_snapshot

_REMEDY = "put the store back, or run the same command again with the store that is meant"


def refuse_exchanged(store: FeatureStore, fingerprint: str | None = None) -> None:
    """Makes sure that the store is the one that was planned, and that its place still holds what was opened.

    A finished store that nobody has touched costs the reading of one file. A store still holds what was opened if rows,
    streams or expressions were added since, or a stream that is not in use was dropped.

    Args:
        fingerprint: of the store that was planned; None where any will do.

    Raises:
        StoreError: another store was opened, or another one or none is in its place now, or it cannot be read.
    """
    if fingerprint is not None and store.fingerprint != fingerprint:
        raise StoreError(f"the store at {store.location} is {store.fingerprint}, this work was planned with "
                         f"{fingerprint}: it was exchanged or added to since; {_REMEDY}")
    attributes = root_attributes(store.folder)
    if store.finished and attributes == store.attributes:
        return
    found = read_snapshot(store.folder)
    schema, now = found.schema, {record.file: record for record in found.records}
    same_sizes = (schema.seconds, schema.mask_size) == (store.seconds, store.mask_size)
    used = {OBJECTS, *itertools.chain(*store.in_use.values())}
    if not same_sizes or not all(_holds(now.get(old.file), old) for old in store.records if old.table in used):
        raise StoreError(f"the store at {store.location} is no longer the one that was opened there "
                         f"({store.fingerprint}): it was exchanged, or rows of it were computed again; {_REMEDY}")


def _holds(record: CommitRecord | None, old: CommitRecord) -> bool:
    """Whether a record is an older one, unchanged."""
    return record is not None and {**record.facts(), "failures": {}} == {**old.facts(), "failures": {}}

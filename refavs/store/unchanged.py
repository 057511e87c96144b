"""Whether the store at a path is still the one that was opened there."""

from refavs.errors import StoreError
from refavs.store.format.commits import CommitRecord
from refavs.store.format.schema import root_attributes
from refavs.store.reader import FeatureStore
from refavs.store.snapshot import read_snapshot

_REMEDY = "put the store back, or run the same command again with the store that is meant"


def refuse_exchanged(store: FeatureStore, fingerprint: str | None = None) -> None:
    """Makes sure that the store is the one that was planned, and that its place still holds what was opened.

    A finished store that nobody has touched costs the reading of one file. A store to which rows, arrays or expressions
    were added since still holds what was opened.

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
    schema, now = found.schema, {(record.table, record.index): record for record in found.records}
    same_sizes = (schema.num_frames, schema.input_size) == (store.num_frames, store.input_size)
    if not same_sizes or not all(_holds(now.get((old.table, old.index)), old) for old in store.records):
        raise StoreError(f"the store at {store.location} is no longer the one that was opened there "
                         f"({store.fingerprint}): it was exchanged, or rows of it were computed anew; {_REMEDY}")


def _holds(record: CommitRecord | None, old: CommitRecord) -> bool:
    """Whether a record has all rows and arrays of an older one, unchanged."""
    return (
        record is not None
        and record.rows.items() >= old.rows.items()
        and all(record.arrays.get(path) == facts for path, facts in old.arrays.items())
        and all(record.encoders.get(stream) == short for stream, short in old.encoders.items())
        and all(record.meta[key] == facts for key, facts in old.meta.items())
        and all(record.shares.get(key) == owners for key, owners in old.shares.items())
    )

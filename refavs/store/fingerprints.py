"""The fingerprint of the parts of a store that a trial reads."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np

from refavs.config import digest
from refavs.store.reader import FeatureStore

_known: WeakKeyDictionary[FeatureStore, dict[tuple[str, ...], str]] = WeakKeyDictionary()


def fingerprint_of(store: FeatureStore, paths: Iterable[str]) -> str:
    """Fingerprint of the expressions, the masks and the arrays at `paths`; computed once for a store that is open.

    For an array it covers the encoder, the statistics and the rows of the clips and texts that the expressions refer
    to. It does not depend on other streams or clips of the store, or on how rows are distributed over shards.
    """
    known, wanted = _known.setdefault(store, {}), tuple(sorted({*store.schema.with_scales(*paths)}))
    if wanted not in known:
        known[wanted] = _computed(store, wanted)
    return known[wanted]


def _computed(store: FeatureStore, paths: Iterable[str]) -> str:
    table, arrays = store.expressions, []
    for path in paths:
        spec = store.specs[path]
        places = np.unique(table["text_row" if spec.table.startswith("text/") else "clip"].to_numpy())
        sums = checksums(store, path)
        rows = [sums.get(row) for row in store.rows_of(spec.table)[places].tolist()]
        moments = [part.tolist() for part in store.statistics.get(path, ())]
        arrays.append([path, spec.told(), store.schema.streams[spec.table].fingerprint, moments, rows])
    masks = [checksums(store, path) for path in store.schema.object_paths]
    objects = [[sums.get(row) for sums in masks] for row in table["object"].tolist()]
    lengths = store.clips["seconds"].iloc[table["clip"].unique()].tolist()
    return digest([table.to_dict("list"), objects, lengths, arrays, store.seconds, store.steps.fps, store.mask_size])


def checksums(store: FeatureStore, path: str) -> dict[int, int]:
    """Checksum of each row of an array, from the commit records."""
    spec = store.specs[path]
    size = store.schema.tables[spec.table].rows_per_shard
    return {record.index * size + place: crc for record in store.records if record.table == spec.table
            for place, crc in record.arrays[spec.name].rows.items()}  # fmt: skip

"""The fingerprint of the parts of a store that a trial reads."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from refavs.config import digest
from refavs.store.format.schema import LABELLED, MASK

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore


def fingerprint_of(store: "FeatureStore", paths: Iterable[str]) -> str:
    """Fingerprint of the expressions, the masks and the arrays at `paths`.

    For an array it covers the encoder, the statistics and the rows of the clips and texts that the expressions refer
    to. It does not depend on other streams or clips of the store, or on how rows are distributed over shards.
    """
    table, arrays = store.expressions, []
    for path in sorted({*store.schema.with_scales(*paths)}):
        spec = store.specs[path]
        places = np.unique(table["text_row" if spec.table.startswith("text/") else "clip"].to_numpy())
        sums = checksums(store, path)
        rows = [sums.get(row) for row in store.rows_of(spec.table)[places].tolist()]
        moments = [part.tolist() for part in store.statistics.get(path, ())]
        arrays.append([path, spec.told(), store.schema.streams[spec.table].fingerprint, moments, rows])
    masks = [checksums(store, path) for path in (MASK, LABELLED)]
    objects = [[sums.get(row) for sums in masks] for row in table["object"].tolist()]
    lengths = store.clips["seconds"].iloc[table["clip"].unique()].tolist()
    return digest([table.to_dict("list"), objects, lengths, arrays, store.seconds, store.schema.fps, store.mask_size])


def checksums(store: "FeatureStore", path: str) -> dict[int, int]:
    """Checksum of each row of an array, from the commit records."""
    spec = store.specs[path]
    size = store.schema.tables[spec.table].rows_per_shard
    return {record.index * size + place: crc for record in store.records if record.table == spec.table
            for place, crc in record.arrays[spec.name].rows.items()}  # fmt: skip


def says_random(value: Any) -> bool:
    """Whether a fingerprint or any part of it says that weights are random."""
    if isinstance(value, dict):
        return any(map(says_random, value.values()))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return any(map(says_random, value))
    return isinstance(value, str) and value.startswith("random:")

"""The fingerprint of what a trial reads of a store."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from refavs.config import digest
from refavs.store.format.schema import LABELLED, MASK

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore


def fingerprint_of(store: "FeatureStore", paths: Iterable[str]) -> str:
    """Names the expressions, the masks and the arrays at `paths`.

    Of an array it names the encoder, the statistics and the rows of the clips and texts that the expressions speak of.
    Other streams and other clips of the store, and the way in which rows lie in shards, change nothing.
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
    """Checksum of each row of an array, as the commit records have them."""
    spec = store.specs[path]
    size = store.schema.tables[spec.table].rows_per_shard
    return {record.index * size + place: crc for record in store.records if record.table == spec.table
            for place, crc in record.arrays[spec.name].rows.items()}  # fmt: skip


def says_random(value: Any) -> bool:
    """Whether a fingerprint, or a part of one, names random weights."""
    if isinstance(value, dict):
        return any(map(says_random, value.values()))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return any(map(says_random, value))
    return isinstance(value, str) and value.startswith("random:")

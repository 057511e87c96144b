"""The feature store: a Zarr v3 group of complete shards with checksums and commit records."""

from refavs.store.format.mask_rows import pack_mask, unpack_mask
from refavs.store.format.schema import ArraySpec, StoreSchema, StreamSpec, object_key, text_key
from refavs.store.plan import ShardPlan
from refavs.store.reader import FeatureStore, Sample
from refavs.store.shard_writer import ShardWriter
from refavs.store.writer import StoreWriter

__all__ = [
    "ArraySpec", "FeatureStore", "Sample", "ShardPlan", "ShardWriter", "StoreSchema", "StoreWriter", "StreamSpec",
    "object_key", "pack_mask", "text_key", "unpack_mask",
]  # fmt: skip

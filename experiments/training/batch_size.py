"""Size of a trial's batch."""

import math
from typing import TYPE_CHECKING

from experiments.grid.config import TrialConfig
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.memory_budget import batch_bytes

if TYPE_CHECKING:
    from refavs.store import FeatureStore


def bytes_of_batch(config: TrialConfig, store: "FeatureStore") -> int:
    """Bytes of the visual maps in one worker's batch or part of a batch."""
    train, sizes = config.train, FeatureSizes.from_store(store, config.model.needs(), config.model.head)
    at_once = math.ceil(train.batch_size / train.accumulate / config.resources.workers)
    num_clips = math.ceil(at_once / train.expressions_per_clip)
    return batch_bytes(store, sizes, num_clips, train.frames or len(store.steps))

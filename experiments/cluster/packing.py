"""Decides how many trials share a GPU, by the memory that the largest trial takes on an empty GPU.

The arithmetic is tested; the rest has not been tried on a GPU yet.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.cluster.grouping import bytes_of_head
from experiments.cluster.resources import Resources
from experiments.grid.config import TrialConfig
from experiments.grid.trial import Trial
from experiments.records.stores import store_of
from experiments.training.batch_size import bytes_of_batch
from refavs.data.prefetch import depth_for
from refavs.errors import ConfigError
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.memory_budget import batches_held
from refavs.store import FeatureStore

GPU = torch.device("cuda")
MARGIN = 0.15  # for differences between batches and for fragmentation
CONTEXT_BYTES = 600 * 2**20  # CUDA and its libraries in each process, not counted by the allocator
PRECISION = 10_000  # Ray's GPU shares have four decimals


def share(reserved_bytes: int, total_bytes: int) -> float:
    """The share of a GPU to request per trial so that as many run on it as fit: 1, 0.5, 0.3333, ...

    Args:
        reserved_bytes: peak memory of the allocator while the trial ran alone.
        total_bytes: memory of the GPU.
    """
    needed = reserved_bytes * (1 + MARGIN) + CONTEXT_BYTES
    at_once = max(1, int(total_bytes // needed))
    return math.floor(PRECISION / at_once) / PRECISION  # rounded down, so that the shares fit together


def packed(resources: Resources, trials: Sequence[Trial], store: FeatureStore) -> Resources:
    """Returns `resources` with the GPU share that the largest trial needs; starts Ray for the measurement.

    Raises:
        ConfigError: no node has a GPU, the trial does not fit on one, or trials are fused, in which case their number
            per process is not known yet.
    """
    if resources.fuse != 1:
        raise ConfigError("--gpus-per-trial auto measures one trial, and --fuse puts several into a process; give "
                          "--gpus-per-trial a number, or leave --fuse out")  # fmt: skip
    import ray
    from ray.exceptions import RayTaskError

    from experiments.cluster.tune_runner import ray_for

    trial = max(trials, key=lambda trial: expected_bytes(trial.config, store_of(trial, store)))
    with ray_for(resources, []):
        if not ray.cluster_resources().get("GPU"):
            raise ConfigError("--gpus-per-trial auto: Ray found no GPU on any node; leave it out to train on "
                              "processors, or name a cluster that has GPUs by --address")  # fmt: skip
        task = ray.remote(num_gpus=1, max_retries=0, max_calls=1)(probe)
        location = store_of(trial, store).location
        try:
            reserved, total = ray.get(task.remote(trial.config, location, trial.weights_dir))
        except RayTaskError as error:
            if not isinstance(error.cause, torch.OutOfMemoryError):
                raise
            raise ConfigError(f"trial {trial.title!r} does not fit on a GPU ({error.cause}); lower train.batch_size or "
                              "train.frames, or raise train.accumulate") from error  # fmt: skip
    return dataclasses.replace(resources, gpus_per_trial=share(reserved, total), pack_gpus=False)


def expected_bytes(config: TrialConfig, store: FeatureStore) -> int:
    """Lower bound of a trial's memory, used only to compare trials."""
    train = config.train
    copies = int(train.ema_decay > 0) + int(train.patience > 0)
    at_once = math.ceil(train.batch_size / train.accumulate / config.resources.workers)
    sizes = FeatureSizes.from_store(store, config.model.needs(), config.model.head)
    least = config.model.step_bytes(sizes, at_once, train.frames or len(store.steps))
    return least + bytes_of_head(store, config.model, copies) + batches_held(GPU) * bytes_of_batch(config, store)


def share_of(config: TrialConfig) -> TrialConfig:
    """Settings for one worker with the load of each of several workers, rounded up."""
    num_parts = config.resources.workers * config.train.accumulate
    batch_size = math.ceil(config.train.batch_size / num_parts) * config.train.accumulate
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch_size))


def probe(config: TrialConfig, location: str, weights_dir: Path | None) -> tuple[int, int]:
    """Runs a few real steps and evaluation batches on a GPU; returns the peak bytes reserved and the GPU's memory.

    The steps do not prefetch; the batches that a trial would have on the device ahead of its step are added. For a
    trial with several workers, it measures one worker with its share of the batch.
    """
    from experiments.training.cost import measure
    from refavs.store import FeatureStore

    store = FeatureStore(location, use=config.model.use)
    torch.cuda.reset_peak_memory_stats(GPU)
    measure(share_of(config), store, GPU, weights_dir)
    reserved = torch.cuda.max_memory_reserved(GPU) + depth_for(GPU) * bytes_of_batch(config, store)
    return reserved, torch.cuda.get_device_properties(GPU).total_memory

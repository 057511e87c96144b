"""Lower bounds of a head's memory, so that a head that cannot fit is rejected before anything is allocated."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from refavs.data.prefetch import depth_for
from refavs.errors import ConfigError
from refavs.machine.control_groups import PROC, groups_of, words_of
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.options import HeadOptions

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore

FLOAT_BYTES = 4


def training_bytes(num_trained: int, num_parameters: int, num_copies: int = 0) -> int:
    """Bytes a head in training occupies between steps: weights, gradients, two moments and `num_copies` more copies."""
    return FLOAT_BYTES * (num_parameters * (1 + num_copies) + 3 * num_trained)


def batch_bytes(store: "FeatureStore", sizes: FeatureSizes, num_clips: int, num_frames: int) -> int:
    """Bytes of the visual maps of a batch, which make up nearly all of it."""
    of_frame = sum(size.channels * size.height * size.width * np.dtype(store.specs[size.path].dtype).itemsize
                   for size in sizes.maps)  # fmt: skip
    return of_frame * num_frames * num_clips


def batches_held(device: torch.device) -> int:
    """Number of batches on the device at once: the one in use and those read ahead."""
    return 1 + depth_for(device)


def memory_bytes(device: torch.device, proc: Path = PROC) -> int:
    """Memory of the device. For a CPU it is the machine's memory or the limit of a control group, if that is lower.

    Args:
        proc: the /proc folder of the process.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_limits(proc)])


def _limits(proc: Path) -> Iterator[int]:
    """Memory limits in bytes of the process's control groups."""
    for folder in groups_of("memory", proc):
        # No limit is "max" in version 2 and a very large number in version 1.
        for word in words_of(folder / "memory.max") or words_of(folder / "memory.limit_in_bytes"):
            if word.isdigit():
                yield int(word)


def require_memory(
    options: HeadOptions, sizes: FeatureSizes, device: torch.device, num_expressions: int = 1, num_frames: int = 1,
    bytes_of_batch: int = 0,
) -> None:  # fmt: skip
    """Checks that a training step can fit into memory.

    Args:
        num_expressions: number of expressions that pass through the model at once.
        num_frames: number of frames decoded for each.
        bytes_of_batch: size of one batch; the device holds several batches.

    Raises:
        ConfigError: it cannot; the message has the needed and the available memory.
    """
    held = batches_held(device) * bytes_of_batch
    needed = held + options.step_bytes(sizes, num_expressions, num_frames)
    there = memory_bytes(device)
    if needed > there:
        own = [f"model.{name} ({getattr(type(options), name)} by default)" for name in options.step_settings]
        told = " with ".join(f"{name}={getattr(options, name)}" for name in options.step_settings)
        raise ConfigError(
            f"{told or f'the head {options.head}'}, {num_expressions} expressions and {num_frames} frames at once "
            f"need at least {needed / 1e9:,.1f} GB for masks{' and batches' if held else ''}, and {device} has "
            f"{there / 1e9:,.1f}; lower {', '.join([*own[:1], 'train.batch_size'])} or train.frames"
        )

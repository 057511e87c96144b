"""What a head needs of memory at the least, so that one that cannot fit is refused before anything is allocated."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from refavs.errors import ConfigError
from refavs.model.sizes import FeatureSizes

if TYPE_CHECKING:
    from refavs.model.options import ModelOptions

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
FLOAT_BYTES = 4


def least_bytes(options: "ModelOptions", sizes: FeatureSizes, num_expressions: int = 1, num_frames: int = 1) -> int:
    """Bytes of a training step's mask logits and their gradients: those of every query before each decoder layer and
    after the last one, at stride 4. Everything else comes on top of that."""
    finest = sizes.maps[0]
    logits = options.num_queries * finest.height * finest.width * (options.decoder_layers + 1)
    return 2 * FLOAT_BYTES * logits * num_expressions * num_frames


def training_bytes(num_trained: int, num_parameters: int, num_copies: int = 0) -> int:
    """Bytes that a head in training occupies between its steps: weights, gradients, two moments, and further copies."""
    return FLOAT_BYTES * (num_parameters * (1 + num_copies) + 3 * num_trained)


def memory_bytes(device: torch.device) -> int:
    """Memory of the device; of a processor what the machine has, or less where this process may use less."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    return min(physical, int(limit)) if limit.isdigit() else physical


def require_memory(
    options: "ModelOptions", sizes: FeatureSizes, device: torch.device, num_expressions: int = 1, num_frames: int = 1
) -> None:
    """Refuses what needs more memory than there is.

    Args:
        num_expressions: that go through the model at once.
        num_frames: that are decoded of each.

    Raises:
        ConfigError: with both numbers.
    """
    needed, there = least_bytes(options, sizes, num_expressions, num_frames), memory_bytes(device)
    if needed > there:
        raise ConfigError(
            f"num_queries={options.num_queries} with decoder_layers={options.decoder_layers}, {num_expressions} "
            f"expressions and {num_frames} frames at once needs at least {needed / 1e9:,.1f} GB for its masks, and "
            f"{device} has {there / 1e9:,.1f}; the paper has num_queries=100: lower it, or train.batch_size, or "
            "train.frames"
        )

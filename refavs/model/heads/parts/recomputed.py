"""Recomputing in the backward pass what would take gigabytes to keep, and nothing else."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_VALUES = 2**24


def recomputed(function: Callable[..., Any], *inputs: Any, values: int) -> Tensor:
    """The result of `function`; its steps are recomputed in the backward pass if they hold more than `KEPT_VALUES`.

    A small head needs the time more than the memory.

    Args:
        values: how many its largest step has.
    """
    found = function(*inputs) if values <= KEPT_VALUES else checkpoint(function, *inputs, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found

"""Computing in parts, and recomputing in the backward pass, what would take gigabytes to keep, and nothing else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_VALUES = 2**24
PART_VALUES = 2**22  # 16 MB: such blocks stay near the processor and are not given back to the kernel


def recomputed(function: Callable[..., Any], *inputs: Any, values: int) -> Tensor:
    """The result of `function`; its steps are recomputed in the backward pass if they hold more than `KEPT_VALUES`.

    A small head needs the time more than the memory.

    Args:
        values: how many its largest step has.
    """
    found = function(*inputs) if values <= KEPT_VALUES else checkpoint(function, *inputs, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found


def in_parts(function: Callable[..., Tensor], *rows: Tensor, values: int) -> Tensor:
    """The result of a `function` of rows, which is `recomputed` in parts of about `PART_VALUES` if all have too many.

    Args:
        values: how many values the largest step of all rows has.
    """
    if values <= KEPT_VALUES:
        return function(*rows)
    each = max(1, len(rows[0]) * PART_VALUES // values)
    parts = zip(*(one.split(each) for one in rows), strict=True)
    return torch.cat([recomputed(function, *part, values=values) for part in parts])

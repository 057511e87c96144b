"""Computing in parts, and recomputing in the backward pass, what would take gigabytes to keep, and nothing else."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

KEPT_VALUES = 2**24
PART_VALUES = 2**22  # 16 MB: such blocks stay near the processor and are not given back to the kernel
GPU_PART_VALUES = 2**26  # 256 MB: a GPU loses time with many short operations
_WHOLE = ContextVar("_WHOLE", default=False)


@contextmanager
def whole() -> Iterator[None]:
    """Within it `at_once` is all rows: the same arithmetic in fewer operations, and more memory."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


def fits(values: int) -> bool:
    """Whether a step of so many values is kept for the backward pass."""
    return values <= KEPT_VALUES


def recomputed(function: Callable[..., Any], *inputs: Any, values: int) -> Tensor:
    """The result of `function`; its steps are recomputed in the backward pass unless they are small (`fits`).

    A small head needs the time more than the memory.

    Args:
        values: how many its largest step has.
    """
    found = function(*inputs) if fits(values) else checkpoint(function, *inputs, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found


def at_once(rows: Tensor, values: int) -> int:
    """How many rows to compute at a time if all have `values` in the largest step."""
    if fits(values) or torch.compiler.is_compiling() or _WHOLE.get():
        return len(rows)
    return max(1, len(rows) * (PART_VALUES if rows.device.type == "cpu" else GPU_PART_VALUES) // values)

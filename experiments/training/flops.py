"""Counts the arithmetic of a model with torch's own formulas, without computing most of it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from refavs.model.heads.parts.recomputed import whole

LARGE = 4096  # values; operations on smaller tensors are computed, because control flow may depend on them
_COUNTED_AS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        torch.ops.aten._scaled_dot_product_flash_attention_backward,
}  # fmt: skip


class FlopCounter(TorchDispatchMode):
    """Adds up the arithmetic of matrix products and convolutions; a multiply-add counts two.

    Results of operations on large float tensors are replaced by zeros: only shapes affect the count, and a step of a
    large model takes no longer than that of a small one. Integers and booleans are computed, e.g. those that map
    expressions to clips, except for the random bits of `Dropout`, of 16 bits each. What heads compute in parts is one
    part here. Use it on the CPU.

    torch's FlopCounterMode computes everything, fails on parameters passed to a module, and does not count the CPU's
    fused attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._zeros = _Zeros()
        self._shapes: dict[Any, Any] = {}
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        self._entered.enter_context(whole())
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        self._entered.close()
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._result(func, args, kwargs)
        packet = func.overloadpacket
        formula = flop_registry.get(_COUNTED_AS.get(packet, packet))
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of `func`, or zeros of the same shape."""
        returned = [part.alias_info for part in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if func.overloadpacket is torch.ops.aten.random_ and args[0].numel() > LARGE:
            return args[0]
        if is_view or not _has_large((*args, *kwargs.values())):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            if isinstance(written := kwargs.get("out"), Tensor):
                return written.zero_() if written.numel() <= LARGE else written
            return args[0] if returned else None  # unchanged
        known = func, _described(args), _described(tuple(kwargs.items()))
        if known not in self._shapes:
            try:
                self._shapes[known] = func(*tree_map(_without_values, args), **tree_map(_without_values, kwargs))
            except (NotImplementedError, RuntimeError):  # the result's shape depends on values, so compute it
                return func(*args, **kwargs)
        shapes = self._shapes[known]
        return self._zeros(shapes) if isinstance(shapes, Tensor) else tree_map(self._zeros, shapes)


class _Zeros:
    """Creates zero tensors that take no physical memory, because their pages are never written."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __call__(self, like: Any) -> Any:
        """Zeros in place of a meta tensor; anything else unchanged."""
        if not isinstance(like, Tensor):
            return like
        num_bytes = like.untyped_storage().nbytes()
        if like.numel() <= LARGE:
            return torch.zeros_like(like, device="cpu")
        if num_bytes > len(self._memory):
            self._memory = torch.from_numpy(np.zeros(-(-num_bytes // 16) * 16, np.uint8))
        return self._memory.view(like.dtype).as_strided(like.shape, like.stride())


def _has_large(values: Sequence[Any]) -> bool:
    """Whether a large tensor of floats or random bits is among the arguments, or in a list among them."""
    for value in values:
        if isinstance(value, Tensor):
            if value.numel() > LARGE and (value.is_floating_point() or value.dtype == torch.int16):
                return True
        elif isinstance(value, list | tuple) and _has_large(value):
            return True
    return False


def _described(value: Any) -> Any:
    """The properties of an argument that determine the shape of a result."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(_described, value))
    return type(value), value


def _without_values(leaf: Any) -> Any:
    """Moves a tensor, or a device, to the meta device, where tensors have shapes and no values."""
    if isinstance(leaf, torch.device):
        return torch.device("meta")
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")

"""The feed-forward part of the layers that read every pixel of a clip."""

from math import prod
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.model.heads.parts.recomputed import at_once, fits, recomputed

SHARES = 2**16  # in which the share of dropped values is given


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each value, so that a processor draws four values at a time.

    The share that is dropped is a multiple of 2^-16.
    """

    def forward(self, input: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        if torch.compiler.is_compiling():
            return super().forward(input)  # a compiler draws and drops in one operation with what is around it
        if not self.num_dropped:
            return input
        return input.masked_fill(self.drawn(input), 0) * self.scale

    @property
    def num_dropped(self) -> int:
        """How many of `SHARES` values are dropped now."""
        return round(self.p * SHARES) if self.training else 0

    @property
    def scale(self) -> float:
        """What the values that are not dropped are multiplied by."""
        return SHARES / (SHARES - self.num_dropped)

    def drawn(self, like: Float[Tensor, "*axes"]) -> Bool[Tensor, "*axes"]:
        """Which values to drop."""
        bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        bits = bits.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)
        return bits < self.num_dropped - SHARES // 2


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU and dropout between them.

    A large hidden layer is computed in parts, and once more in the backward pass.
    """

    def __init__(self, channels: int, hidden_channels: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(channels, hidden_channels), nn.ReLU(), Dropout(dropout), nn.Linear(hidden_channels, channels)
        )
        self.hidden_channels = hidden_channels

    def forward(self, input: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
        values = prod(input.shape[:-1]) * self.hidden_channels
        if torch.compiler.is_compiling():
            return recomputed(super().forward, input, values=values)
        rows, (first, _, dropout, second) = input.flatten(0, -2), cast(tuple[Any, ...], tuple(self))
        weights = [first.weight, first.bias, second.weight * dropout.scale, second.bias]
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.get_autocast_dtype(input.device.type)
            rows, *weights = (one.to(dtype) for one in (rows, *weights))
        found = _InParts.apply(rows, *weights, dropout, at_once(rows, values), fits(values))
        return cast(Tensor, found).view(*input.shape[:-1], -1)


class _InParts(torch.autograd.Function):
    """The feed-forward part in parts of some rows each; the hidden layer is kept, or only which values to drop."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor,
        dropout: Dropout, each: int, keep: bool,
    ) -> Tensor:  # fmt: skip
        found, kept = rows.new_empty(len(rows), len(second)), []
        for part, into in zip(rows.split(each), found.split(each), strict=True):
            hidden = torch.addmm(first_bias, part, first.t())
            drop = [dropout.drawn(hidden)] if dropout.num_dropped else []
            _activate(hidden, drop)
            torch.addmm(second_bias, hidden, second.t(), out=into)
            kept += [hidden] if keep else drop
        ctx.save_for_backward(rows, first, first_bias, second, *kept)
        ctx.each, ctx.keep = each, keep
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, first, first_bias, second, *kept = ctx.saved_tensors
        of_rows = torch.empty_like(rows)
        # Sums of many parts need more digits than bfloat16 has.
        of_first, of_first_bias, of_second = (
            torch.zeros_like(one, dtype=torch.promote_types(one.dtype, torch.float32))
            for one in (first, first_bias, second)
        )
        parts = zip(*(one.split(ctx.each) for one in (rows, of_rows, gradients[0])), strict=True)
        for number, (part, into, gradient) in enumerate(parts):
            if ctx.keep:
                hidden = kept[number]
            else:
                hidden = _activate(torch.addmm(first_bias, part, first.t()), kept[number : number + 1])
            of_second += gradient.t() @ hidden
            of_hidden = torch.ops.aten.threshold_backward(gradient @ second, hidden, 0)
            of_first += of_hidden.t() @ part
            of_first_bias += of_hidden.sum(dim=0)
            torch.mm(of_hidden, first, out=into)
        of_weights = (one.to(rows.dtype) for one in (of_first, of_first_bias, of_second))
        return of_rows, *of_weights, gradients[0].sum(dim=0), None, None, None


def _activate(hidden: Tensor, drop: list[Tensor]) -> Tensor:
    """ReLU and dropout in place; a value's gradient passes where it is not zero now."""
    for one in drop:
        hidden.masked_fill_(one, 0)
    return hidden.relu_()

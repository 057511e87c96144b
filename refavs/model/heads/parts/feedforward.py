"""The feed-forward part of the layers that read every pixel of a clip."""

from math import prod
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.model.heads.parts.recomputed import in_parts

SHARES = 2**16  # in which the share of dropped values is given


class Dropout(nn.Dropout):
    """Dropout that draws 16 random bits for each value, so that a processor draws four values at a time.

    The share that is dropped is a multiple of 2^-16.
    """

    def forward(self, input: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        if not self.training or not self.p:
            return input
        drop, scale = self.drawn(input)
        return input.masked_fill(drop, 0) * scale

    def drawn(self, input: Float[Tensor, "*axes"]) -> tuple[Bool[Tensor, "*axes"], float]:
        """Which values to drop, and by what to multiply the others."""
        dropped = round(self.p * SHARES)
        bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64, device=input.device)
        bits = bits.random_(-(2**63), None).view(torch.int16)[: input.numel()].view(input.shape)
        return bits < dropped - SHARES // 2, SHARES / (SHARES - dropped)


class FeedForward(nn.Sequential):
    """Two linear layers with a ReLU and dropout between them; in parts if the hidden layer of all tokens is large."""

    def __init__(self, channels: int, hidden_channels: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(channels, hidden_channels), nn.ReLU(), Dropout(dropout), nn.Linear(hidden_channels, channels)
        )
        self.hidden_channels = hidden_channels

    def forward(self, input: Float[Tensor, "*s c"]) -> Float[Tensor, "*s c"]:
        values = prod(input.shape[:-1]) * self.hidden_channels
        return in_parts(self._rows, input.flatten(0, -2), values=values).view(input.shape)

    def _rows(self, rows: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        first, _, last, second = self
        hidden, dropout = first(rows), cast(Dropout, last)
        drop, scale = dropout.drawn(hidden) if self.training and dropout.p else (None, 1.0)
        return second(_Activated.apply(hidden, drop, scale))


class _Activated(torch.autograd.Function):
    """ReLU and dropout in place: what a value's gradient is multiplied by follows from whether it is zero now."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, drop: Tensor | None, scale: float) -> Tensor:
        hidden.relu_()
        if drop is not None:
            hidden.masked_fill_(drop, 0).mul_(scale)
        ctx.mark_dirty(hidden)
        ctx.save_for_backward(hidden)
        ctx.scale = scale
        return hidden

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (hidden,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], hidden, 0).mul_(ctx.scale), None, None

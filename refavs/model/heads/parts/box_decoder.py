"""Queries that read a deformable encoder and refine their boxes layer by layer (Deformable DETR, arXiv 2010.04159)."""

import math
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.attention import Attention
from refavs.model.heads.parts.deformable import DeformableAttention, Shapes
from refavs.model.heads.parts.expression_input import attended
from refavs.model.heads.parts.feedforward import Dropout, FeedForward

PRIOR = 0.01  # the share of queries that are expected to be the object at the start
CERTAINTY = 1e-5  # the least distance of a coordinate from 0 and 1 before it becomes a logit


class Decoded(NamedTuple):
    """The queries behind a layer, their classes, and their boxes (centre x, y, width, height) from 0 to 1."""

    queries: Float[Tensor, "s q c"]
    class_logits: Float[Tensor, "s q"]
    boxes: Float[Tensor, "s q 4"]


class BoxDecoder(nn.Module):
    """Decoder layers; the boxes of one layer say where the next one reads."""

    def __init__(
        self, channels: int, num_queries: int, num_heads: int, num_layers: int, feedforward_channels: int,
        num_levels: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.positions = nn.Parameter(torch.randn(num_queries, channels))
        self.reference = nn.Linear(channels, 2)
        self.layers = nn.ModuleList(
            BoxDecoderLayer(channels, num_heads, feedforward_channels, num_levels, dropout) for _ in range(num_layers)
        )
        self.classes = nn.ModuleList(nn.Linear(channels, 1) for _ in range(num_layers))
        self.boxes = nn.ModuleList(perceptron(channels, 4) for _ in range(num_layers))
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)
        for layer, classes in enumerate(self.classes):
            nn.init.constant_(cast(Tensor, classes.bias), -math.log((1 - PRIOR) / PRIOR))
            last = cast(nn.Sequential, self.boxes[layer])[-1]
            nn.init.zeros_(cast(Tensor, last.weight))
            nn.init.zeros_(cast(Tensor, last.bias))
            if layer == 0:
                nn.init.constant_(cast(Tensor, last.bias)[2:], -2.0)  # boxes start small

    def forward(
        self, content: Float[Tensor, "s #q c"], memory: Float[Tensor, "s n c"], shapes: Shapes
    ) -> list[Decoded]:
        """The result of each layer.

        Args:
            content: what the queries look for.
            memory: the encoder's pixels, level after level.
        """
        queries = content.expand(-1, len(self.positions), -1)
        reference = self.reference(self.positions).float().sigmoid().expand(len(content), -1, -1)
        found = []
        for layer, classes, box in zip(self.layers, self.classes, self.boxes, strict=True):
            queries = layer(queries, self.positions, reference, memory, shapes)
            known = reference.logit(CERTAINTY)
            known = nn.functional.pad(known, (0, 4 - known.shape[-1]))
            boxes = (box(queries).float() + known).sigmoid()
            found.append(Decoded(queries, rearrange(classes(queries), "s q 1 -> s q").float(), boxes))
            reference = boxes.detach()
        return found


class BoxDecoderLayer(nn.Module):
    """Queries see each other, then the pixels near their reference (post-norm)."""

    def __init__(
        self, channels: int, num_heads: int, feedforward_channels: int, num_levels: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = Attention(channels, num_heads)
        self.cross_attention = DeformableAttention(channels, num_heads, num_levels)
        self.feedforward = FeedForward(channels, feedforward_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, queries: Float[Tensor, "s q c"], positions: Float[Tensor, "q c"], reference: Float[Tensor, "s q d"],
        memory: Float[Tensor, "s n c"], shapes: Shapes,
    ) -> Float[Tensor, "s q c"]:  # fmt: skip
        placed = queries + positions
        seen = attended(self.self_attention, placed, placed, queries)
        queries = self.norms[0](queries + self.dropout(seen))
        where = rearrange(reference, "s q d -> s q 1 d")
        read = self.cross_attention(queries + positions, where, memory, shapes)
        queries = self.norms[1](queries + self.dropout(read))
        return self.norms[2](queries + self.dropout(self.feedforward(queries)))


def perceptron(channels: int, out_channels: int) -> nn.Sequential:
    """Three linear layers with ReLUs between them."""
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(),
        nn.Linear(channels, out_channels),
    )  # fmt: skip

"""Mask queries to masks: the transformer decoder of Mask2Former with its mask and class heads.

Written here rather than taken from `transformers`, whose decoder it equals (a test compares them), because the keys
and values of a clip's maps are the same for all its expressions and the attention masks are needed at the levels' own
resolution only; and so that the library does not load `transformers` to run a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from refavs.model.attention import Attention, attend, feedforward, hidden_bias, sine_positions

OBJECT, NO_OBJECT = 0, 1


@dataclass
class EEMCOutput:
    """Predictions of the mask queries, before the sigmoid and the softmax.

    Attributes:
        mask_logits: one mask for each query at the resolution of the mask features.
        class_logits: index 0 is "this query is the referred object", index 1 "no object".
        auxiliary: the predictions before each decoder layer, for deep supervision; empty outside training.
    """

    mask_logits: Float[Tensor, "b t q h w"]
    class_logits: Float[Tensor, "b t q 2"]
    auxiliary: list["EEMCOutput"] = field(default_factory=list)


class MaskedAttentionLayer(nn.Module):
    """Queries attend to one level inside their own predicted masks, then to each other (post-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.cross_attention = Attention(channels, num_heads)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, num_heads)
        self.self_norm = nn.LayerNorm(channels)
        self.feedforward = feedforward(channels, feedforward_channels, dropout)
        self.feedforward_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        queries: Float[Tensor, "s q c"],
        query_positions: Float[Tensor, "q c"],
        keys: Float[Tensor, "s m n d"],
        values: Float[Tensor, "s m n d"],
        bias: Float[Tensor, "s 1 q n"],
    ) -> Float[Tensor, "s q c"]:
        """`keys` and `values` come from `project`."""
        return self._between(self._to_level(queries, query_positions, keys, values, bias), query_positions)

    def project(
        self, level: Float[Tensor, "r n c"], positions: Float[Tensor, "n c"]
    ) -> tuple[Float[Tensor, "r m n d"], Float[Tensor, "r m n d"]]:
        """Keys and values of a level's pixels; r counts frames of distinct clips."""
        return self.cross_attention.heads(level + positions, 1), self.cross_attention.heads(level, 2)

    def _to_level(
        self, queries: Tensor, query_positions: Tensor, keys: Tensor, values: Tensor, bias: Tensor
    ) -> Tensor:
        cross = self.cross_attention
        attended = cross.join(attend(cross.heads(queries + query_positions, 0), keys, values, bias))
        return self.cross_norm(queries + self.dropout(attended))

    def _between(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        attention, placed = self.self_attention, queries + query_positions
        heads = attention.heads(placed, 0), attention.heads(placed, 1), attention.heads(queries, 2)
        queries = self.self_norm(queries + self.dropout(attention.join(attend(*heads))))
        return self.feedforward_norm(queries + self.dropout(self.feedforward(queries)))


class MaskDecoder(nn.Module):
    """Refines prompted mask queries on the levels of the pixel decoder and predicts a mask and a class for each.

    With no layers, the masks come straight from the prompted queries.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_layers: int,
        feedforward_channels: int,
        dropout: float,
        *,
        num_queries: int,
        mask_channels: int,
        level_channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MaskedAttentionLayer(channels, num_heads, feedforward_channels, dropout) for _ in range(num_layers)
        )
        self.levels_read = min(num_layers, len(level_channels))
        used = level_channels[: self.levels_read]
        self.level_projections = nn.ModuleList(
            nn.Identity() if width == channels else nn.Linear(width, channels) for width in used
        )
        self.level_embeddings = nn.ParameterList(torch.randn(channels) for _ in used)
        self.query_positions = nn.Parameter(torch.randn(num_queries, channels)) if num_layers else None
        self.norm = nn.LayerNorm(channels)
        self.mask_head = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, mask_channels + 1),
        )
        self.class_head = nn.Linear(channels, 2)

    def forward(
        self,
        queries: Float[Tensor, "b t q c"],
        mask_features: Float[Tensor, "u t cm h w"],
        levels: Sequence[Float[Tensor, "u t _ _ _"]],
        clip: Int[Tensor, "b"],
    ) -> EEMCOutput:
        """Predicts from the prompted queries of b expressions and the maps of their u distinct clips.

        Args:
            levels: the maps at strides 32, 16 and 8, in this order.
            clip: which of the u clips each expression speaks of.
        """
        num_frames, height = mask_features.shape[1], mask_features.shape[3]
        rows = rearrange(clip[:, None] * num_frames + torch.arange(num_frames, device=clip.device), "b t -> (b t)")
        hidden = rearrange(queries, "b t q c -> (b t) q c")
        full = rearrange(mask_features, "u t c h w -> (u t) c (h w)")[rows]
        sources = self._sources(mask_features, levels, rows)
        outputs = []
        for index, module in enumerate(self.layers):
            layer = cast(MaskedAttentionLayer, module)
            if self.training:
                outputs.append(self._predict(hidden, full, num_frames, height))
            tokens, positions, small = sources[index % len(sources)]
            bias = self._attention_bias(hidden, small)
            keys, values = (part[rows] for part in layer.project(tokens, positions))
            hidden = layer(hidden, self.query_positions, keys, values, bias)
        final = self._predict(hidden, full, num_frames, height)
        final.auxiliary = outputs
        return final

    def _sources(
        self, mask_features: Tensor, levels: Sequence[Tensor], rows: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each level read: its tokens, their positions, and the mask features at its resolution."""
        flat = rearrange(mask_features, "u t c h w -> (u t) c h w")
        sources = []
        for index in range(self.levels_read):
            height, width = levels[index].shape[-2:]
            tokens = self.level_projections[index](rearrange(levels[index], "u t c h w -> (u t) (h w) c"))
            tokens = tokens + self.level_embeddings[index]
            positions = sine_positions(height, width, tokens.shape[-1], tokens.device)
            # Interpolation is linear, so that it may come before the product with the queries.
            small = nn.functional.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
            sources.append((tokens, positions, rearrange(small, "r c h w -> r c (h w)")[rows]))
        return sources

    @torch.no_grad()
    def _attention_bias(self, hidden: Tensor, small: Tensor) -> Float[Tensor, "s 1 q n"]:
        """Hides the pixels outside each query's mask; a query whose mask is empty sees all."""
        inside = self._masks(self.norm(hidden), small) >= 0
        inside = inside | ~inside.any(dim=-1, keepdim=True)
        return hidden_bias(rearrange(inside, "s q n -> s 1 q n"))

    def _masks(self, hidden: Float[Tensor, "s q c"], features: Float[Tensor, "s cm p"]) -> Float[Tensor, "s q p"]:
        """Products of queries and mask features, and a bias of each query.

        Differs: Mask2Former has no such bias; its features have a mean that serves as one. Features that are
        standardised put the background at zero, where no query can tell it from the border of an object.
        """
        embedding = self.mask_head(hidden)
        return torch.matmul(embedding[..., :-1], features) + embedding[..., -1:]

    def _predict(self, hidden: Tensor, full: Tensor, num_frames: int, height: int) -> EEMCOutput:
        hidden = self.norm(hidden)
        masks = self._masks(hidden, full)
        return EEMCOutput(
            mask_logits=rearrange(masks, "(b t) q (h w) -> b t q h w", t=num_frames, h=height),
            class_logits=rearrange(self.class_head(hidden), "(b t) q two -> b t q two", t=num_frames),
        )


def predict(output: EEMCOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
    """Probability of each pixel to belong to the referred object: the masks of all queries, weighted by their class.

    Args:
        size: height and width of the result in pixels; that of the mask features by default.
    """
    objectness = output.class_logits.float().softmax(dim=-1)[..., OBJECT]
    probs = torch.einsum("btq,btqhw->bthw", objectness, output.mask_logits.float().sigmoid()).clamp(max=1)
    if size is None or tuple(probs.shape[-2:]) == size:
        return probs
    return nn.functional.interpolate(probs, size=size, mode="bilinear", align_corners=False)

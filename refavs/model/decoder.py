"""Mask queries to masks: the transformer decoder of Mask2Former with its mask and class heads.

It computes the same as the decoder in `transformers` (a test compares them). It is a separate implementation for three
reasons: all expressions of a clip share the keys and values of its maps, attention masks are needed only at each
level's own resolution, and running a head should not import `transformers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from refavs.data.clip_groups import ClipGroups
from refavs.model.attention import Attention, attend, feedforward, hidden_bias, sine_positions

OBJECT, NO_OBJECT = 0, 1


@dataclass
class EEMCOutput:
    """Predictions of the mask queries, before the sigmoid and the softmax.

    Masks are stored as the two factors of a matrix product. Training needs one mask per frame and so computes and
    differentiates only that one.

    Attributes:
        mask_embeddings: for each query, the weights of the mask features followed by a bias.
        mask_features: mask features of the distinct clips.
        groups: the distinct clip that each expression refers to.
        class_logits: index 0 is "this query is the referred object", index 1 "no object".
        auxiliary: the predictions before each decoder layer, for deep supervision; empty outside training.
    """

    mask_embeddings: Float[Tensor, "b t q cm1"]
    mask_features: Float[Tensor, "u t cm h w"]
    groups: ClipGroups
    class_logits: Float[Tensor, "b t q 2"]
    auxiliary: list["EEMCOutput"] = field(default_factory=list)

    @property
    def mask_logits(self) -> Float[Tensor, "b t q h w"]:
        """One mask per query at the resolution of the mask features; computed on each access."""
        return mask_logits(self.mask_embeddings, self.mask_features, self.groups)

    def mask_logits_of(self, query: Int[Tensor, "b t"]) -> Float[Tensor, "b t h w"]:
        """The mask of one query per frame."""
        index = rearrange(query, "b t -> b t 1 1").expand(-1, -1, 1, self.mask_embeddings.shape[-1])
        logits = mask_logits(self.mask_embeddings.gather(2, index), self.mask_features, self.groups)
        return rearrange(logits, "b t 1 h w -> b t h w")


def mask_logits(
    embeddings: Float[Tensor, "b t q cm1"], features: Float[Tensor, "u t cm h w"], groups: ClipGroups
) -> Float[Tensor, "b t q h w"]:
    """Products of queries and mask features, plus a bias per query.

    Differs: Mask2Former has no bias, because the mean of its features acts as one. Standardised features put the
    background at zero, where a query without a bias cannot separate it from the border of an object.
    """
    height = features.shape[3]
    grouped = rearrange(groups.join(embeddings), "u t k q c -> u t (k q) c")
    features = rearrange(features, "u t c h w -> u t c (h w)")
    logits = torch.matmul(grouped[..., :-1], features).add_(grouped[..., -1:])
    logits = groups.part(rearrange(logits, "u t (k q) p -> u t k q p", k=groups.size))
    return rearrange(logits, "b t q (h w) -> b t q h w", h=height)


class MaskedAttentionLayer(nn.Module):
    """Queries attend to one level within their own predicted masks, then to each other (post-norm)."""

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
        queries: Float[Tensor, "r k q c"],
        query_positions: Float[Tensor, "q c"],
        placed: Float[Tensor, "r n c"],
        level: Float[Tensor, "r n c"],
        embedding: Float[Tensor, "c"],
        bias: Float[Tensor, "r 1 kq n"],
    ) -> Float[Tensor, "r k q c"]:
        """Refines the queries of k expressions for each of r frames of distinct clips.

        Args:
            placed: a level's pixels with positions added, for the keys.
            level: the same pixels without positions, for the values.
            embedding: the level embedding. It is projected separately so that frozen maps need no gradient.
        """
        cross, size = self.cross_attention, queries.shape[1]
        query, key, value = cross.parts()
        heads = rearrange(queries + query_positions, "r k q c -> r (k q) c")
        attended = attend(
            cross.heads(heads, query), cross.heads(placed, key, embedding), cross.heads(level, value, embedding), bias
        )
        attended = rearrange(cross.join(attended), "r (k q) c -> r k q c", k=size)
        return self._between(self.cross_norm(queries + self.dropout(attended)), query_positions)

    def _between(self, queries: Tensor, query_positions: Tensor) -> Tensor:
        attention, size = self.self_attention, queries.shape[1]
        queries = rearrange(queries, "r k q c -> (r k) q c")
        placed = queries + query_positions
        query, key, value = attention.parts()
        heads = attention.heads(placed, query), attention.heads(placed, key), attention.heads(queries, value)
        queries = self.self_norm(queries + self.dropout(attention.join(attend(*heads))))
        queries = self.feedforward_norm(queries + self.dropout(self.feedforward(queries)))
        return rearrange(queries, "(r k) q c -> r k q c", k=size)


class MaskDecoder(nn.Module):
    """Refines the prompted mask queries on the levels of the pixel decoder and predicts a mask and a class for each.

    Without layers, it predicts the masks directly from the prompted queries.
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
        groups: ClipGroups,
    ) -> EEMCOutput:
        """Predicts from the prompted queries of b expressions and the maps of their u distinct clips.

        Args:
            levels: the maps at strides 32, 16 and 8, in this order.
            groups: which of the u clips each expression refers to.
        """
        device = mask_features.device.type
        if torch.is_autocast_enabled(device):  # cast once rather than in every product
            mask_features = mask_features.to(torch.get_autocast_dtype(device))
        hidden = rearrange(groups.join(queries), "u t k q c -> (u t) k q c")
        outputs = []

        def predict_masks() -> None:
            normed = self.norm(groups.part(rearrange(hidden, "(u t) k q c -> u t k q c", u=groups.num_clips)))
            outputs.append(EEMCOutput(self.mask_head(normed), mask_features, groups, self.class_head(normed)))

        sources = self._sources(mask_features, levels)
        for index, module in enumerate(self.layers):
            layer = cast(MaskedAttentionLayer, module)
            if self.training:
                predict_masks()
            placed, tokens, small = sources[index % len(sources)]
            embedding = self.level_embeddings[index % len(sources)]
            hidden = layer(hidden, self.query_positions, placed, tokens, embedding, self._attention_bias(hidden, small))
        predict_masks()
        outputs[-1].auxiliary = outputs[:-1]
        return outputs[-1]

    def _sources(
        self, mask_features: Tensor, levels: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each level: its tokens with and without positions, and the mask features at its resolution."""
        flat = rearrange(mask_features, "u t c h w -> (u t) c h w")
        sources = []
        for index in range(self.levels_read):
            height, width = levels[index].shape[-2:]
            tokens = rearrange(levels[index], "u t c h w -> (u t) (h w) c").contiguous()
            tokens = self.level_projections[index](tokens)
            positions = sine_positions(height, width, tokens.shape[-1], tokens.device)
            # Interpolation is linear, so it can be done before the product with the queries.
            small = _smaller(flat, height, width)
            sources.append((tokens + positions, tokens, rearrange(small, "r c h w -> r c (h w)")))
        return sources

    @torch.no_grad()
    def _attention_bias(
        self, hidden: Float[Tensor, "r k q c"], small: Float[Tensor, "r cm n"]
    ) -> Float[Tensor, "r 1 kq n"]:
        """Hides the pixels outside each query's mask; a query with an empty mask sees all pixels."""
        embedding = self.mask_head(self.norm(rearrange(hidden.detach(), "r k q c -> r (k q) c")))
        inside = torch.matmul(embedding[..., :-1], small) + embedding[..., -1:] >= 0
        inside = inside | ~inside.any(dim=-1, keepdim=True)
        return hidden_bias(rearrange(inside, "r kq n -> r 1 kq n"))


def _smaller(maps: Float[Tensor, "r c h w"], height: int, width: int) -> Float[Tensor, "r c _ _"]:
    """Bilinear downsampling; for an even factor, the mean of the four pixels around each point, without copies."""
    factor = maps.shape[2] // height
    if factor % 2 or (height * factor, width * factor) != maps.shape[2:]:
        return nn.functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    places = [slice(factor // 2 - 1 + step, None, factor) for step in (0, 1)]
    top, bottom = (maps[:, :, y, places[0]] + maps[:, :, y, places[1]] for y in places)
    return (top + bottom) / 4


def predict(output: EEMCOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
    """Probability that each pixel belongs to the referred object: the masks of all queries weighted by their class.

    Args:
        size: height and width of the result in pixels; by default those of the mask features.
    """
    objectness = output.class_logits.float().softmax(dim=-1)[..., OBJECT]
    probs = torch.einsum("btq,btqhw->bthw", objectness, output.mask_logits.float().sigmoid()).clamp(max=1)
    if size is None or tuple(probs.shape[-2:]) == size:
        return probs
    return nn.functional.interpolate(probs, size=size, mode="bilinear", align_corners=False)

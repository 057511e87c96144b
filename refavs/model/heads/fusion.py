"""Fusion of the cues: temporal bi-modal transformers, multimodal integration, and the prompting of the mask queries.

All attention is within one second; only the cached memory links seconds.
"""

from typing import cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.model.attention import CrossAttentionLayer, SelfAttentionLayer, attend, hidden_bias

QUERY_STD = 0.02


class BimodalFusion(nn.Module):
    """Self-attention over one modality and the expression, second by second.

    Ref-AVS (arXiv 2407.10957v1), Eq. 1. What it starts from is the same for all expressions of a clip (the modality)
    and in all seconds (the expression), so that the first layer projects each only once.
    """

    def __init__(
        self, channels: int, num_layers: int, num_heads: int, feedforward_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SelfAttentionLayer(channels, num_heads, feedforward_channels, dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        modality: Float[Tensor, "u t n c"],
        text: Float[Tensor, "b l c"] | None,
        valid: Bool[Tensor, "b l"],
        clip: Int[Tensor, "b"],
        frames: Int[Tensor, "f"] | None = None,
    ) -> tuple[Float[Tensor, "b t n c"], Float[Tensor, "b _ l c"] | None]:
        """Returns the modality's features, related to the expression, and the expression's, aware of the modality.

        Args:
            modality: tokens of the distinct clips.
            clip: which of them each expression speaks of.
            frames: the seconds in which the expression's features are wanted, all of them by default.
        """
        num_frames, num_tokens = modality.shape[1:3]
        if text is None:
            tokens = rearrange(modality, "u t n c -> (u t) n c")
            for layer in self.layers:
                tokens = layer(tokens)
            return rearrange(tokens, "(u t) n c -> u t n c", t=num_frames)[clip], None
        seen = torch.cat([valid.new_ones(len(valid), num_tokens), valid], dim=1)
        bias = hidden_bias(repeat(seen, "b k -> b t 1 1 k", t=num_frames))
        text = rearrange(text, "b l c -> b 1 l c")
        last = len(self.layers) - 1
        for index, module in enumerate(self.layers):
            layer = cast(SelfAttentionLayer, module)
            parts = layer.project(modality), layer.project(text)
            if index == 0:
                modality, parts = modality[clip], (parts[0][clip], parts[1])
            chosen = frames if index == last else None
            modality, text = _related(layer, modality, text, *parts, bias, chosen)
        return modality, text


def _related(
    layer: SelfAttentionLayer,
    modality: Float[Tensor, "b t n c"],
    text: Float[Tensor, "b #t l c"],
    modality_parts: Float[Tensor, "b t n c3"],
    text_parts: Float[Tensor, "b #t l c3"],
    bias: Float[Tensor, "b t 1 1 k"],
    frames: Int[Tensor, "f"] | None,
) -> tuple[Float[Tensor, "b t n c"], Float[Tensor, "b _ l c"]]:
    """One layer on [modality; text], whose queries, keys and values are the `parts`."""
    num_frames, width = modality.shape[1], modality.shape[-1]
    queries, text_queries = modality_parts[..., :width], text_parts[..., :width]
    source = torch.cat([modality_parts[..., width:], text_parts[..., width:].expand(-1, num_frames, -1, -1)], dim=2)
    features = _attended(layer, modality, queries, source, bias)
    if frames is not None:
        source, bias = source[:, frames], bias[:, frames]
        text, text_queries = (part if part.shape[1] == 1 else part[:, frames] for part in (text, text_queries))
    text, text_queries = (part.expand(-1, source.shape[1], -1, -1) for part in (text, text_queries))
    return features, _attended(layer, text, text_queries, source, bias)


def _attended(
    layer: SelfAttentionLayer,
    tokens: Float[Tensor, "b t q c"],
    queries: Float[Tensor, "b t q c"],
    source: Float[Tensor, "b t k c2"],
    bias: Float[Tensor, "b t 1 1 k"],
) -> Float[Tensor, "b t q c"]:
    """The tokens after attention to keys and values, which follow each other in the last axis of `source`."""
    num_frames = tokens.shape[1]
    tokens, queries, source = (rearrange(part, "b t k c -> (b t) k c") for part in (tokens, queries, source))
    query, key, value = (layer.attention.split(part) for part in (queries, *source.chunk(2, dim=-1)))
    attended = attend(query, key, value, rearrange(bias, "b t one two k -> (b t) one two k"))
    return rearrange(layer.finish(tokens, attended), "(b t) q c -> b t q c", t=num_frames)


class MultimodalIntegration(nn.Module):
    """Joins the cues of a second, marks audio and vision with learned tokens, and lets all attend to all.

    Ref-AVS (arXiv 2407.10957v1), Eq. 4: [Q_A; aud; Q_V; vis; Q_T].
    """

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_heads: int,
        feedforward_channels: int,
        dropout: float,
        *,
        modality_tokens: bool,
        audio: bool,
    ) -> None:
        super().__init__()
        self.audio_token = nn.Parameter(torch.randn(channels)) if modality_tokens and audio else None
        self.visual_token = nn.Parameter(torch.randn(channels)) if modality_tokens else None
        self.layers = nn.ModuleList(
            SelfAttentionLayer(channels, num_heads, feedforward_channels, dropout) for _ in range(num_layers)
        )

    def forward(
        self,
        audio: Float[Tensor, "b t one c"] | None,
        visual: Float[Tensor, "b t n c"],
        text: Float[Tensor, "b t l c"] | None,
        valid: Bool[Tensor, "b l"],
    ) -> tuple[Float[Tensor, "b t k c"], Bool[Tensor, "b k"]]:
        """Returns the comprehensive cues Q_m and which of them are real (padding of the text is not)."""
        num_expressions, num_frames = visual.shape[:2]

        def marked(cue: Tensor | None, token: Tensor | None) -> list[Tensor]:
            parts = [] if cue is None else [cue]
            if token is not None:
                parts.append(token.expand(num_expressions, num_frames, 1, -1))
            return parts

        parts = marked(audio, self.audio_token) + marked(visual, self.visual_token)
        num_tokens = sum(part.shape[2] for part in parts)
        seen = valid.new_ones(num_expressions, num_tokens)
        if text is not None:
            parts.append(text)
            seen = torch.cat([seen, valid], dim=1)
        tokens = rearrange(torch.cat(parts, dim=2), "b t k c -> (b t) k c")
        bias = None if text is None else hidden_bias(repeat(seen, "b k -> (b t) 1 1 k", t=num_frames))
        for layer in self.layers:
            tokens = layer(tokens, bias)
        return rearrange(tokens, "(b t) k c -> b t k c", t=num_frames), seen


class QueryPrompting(nn.Module):
    """Learned mask queries attend to the comprehensive cues of their second.

    Ref-AVS (arXiv 2407.10957v1), Eq. 5.
    """

    def __init__(
        self,
        channels: int,
        num_layers: int,
        num_heads: int,
        feedforward_channels: int,
        dropout: float,
        *,
        num_queries: int,
    ) -> None:
        super().__init__()
        # Small, so that from the first step what a query becomes is decided by the cues it attends to.
        self.queries = nn.Parameter(QUERY_STD * torch.randn(num_queries, channels))
        self.layers = nn.ModuleList(
            CrossAttentionLayer(channels, num_heads, feedforward_channels, dropout) for _ in range(num_layers)
        )

    def forward(
        self, cues: Float[Tensor, "b t k c"], seen: Bool[Tensor, "b k"]
    ) -> Float[Tensor, "b t q c"]:
        num_frames = cues.shape[1]
        source = rearrange(cues, "b t k c -> (b t) k c")
        queries = rearrange(self.queries, "q c -> 1 q c")  # the first layer projects them once
        bias = hidden_bias(repeat(seen, "b k -> (b t) 1 1 k", t=num_frames))
        for layer in self.layers:
            queries = layer(queries, source, bias)
        return rearrange(queries, "(b t) q c -> b t q c", t=num_frames)

"""Fusion of the cues: temporal bi-modal transformers, multimodal integration and prompting of the mask queries.

All attention stays within one step; only the cached memory connects steps.
"""

from typing import cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.model.attention import CrossAttentionLayer, SelfAttentionLayer, attend, hidden_bias

QUERY_STD = 0.02


class BimodalFusion(nn.Module):
    """Self-attention over one modality and the expression, step by step.

    Ref-AVS (arXiv 2407.10957v1), Eq. 1. All expressions of a clip share the modality's tokens, and all steps share
    the expression's, so the first layer projects each of them only once.
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
        chosen: Int[Tensor, "f"] | None = None,
    ) -> tuple[Float[Tensor, "b t n c"], Float[Tensor, "b _ l c"] | None]:
        """Returns the features of the modality and of the expression, each informed by the other.

        Args:
            modality: tokens of the distinct clips.
            clip: the distinct clip that each expression refers to.
            chosen: the steps for which to return the expression's features; all by default.
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
            wanted = chosen if index == last else None
            modality, text = _related(layer, modality, text, *parts, bias, wanted)
        return modality, text


def _related(
    layer: SelfAttentionLayer,
    modality: Float[Tensor, "b t n c"],
    text: Float[Tensor, "b #t l c"],
    modality_parts: Float[Tensor, "b t n c3"],
    text_parts: Float[Tensor, "b #t l c3"],
    bias: Float[Tensor, "b t 1 1 k"],
    chosen: Int[Tensor, "f"] | None,
) -> tuple[Float[Tensor, "b t n c"], Float[Tensor, "b _ l c"]]:
    """One layer on [modality; text]; the `parts` are its projected queries, keys and values."""
    num_frames, width = modality.shape[1], modality.shape[-1]
    queries, text_queries = modality_parts[..., :width], text_parts[..., :width]
    source = torch.cat([modality_parts[..., width:], text_parts[..., width:].expand(-1, num_frames, -1, -1)], dim=2)
    features = _attended(layer, modality, queries, source, bias)
    if chosen is not None:
        source, bias = source[:, chosen], bias[:, chosen]
        text, text_queries = (part if part.shape[1] == 1 else part[:, chosen] for part in (text, text_queries))
    text, text_queries = (part.expand(-1, source.shape[1], -1, -1) for part in (text, text_queries))
    return features, _attended(layer, text, text_queries, source, bias)


def _attended(
    layer: SelfAttentionLayer,
    tokens: Float[Tensor, "b t q c"],
    queries: Float[Tensor, "b t q c"],
    source: Float[Tensor, "b t k c2"],
    bias: Float[Tensor, "b t 1 1 k"],
) -> Float[Tensor, "b t q c"]:
    """The tokens after attention to `source`, which holds keys and then values in its last axis."""
    num_frames = tokens.shape[1]
    tokens, queries, source = (rearrange(part, "b t k c -> (b t) k c") for part in (tokens, queries, source))
    query, key, value = (layer.attention.split(part) for part in (queries, *source.chunk(2, dim=-1)))
    attended = attend(query, key, value, rearrange(bias, "b t one two k -> (b t) one two k"))
    return rearrange(layer.finish(tokens, attended), "(b t) q c -> b t q c", t=num_frames)


class MultimodalIntegration(nn.Module):
    """Concatenates the cues of a step, marks audio and vision with learned tokens, and applies self-attention.

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
        """Returns the comprehensive cues Q_m and which of them are real (False for padding of the text)."""
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
    """Learned mask queries that attend to the comprehensive cues of their step.

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
        # Small, so that the cues dominate the prompted queries from the first step.
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

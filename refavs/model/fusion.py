"""Fusion of the cues: temporal bi-modal transformers, multimodal integration, and the prompting of the mask queries.

All attention is within one second; only the cached memory links seconds.
"""

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.model.attention import CrossAttentionLayer, SelfAttentionLayer, hidden_bias

QUERY_STD = 0.02


class BimodalFusion(nn.Module):
    """Self-attention over one modality and the expression, second by second.

    Ref-AVS (arXiv 2407.10957v1), Eq. 1.
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
        modality: Float[Tensor, "b t n c"],
        text: Float[Tensor, "b l c"] | None,
        valid: Bool[Tensor, "b l"],
    ) -> tuple[Float[Tensor, "b t n c"], Float[Tensor, "b t l c"] | None]:
        """Returns the modality's features, related to the expression, and the expression's, aware of the modality."""
        num_expressions, num_frames, num_tokens, _ = modality.shape
        tokens, bias = modality, None
        if text is not None:
            tokens = torch.cat([modality, repeat(text, "b l c -> b t l c", t=num_frames)], dim=2)
            seen = torch.cat([valid.new_ones(num_expressions, num_tokens), valid], dim=1)
            bias = hidden_bias(repeat(seen, "b k -> (b t) 1 1 k", t=num_frames))
        tokens = rearrange(tokens, "b t k c -> (b t) k c")
        for layer in self.layers:
            tokens = layer(tokens, bias)
        tokens = rearrange(tokens, "(b t) k c -> b t k c", t=num_frames)
        if text is None:
            return tokens, None
        return tokens[:, :, :num_tokens], tokens[:, :, num_tokens:]


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
        num_expressions, num_frames = cues.shape[:2]
        source = rearrange(cues, "b t k c -> (b t) k c")
        queries = repeat(self.queries, "q c -> s q c", s=num_expressions * num_frames)
        bias = hidden_bias(repeat(seen, "b k -> (b t) 1 1 k", t=num_frames))
        for layer in self.layers:
            queries = layer(queries, source, bias)
        return rearrange(queries, "(b t) q c -> b t q c", t=num_frames)

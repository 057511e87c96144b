"""R2VOS's pixel decoder: pixels and words read each other at the coarsest level, from which a sentence is guessed."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.model.attention import Attention, sine_positions
from refavs.model.heads.parts.expression_input import Words, attended, read_words
from refavs.model.heads.parts.feedforward import Dropout, FeedForward
from refavs.model.heads.parts.language_pyramid import PYRAMID_GROUPS, PyramidConvolutions, by_clip, clip_attention

POOLED = 3  # vectors into which the words are pooled
SENTENCE_LAYERS = 3


class DualPyramid(nn.Module):
    """A feature pyramid whose coarsest level is filtered by the words, and the sentence that this level suggests.

    Args:
        in_channels: of each level, finest first.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, num_heads: int, feedforward_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.convolutions = PyramidConvolutions(in_channels, channels)
        self.block = DualBlock(channels, num_heads, feedforward_channels, dropout)
        self.filters = nn.Linear(channels, channels)
        self.enter, self.leave = (
            nn.Sequential(
                nn.Conv2d(width, channels, 1, bias=False), nn.GroupNorm(PYRAMID_GROUPS, channels), nn.ReLU()
            ) for width in (channels, POOLED * channels)
        )  # fmt: skip
        self.sentence = SentenceDecoder(channels, num_heads, feedforward_channels, dropout)
        for layer in (self.filters, self.enter[0], self.leave[0]):
            nn.init.kaiming_uniform_(cast(Tensor, layer.weight), a=1)
        nn.init.zeros_(self.filters.bias)

    def forward(
        self, levels: Sequence[Float[Tensor, "s _ _ _"]], words: Words
    ) -> tuple[Float[Tensor, "b t c h w"], Float[Tensor, "b c"]]:
        """Mask features, and the guessed sentence.

        Args:
            levels: maps of all frames, clip after clip; finest first.
        """
        number = len(words.tokens)
        joined = self.coarsest(levels[-1], words)
        guessed = self.sentence(joined)
        for level in reversed(range(len(levels) - 1)):
            entered = by_clip(self.convolutions.lateral[level](levels[level]), number)
            joined = self.convolutions.joined(level, entered, joined)
        features = self.convolutions.masks(rearrange(joined, "b t c h w -> (b t) c h w"))
        return by_clip(features, number), guessed

    def guess(self, coarsest: Float[Tensor, "s _ _ _"], words: Words) -> Float[Tensor, "b c"]:
        """Only the sentence."""
        return self.sentence(self.coarsest(coarsest, words))

    def coarsest(self, level: Float[Tensor, "s _ h w"], words: Words) -> Float[Tensor, "b t c h w"]:
        """The coarsest level after pixels and words have read each other, with what the words' filters select added."""
        entered = by_clip(self.convolutions.lateral[-1](level), len(words.tokens))
        maps, tokens = self.block(entered, words)
        filters = self.filters(pooled(tokens, words.valid))
        frames = by_clip(self.enter(rearrange(maps, "b t c h w -> (b t) c h w")), len(maps))
        selected = torch.einsum("btchw,bjc->btjchw", frames, filters)
        selected = self.leave(rearrange(selected, "b t j c h w -> (b t) (j c) h w"))
        return self.convolutions.joined(-1, maps + by_clip(selected, len(maps)), None)


class DualBlock(nn.Module):
    """Pixels of a clip attend to each other; then pixels and words attend to each other (post-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attention, self.from_words, self.from_pixels = (Attention(channels, num_heads) for _ in range(3))
        self.word_queries = nn.Linear(channels, channels)
        self.pixel_source = nn.Linear(channels, 2 * channels)
        self.feedforward, self.word_feedforward = (
            FeedForward(channels, feedforward_channels, dropout) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.word_norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(
        self, maps: Float[Tensor, "b t c h w"], words: Words
    ) -> tuple[Float[Tensor, "b t c h w"], Float[Tensor, "b l c"]]:
        shape = {"t": maps.shape[1], "h": maps.shape[3]}
        seen = clip_attention(self.self_attention, maps, 1)
        pixels = self.norms[0](rearrange(maps + self.dropout(seen), "b t c h w -> b (t h w) c"))
        places = places_of(maps)
        read = read_words(self.from_words, pixels + places, words)
        keys, values = self.pixel_source(pixels).chunk(2, dim=-1)
        shown = attended(self.from_pixels, self.word_queries(words.tokens) + words.places, keys + places, values)
        pixels = self.norms[1](pixels + self.dropout(read))
        pixels = self.norms[2](pixels + self.dropout(self.feedforward(pixels)))
        tokens = self.word_norms[0](words.tokens + self.dropout(shown))
        tokens = self.word_norms[1](tokens + self.dropout(self.word_feedforward(tokens)))
        return rearrange(pixels, "b (t h w) c -> b t c h w", **shape), tokens


class SentenceDecoder(nn.Module):
    """One learned query reads the pixels of a clip and becomes the sentence that they suggest."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(channels))
        self.layers = nn.ModuleList(
            SentenceLayer(channels, num_heads, feedforward_channels, dropout) for _ in range(SENTENCE_LAYERS)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b c"]:
        pixels = rearrange(maps, "b t c h w -> b (t h w) c") + places_of(maps)
        query = repeat(self.query, "c -> b 1 c", b=len(maps))
        for layer in self.layers:
            query = layer(query, pixels)
        return self.norm(rearrange(query, "b 1 c -> b c"))


class SentenceLayer(nn.Module):
    """A layer of an ordinary transformer decoder (post-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int, dropout: float) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = (Attention(channels, num_heads) for _ in range(2))
        self.feedforward = FeedForward(channels, feedforward_channels, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(self, query: Float[Tensor, "b 1 c"], pixels: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
        query = self.norms[0](query + self.dropout(self.self_attention(query, query)))
        query = self.norms[1](query + self.dropout(self.cross_attention(query, pixels)))
        return self.norms[2](query + self.dropout(self.feedforward(query)))


def places_of(maps: Float[Tensor, "b t c h w"]) -> Float[Tensor, "n c"]:
    """Position embeddings of the pixels of all frames."""
    return sine_positions(maps.shape[-2], maps.shape[-1], maps.shape[2], maps.device).repeat(maps.shape[1], 1)


def pooled(tokens: Float[Tensor, "b l c"], valid: Bool[Tensor, "b l"]) -> Float[Tensor, "b j c"]:
    """Means over thirds of the words, which overlap by a word where three does not divide their number.

    Differs from the release of R2VOS: padding is left out, so that an expression does not depend on the others of its
    batch. In the release's batches of one there is none.
    """
    count, rank = valid.sum(dim=1, keepdim=True), valid.cumsum(dim=1) - 1
    parts = []
    for part in range(POOLED):
        first, end = part * count // POOLED, -(-(part + 1) * count // POOLED)
        inside = (valid & (rank >= first) & (rank < end)).to(tokens.dtype)
        parts.append(torch.einsum("bl,blc->bc", inside, tokens) / inside.sum(dim=1, keepdim=True).clamp(min=1))
    return torch.stack(parts, dim=1)

"""The words and the sentence of an expression, and the sound that supplement B.3 adds to them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.attention import POSITION_TEMPERATURE, Attention, attend, hidden_bias
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.visual import FeatureProjection, Standardisation, Statistics


class Words(NamedTuple):
    """Tokens that pixels attend to.

    Attributes:
        tokens: their features.
        places: their position embeddings, which are added to the keys.
        valid: which of them are real.
    """

    tokens: Float[Tensor, "b l c"]
    places: Float[Tensor, "b l c"]
    valid: Bool[Tensor, "b l"]

    @property
    def bias(self) -> Float[Tensor, "b 1 1 l"]:
        """Hides the padding."""
        return hidden_bias(rearrange(self.valid, "b l -> b 1 1 l"))

    def repeated(self, num_frames: int) -> "Words":
        """The words once for each frame, frame after frame."""
        return Words(*(part.repeat_interleave(num_frames, dim=0) for part in self))


@dataclass
class ReadExpression:
    """What to look for: words, and a vector for each step that the queries start from."""

    words: Words
    sentence: Float[Tensor, "b t c"]


class ExpressionInput(nn.Module):
    """Brings the words and the sentence to the width of the head and adds the sound.

    Follows Ref-AVS (arXiv 2407.10957v1), supplement B.3: a linear projection brings the added modality to the width of
    the method's own, and the two are added. Open there: where. Here the sound of a step is added to the sentence of
    that step and, if `sound_in_words`, the mean of the clip to every word. Without text the sound replaces both.

    Differs: the sentence is the mean of the words, since a store has no pooled output of the text encoder.
    """

    def __init__(self, sizes: FeatureSizes, channels: int, dropout: float, sound_in_words: bool) -> None:
        super().__init__()
        audio, text = sizes.audio, sizes.text
        self.paths = {name: size.path for name, size in (("audio", audio), ("text", text)) if size is not None}
        self.sound_in_words = sound_in_words
        self.listen = FeatureProjection(audio.channels, channels) if audio else None
        self.standardise = Standardisation(text.channels) if text else None
        self.resize = None if text is None else nn.Sequential(
            nn.Linear(text.channels, channels), nn.LayerNorm(channels, eps=1e-12), nn.Dropout(dropout)
        )  # fmt: skip

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the mean and deviation of the channels of each stream."""
        if self.listen is not None:
            self.listen.standardise.set(*statistics[self.paths["audio"]])
        if self.standardise is not None:
            self.standardise.set(*statistics[self.paths["text"]])

    def forward(self, batch: Batch) -> ReadExpression:
        sound = None if self.listen is None else batch.of_expressions(self.listen(batch.audio))
        if self.standardise is None or self.resize is None:
            assert sound is not None
            words, valid = sound.mean(dim=1, keepdim=True), batch.valid.new_ones(len(batch), 1)
            return ReadExpression(Words(words, torch.zeros_like(words), valid), sound)
        valid = batch.valid[:, : batch.text_length]
        text = self.standardise(batch.text[:, : batch.text_length])
        mean = torch.where(valid[..., None], text, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)[:, None]
        words = self.resize(text)
        sentence = rearrange(self.resize(mean), "b c -> b 1 c").expand(-1, batch.audio.shape[1], -1)
        if sound is not None:
            sentence = sentence + sound
            words = words + sound.mean(dim=1, keepdim=True) if self.sound_in_words else words
        return ReadExpression(Words(words, word_places(valid, words.shape[-1]), valid), sentence)


def word_places(valid: Bool[Tensor, "b l"], channels: int) -> Float[Tensor, "b l c"]:
    """Sine position embedding of each word, as a share of the length of its expression."""
    count = valid.cumsum(dim=1).float()
    place = count / (count[:, -1:] + 1e-6) * 2 * math.pi
    steps = torch.arange(channels, device=valid.device) // 2 * 2 / channels
    angle = place[..., None] / POSITION_TEMPERATURE**steps
    waves = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1)
    return rearrange(waves, "b l i two -> b l (i two)")


def attended(
    attention: Attention, queries: Float[Tensor, "s q c"], keys: Float[Tensor, "s k c"],
    values: Float[Tensor, "s k c"], bias: Float[Tensor, "#s #m #q k"] | None = None,
) -> Float[Tensor, "s q c"]:  # fmt: skip
    """Attention whose keys, unlike its values, may contain positions."""
    inputs = (queries, keys, values)
    query, key, value = map(attention.heads, inputs, attention.parts())
    return attention.join(attend(query, key, value, bias))


def read_words(
    attention: Attention, pixels: Float[Tensor, "s n c"], words: Words
) -> Float[Tensor, "s n c"]:
    """Attention of the pixels to the words."""
    return attended(attention, pixels, words.tokens + words.places, words.tokens, words.bias)

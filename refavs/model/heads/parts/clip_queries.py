"""What ReferFormer and R2VOS share: the way from stored maps to an encoder that knows the words, and from queries to
masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.attention import Attention
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.baseline_inputs import MapInput
from refavs.model.heads.parts.baseline_masks import resized
from refavs.model.heads.parts.baseline_options import GROUPS
from refavs.model.heads.parts.box_decoder import BoxDecoder
from refavs.model.heads.parts.clip_matching import LOSSES, ClipPrediction, clip_losses
from refavs.model.heads.parts.deformable import DeformableEncoder, Shapes, shapes_of, unflattened
from refavs.model.heads.parts.dynamic_masks import DynamicMasks
from refavs.model.heads.parts.expression_input import ExpressionInput, Words, read_words
from refavs.model.heads.parts.rvos_options import ClipQueryOptions
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics

FINEST = 0  # of the maps; the encoder reads the others and a coarser one made from the last


@dataclass
class ClipOutput:
    """Predictions of the chosen steps, behind each decoder layer.

    Attributes:
        scores: of each query, the mean over the clip of its probability to be the object.
    """

    layers: list[ClipPrediction]
    scores: Float[Tensor, "b q"]


class Encoded(NamedTuple):
    """The pixels of the frames of each expression's clip, after the encoder.

    Attributes:
        tokens: level after level.
        levels: maps of the finest stored one, as it is, and of the three levels that the encoder shares with the store.
    """

    tokens: Float[Tensor, "s n c"]
    levels: list[Float[Tensor, "s _ _ _"]]
    shapes: Shapes


class ClipQueryHead(Head):
    """Base of heads whose queries follow one object through a clip. A subclass defines `forward` and a `pyramid`."""

    losses: ClassVar[tuple[str, ...]] = LOSSES

    def __init__(self, options: ClipQueryOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, heads, hidden = options.channels, options.num_heads, options.feedforward_channels
        self.maps = MapInput(sizes)
        self.expression = ExpressionInput(sizes, width, options.dropout, options.sound_in_words)
        stored = sizes.maps[FINEST + 1 :]
        kernels = [(size.channels, 1) for size in stored] + [(stored[-1].channels, 3)]
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, kernel, stride=kernel // 2 + 1, padding=kernel // 2),
                nn.GroupNorm(GROUPS, width),
            ) for channels, kernel in kernels
        )  # fmt: skip
        self.fusion = Attention(width, heads)
        self.encoder = DeformableEncoder(
            width, heads, options.encoder_layers, hidden, len(kernels), options.dropout
        )
        self.decoder = BoxDecoder(
            width, options.num_queries, heads, options.decoder_layers, hidden, len(kernels), options.dropout
        )
        self.masks = DynamicMasks(width)
        for projection in self.projections:
            convolution = cast(nn.Conv2d, cast(nn.Sequential, projection)[0])
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(cast(Tensor, convolution.bias))
        for part in (self.encoder, self.decoder.layers):
            start_evenly(part)

    def set_statistics(self, statistics: Statistics) -> None:
        self.maps.set_statistics(statistics)
        self.expression.set_statistics(statistics)

    def loss(self, output: ClipOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Losses of the query that is matched to the clip's object; see `clip_losses`."""
        return clip_losses(output.layers, target, self.options)

    def probs(self, output: ClipOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The masks of the best query of each clip, which are empty if its score is too low."""
        best = output.scores.max(dim=1)
        _, logits = output.layers[-1].of(best.indices)
        shown = rearrange(best.values >= self.options.choice("min_score"), "b -> b 1 1 1")
        return torch.where(shown, resized(logits, size).sigmoid(), 0.0)

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """In training only those to predict, which are the clip then."""
        return dict.fromkeys(self.maps.paths, steps) if self.training else {}

    def encoded(self, batch: Batch, words: Words, steps: ChosenSteps | None, once: Once | None) -> Encoded:
        """Early fusion multiplies each level by what its pixels read in the words; the encoder works frame by frame."""
        maps = list(self.maps(batch, self.clip(steps), once).values())
        frames = [rearrange(one, "u t d h w -> (u t) d h w") for one in (*maps[FINEST + 1 :], maps[-1])]
        projected = [
            of_expressions(projection(one), batch) for projection, one in zip(self.projections, frames, strict=True)
        ]
        fused = [self._fused(one, words) for one in projected]
        tokens, shapes = self.encoder(fused), shapes_of(fused)
        levels = unflattened(tokens, shapes)[:-1]
        finest = rearrange(batch.of_expressions(maps[FINEST]), "b t d h w -> (b t) d h w")
        return Encoded(tokens, [finest, *levels], shapes)

    def predicted(
        self, content: Float[Tensor, "b t c"], encoded: Encoded, features: Float[Tensor, "b u c h w"],
        steps: ChosenSteps | None,
    ) -> ClipOutput:  # fmt: skip
        """Classes of the clip, boxes and masks of the chosen steps.

        Args:
            content: what the queries of each step start from.
            features: mask features of the clip.
        """
        clip = self.clip(steps)
        content = content if clip is None else content[:, clip.index]
        chosen: Any = slice(None) if steps is None or clip is not None else steps.index
        layers, logits = [], None
        for layer in self.decoder(rearrange(content, "b t c -> (b t) 1 c"), encoded.tokens, encoded.shapes):
            queries, logits, boxes = (
                rearrange(part, "(b t) ... -> b t ...", b=len(content)) for part in layer
            )
            masks = self.masks(queries[:, chosen], features[:, chosen], boxes[:, chosen, :, :2].detach())
            layers.append(ClipPrediction(logits[:, chosen], boxes[:, chosen], masks))
        assert logits is not None
        return ClipOutput(layers, logits.detach().sigmoid().mean(dim=1))

    def clip(self, steps: ChosenSteps | None) -> ChosenSteps | None:
        """The steps that the pixel decoder and the scores connect: in training the chosen ones, otherwise all (None).

        The releases, too, train on a few frames of each video and predict whole ones.
        """
        return steps if self.training else None

    def _fused(self, maps: Float[Tensor, "s c h w"], words: Words) -> Float[Tensor, "s c h w"]:
        number, height = len(words.tokens), maps.shape[-2]
        pixels = rearrange(maps, "(b t) c h w -> b (t h w) c", b=number)
        read = pixels * read_words(self.fusion, pixels, words)
        return rearrange(read, "b (t h w) c -> (b t) c h w", h=height, w=maps.shape[-1])


def of_expressions(frames: Float[Tensor, "s c h w"], batch: Batch) -> Float[Tensor, "s2 c h w"]:
    """The frames of each expression's clip, from those of the distinct clips."""
    clips = rearrange(frames, "(u t) c h w -> u t c h w", u=len(batch.audio))
    return rearrange(batch.of_expressions(clips), "b t c h w -> (b t) c h w")


def start_evenly(part: nn.Module) -> None:
    """Xavier's weights for every matrix except those that decide where and how deformable attention reads."""
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1 and not name.endswith(("offsets.weight", "weights.weight", "embeddings")):
            nn.init.xavier_uniform_(parameter)

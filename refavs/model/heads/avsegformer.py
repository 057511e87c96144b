"""AVSegFormer: queries made from the sound, a deformable encoder of the pixels, and a gate of the sound on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.model.attention import Attention, attend, feedforward
from refavs.model.batch_cache import Once
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.parts.baseline_inputs import CueInput, MapInput
from refavs.model.heads.parts.baseline_masks import MaskConvolutions, by_frame, flat_pair, mean_of_frames, resized
from refavs.model.heads.parts.baseline_options import GROUPS, AVSegFormerOptions
from refavs.model.heads.parts.deformable import DeformableEncoder, shapes_of, unflattened
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import mask_bce
from refavs.model.options import LossConfig
from refavs.model.target import Target
from refavs.model.visual import Statistics

TINY = 0.002  # keeps the published Dice from a division by zero
FINEST = 0  # of the maps; the others are read by the encoder, the coarsest one first


@dataclass
class AVSegFormerOutput:
    """Mask logits, and the mean of the channels of the mask features, which has a loss of its own."""

    logits: Float[Tensor, "b t h w"]
    features: Float[Tensor, "b t _ _"]


class AVSegFormer(Head):
    """Follows AVSegFormer (arXiv 2307.01146) and its release; each step is segmented for itself.

    Differs: the features are frozen and standardised; by default Dice is smoothed and a cross-entropy added (see
    `AVSegFormerOptions`). The attention of the query generator has a single key, the cue, so that its queries and keys
    have no gradient there.
    """

    losses: ClassVar[tuple[str, ...]] = ("bce", "dice", "feature_dice")

    def __init__(self, options: AVSegFormerOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        width, heads = options.channels, options.num_heads
        self.maps = MapInput(sizes)
        self.cue = CueInput(sizes, width, lambda channels: nn.Linear(channels, width))
        self.projections = nn.ModuleDict({
            size.name: nn.Sequential(nn.Conv2d(size.channels, width, 1), nn.GroupNorm(GROUPS, width))
            for size in sizes.maps
        })  # fmt: skip
        self.encoder = DeformableEncoder(
            width, heads, options.encoder_layers, options.feedforward_channels, len(sizes.maps) - 1
        )
        self.query_embeddings = nn.Parameter(torch.randn(options.num_queries, width))
        self.generator = nn.ModuleList(
            GeneratorLayer(width, heads, options.generator_feedforward_channels)
            for _ in range(options.generator_layers)
        )
        self.queries = nn.Parameter(torch.randn(options.num_queries, width))
        self.decoder = nn.ModuleList(
            DecoderLayer(width, heads, options.feedforward_channels) for _ in range(options.decoder_layers)
        )
        self.lateral = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(GROUPS, width))
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()
        )
        self.gate = SoundGate(width, heads)
        self.mixing = QueryMixing(options.num_queries, options.mask_channels, width)
        self.masks = MaskConvolutions(width, scale=4)
        for part in (self.generator, self.decoder, self.encoder):
            for name, parameter in part.named_parameters():
                if parameter.ndim > 1 and not name.endswith(("offsets.weight", "weights.weight", "embeddings")):
                    nn.init.xavier_uniform_(parameter)

    def parts(self) -> dict[str, nn.Module]:
        return {
            "masks": nn.ModuleList([self.mixing, self.masks]), "query generator": self.generator,
            "decoder": self.decoder, "encoder": self,
        }  # fmt: skip

    def set_statistics(self, statistics: Statistics) -> None:
        self.maps.set_statistics(statistics)
        self.cue.set_statistics(statistics)

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """Only those to predict."""
        return dict.fromkeys(self.maps.paths, steps)

    def forward(self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None) -> AVSegFormerOutput:
        """The encoder runs once for each clip, the rest for each expression."""
        maps, cue = self.maps(batch, steps, once), self.cue(batch, steps)
        shape = {"b": len(batch), "t": cue.shape[1]}
        features, memory = self._pixels(maps)
        memory, features = (
            rearrange(batch.of_expressions(of_clip), "b t ... -> (b t) ...")
            for of_clip in (rearrange(one, "(u t) ... -> u t ...", t=shape["t"]) for one in (memory, features))
        )
        cue = rearrange(cue, "b t c -> (b t) 1 c")
        queries = self.query_embeddings.expand(len(cue), -1, -1)
        for layer in self.generator:
            queries = layer(queries, cue)
        queries = queries + self.queries
        for layer in self.decoder:
            queries = layer(queries, memory)
        gated = self.gate(features, cue)
        logits = self.masks(self.mixing(queries, gated))
        return AVSegFormerOutput(
            rearrange(logits, "(b t) h w -> b t h w", **shape),
            rearrange(gated.mean(dim=1), "(b t) h w -> b t h w", **shape),
        )

    def loss(self, output: AVSegFormerOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Dice of the masks and of the mask features, and the cross-entropy of the masks."""
        bce = mean_of_frames(mask_bce(*flat_pair(output.logits, target)), target)
        dice, features = (
            mean_of_frames(dice_of(*flat_pair(logits, target), smooth=self.options.choice("smooth_dice")), target)
            for logits in (output.logits, output.features)
        )
        total = dice + self.options.feature_weight * features + self.options.choice("bce") * bce
        return {"total": total, "bce": bce.detach(), "dice": dice.detach(), "feature_dice": features.detach()}

    def probs(self, output: AVSegFormerOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The sigmoid of the logits."""
        return resized(output.logits.float(), size).sigmoid()

    def _pixels(
        self, maps: dict[str, Float[Tensor, "u t _ _ _"]]
    ) -> tuple[Float[Tensor, "s c h w"], Float[Tensor, "s n c"]]:
        """Mask features, and the pixels of the encoder, of every frame."""
        projected = [
            self.projections[name](rearrange(one, "u t d h w -> (u t) d h w")) for name, one in maps.items()
        ]
        coarser = projected[:FINEST:-1]
        memory = self.encoder(coarser)
        finest = unflattened(memory, shapes_of(coarser))[-1]
        enlarged = nn.functional.interpolate(finest, size=projected[FINEST].shape[-2:], mode="bilinear")
        return self.smooth(self.lateral(projected[FINEST]) + enlarged), memory


class GeneratorLayer(nn.Module):
    """Queries see each other and the cue (post-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = (PlainAttention(channels, num_heads) for _ in range(2))
        self.feedforward = nn.Sequential(
            nn.Linear(channels, feedforward_channels), nn.GELU(), nn.Linear(feedforward_channels, channels)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, queries: Float[Tensor, "s q c"], cue: Float[Tensor, "s k c"]) -> Float[Tensor, "s q c"]:
        queries = self.norms[0](queries + self.self_attention(queries, queries))
        queries = self.norms[1](queries + self.cross_attention(queries, cue))
        return self.norms[2](queries + self.feedforward(queries))


class DecoderLayer(nn.Module):
    """Queries see each other and the pixels, which have no positions here (post-norm)."""

    def __init__(self, channels: int, num_heads: int, feedforward_channels: int) -> None:
        super().__init__()
        self.self_attention, self.cross_attention = (Attention(channels, num_heads) for _ in range(2))
        self.feedforward = feedforward(channels, feedforward_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, queries: Float[Tensor, "s q c"], memory: Float[Tensor, "s n c"]) -> Float[Tensor, "s q c"]:
        queries = self.norms[0](queries + self.self_attention(queries, queries))
        queries = self.norms[1](queries + self.cross_attention(queries, memory))
        return self.norms[2](queries + self.feedforward(queries))


class PlainAttention(nn.Module):
    """Multi-head attention without a bias."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels, bias=False) for _ in range(4))

    def forward(self, queries: Float[Tensor, "s q c"], source: Float[Tensor, "s k c"]) -> Float[Tensor, "s q c"]:
        parts = (self.query(queries), self.key(source), self.value(source))
        heads = (rearrange(part, "s k (m d) -> s m k d", m=self.num_heads) for part in parts)
        return self.out(rearrange(attend(*heads), "s m q d -> s q (m d)"))


class SoundGate(nn.Module):
    """The cue looks at the pixels and says how much of each channel passes."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(channels, channels, bias=False) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, features: Float[Tensor, "s c h w"], cue: Float[Tensor, "s 1 c"]) -> Float[Tensor, "s c h w"]:
        pixels = rearrange(features, "s c h w -> s (h w) c")
        parts = (self.query(cue), self.key(pixels), self.value(pixels))
        heads = (rearrange(part, "s k (m d) -> s m k d", m=self.num_heads) for part in parts)
        gate = self.out(rearrange(attend(*heads), "s m 1 d -> s (m d)")).sigmoid()
        return features * rearrange(gate, "s c -> s c 1 1")


class QueryMixing(nn.Module):
    """The masks of all queries, mixed at each pixel by three layers and added to the features that made them."""

    def __init__(self, num_queries: int, hidden_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([
            nn.Linear(num_queries, hidden_channels), nn.Linear(hidden_channels, hidden_channels),
            nn.Linear(hidden_channels, channels),
        ])  # fmt: skip

    def forward(self, queries: Float[Tensor, "s q c"], features: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
        return by_frame(self._mixed, queries, features)

    def _mixed(self, queries: Float[Tensor, "1 q c"], features: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
        first, second, last = (_linear(layer) for layer in self.layers)
        pixels = rearrange(features, "1 c h w -> (h w) c")
        # The first layer times the queries, and not times their masks: there are fewer channels than queries.
        mixed = nn.functional.linear(pixels, first[0] @ queries[0], first[1])
        for weight, bias in (second, last):
            mixed = nn.functional.linear(mixed.relu_(), weight, bias)
        return features + rearrange(mixed, "(h w) c -> 1 c h w", h=features.shape[2])


def _linear(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.weight, layer.bias


def dice_of(
    logits: Float[Tensor, "b t p"], labels: Float[Tensor, "b t p"], smooth: bool
) -> Float[Tensor, "b t"]:
    """Dice loss with squares in the denominator.

    Args:
        smooth: whether one pixel is added above and below, so that a frame without an object has a gradient.
    """
    probs = logits.sigmoid()
    overlap, both = (probs * labels).sum(dim=-1), probs.square().sum(dim=-1) + labels.sum(dim=-1)
    return 1 - (2 * overlap + 1) / (both + 1) if smooth else 1 - 2 * overlap / (both + TINY)

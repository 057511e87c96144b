"""EEMC, Expression Enhancing with Multimodal Cues: the trainable head on frozen visual, audio and text features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.errors import ConfigError
from refavs.model.batch_cache import Once
from refavs.model.decoder import EEMCOutput, MaskDecoder
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes
from refavs.model.heads.fusion import BimodalFusion, MultimodalIntegration, QueryPrompting
from refavs.model.heads.memory import emphasise_change
from refavs.model.memory_budget import require_memory
from refavs.model.options import ModelOptions, Trained
from refavs.model.visual import FeatureProjection, Statistics, VisualInput
from refavs.store.reader import FeatureStore


class PartSize(NamedTuple):
    """How many parameters of a part of the model are trained, and how many stay as they are."""

    part: str
    trained: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class EEMCConfig(ModelOptions):
    """`ModelOptions` and the sizes of the features the model will read."""

    sizes: FeatureSizes

    @classmethod
    def from_store(cls, store: FeatureStore, **options: Any) -> "EEMCConfig":
        """The configuration that fits `store`, with some options replaced.

        Raises:
            ConfigError: options that cannot be used.
            StoreError: the store lacks the maps that the model then reads.
        """
        trains_pixel_decoder = ModelOptions(**options).trains_pixel_decoder
        return cls(sizes=FeatureSizes.from_store(store, trains_pixel_decoder), **options)

    @property
    def width(self) -> int:
        """c, the channels of every token."""
        stored = {size.name: size.channels for size in self.sizes.maps}
        return self.channels or stored.get(MASKS, 256)

    @property
    def levels(self) -> list[str]:
        """What the model reads of the visual levels, as `batches` takes it: of a pixel decoder's maps those alone from
        which tokens, masks and the decoder's layers come."""
        if not self.sizes.has_mask_features:
            return self.sizes.levels
        needed = (MASKS, *LEVELS[: self.decoder_layers])
        return ["/".join(size.path.split("/")[3:]) for size in self.sizes.maps if size.name in needed]


@dataclass(frozen=True)
class Seconds:
    """Some of a clip's seconds, in rising order.

    Attributes:
        index: to take them from an axis of seconds.
        end: one after the last of them, known without asking a device.
    """

    index: Int[Tensor, "f"]
    end: int

    @classmethod
    def of(cls, seconds: Sequence[int], device: torch.device | str = "cpu") -> "Seconds":
        """The seconds named, to be used on `device`."""
        index = torch.tensor(seconds, dtype=torch.long)
        return cls(index.to(device, non_blocking=True), max(seconds) + 1)


class EEMC(nn.Module):
    """Segments the object an expression refers to in each second, from cached features.

    Follows Ref-AVS (arXiv 2407.10957v1), section 4. Differs: normalisation before each fusion layer, and sine positions
    on the visual tokens, both of which the paper leaves open.
    """

    def __init__(self, config: EEMCConfig) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        if width % heads or width % 4:
            raise ConfigError(
                f"the model's width {width} must be a multiple of 4 and of num_heads={heads}; choose another with "
                "--set model.channels=... or --set model.num_heads=..."
            )
        self.config = config
        sizes = config.sizes
        require_memory(config, sizes, torch.get_default_device())
        fusion = (width, config.num_layers, heads, config.feedforward_channels, config.dropout)
        self.visual = VisualInput(
            sizes, width, config.visual_downsample, min(config.decoder_layers, len(LEVELS)),
            as_stored=config.decoder_weights != "random",
        )
        self.visual_fusion = BimodalFusion(*fusion)
        self.audio = FeatureProjection(sizes.audio.channels, width) if config.audio else None
        self.audio_fusion = BimodalFusion(*fusion) if config.audio else None
        self.text = FeatureProjection(sizes.text.channels, width) if config.text else None
        self.integration = MultimodalIntegration(
            *fusion, modality_tokens=config.modality_tokens, audio=config.audio
        )
        self.prompting = QueryPrompting(*fusion, num_queries=config.num_queries)
        self.decoder = MaskDecoder(
            width, heads, config.decoder_layers, config.decoder_feedforward_channels, config.dropout,
            num_queries=config.num_queries, mask_channels=self.visual.mask_channels,
            level_channels=self.visual.level_channels,
        )
        self._freeze()

    def parts(self) -> dict[str, nn.Module]:
        """The parts that are trained or not, by name; a module in two of them belongs to the first."""
        parts = {"class head": self.decoder.class_head, "transformer decoder": self.decoder}
        if self.visual.pixel_decoder is not None:
            parts["pixel decoder"] = self.visual.pixel_decoder
        return {**parts, "fusion": self}

    def trained_parameters(self) -> list[nn.Parameter]:
        """What an optimiser is given."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def part_sizes(self) -> list[PartSize]:
        """Parameters of each part, fusion first."""
        sizes, counted = [], set()
        for name, part in self.parts().items():
            own = [parameter for parameter in part.parameters() if id(parameter) not in counted]
            counted |= {id(parameter) for parameter in own}
            trained = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            sizes.append(PartSize(name, trained, sum(parameter.numel() for parameter in own) - trained))
        return [sizes[-1], *sizes[1:-1], sizes[0]]

    def _freeze(self) -> None:
        """Chooses what is trained, by modules.

        Raises:
            ConfigError: a pixel decoder would stay at random weights, or there is none to train.
        """
        trained, pixel_decoder = self.config.trained.split("+"), self.visual.pixel_decoder
        if pixel_decoder is None and "pixel_decoder" in trained:
            raise ConfigError(
                "the maps are those of a pixel decoder that ran before, so that none can be trained; give the sizes of "
                "the backbone's maps, or take --set model.trained=fusion+transformer_decoder"
            )
        if pixel_decoder is not None and "pixel_decoder" not in trained and self.config.decoder_weights == "random":
            raise ConfigError(
                "the store has only the backbone's maps and the pixel decoder would stay at random weights; add its "
                "maps by refavs-extract --levels pixel_decoder, train it by --set "
                f"model.trained={get_args(Trained)[-1]}, or take --set model.decoder_weights=mask2former"
            )
        self._frozen = [
            part for name, part in (("transformer_decoder", self.decoder), ("pixel_decoder", pixel_decoder))
            if part is not None and name not in trained
        ]
        for part in self._frozen:
            part.requires_grad_(False)
        self.decoder.class_head.requires_grad_(True)

    def train(self, mode: bool = True) -> "EEMC":
        """As of any module; dropout stays off in the parts that are not trained."""
        super().train(mode)
        for part in self._frozen:
            for child in part.children():  # the decoder itself has to know, for its deep supervision
                child.eval()
        return self

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the per-channel mean and deviation of each stream from `FeatureStore.statistics`, before training."""
        self.visual.set_statistics(statistics)
        for projection, size in ((self.audio, self.config.sizes.audio), (self.text, self.config.sizes.text)):
            if projection is not None:
                projection.standardise.set(*statistics[size.path])

    def forward(
        self, batch: Batch, frames: Seconds | None = None, once: Once | None = None
    ) -> EEMCOutput:
        """Predicts masks and classes.

        Args:
            frames: the seconds to decode, all of them by default. The cached memory sees every second in any case, so
                that a second's prediction does not depend on which others are decoded.
            once: shares what is frozen with the other heads that read this batch and decode the same seconds.
        """
        seconds, chosen, name_of_seconds = slice(None), None, "all"
        if frames is not None and self.config.memory:
            # The memory looks back from the chosen seconds, never ahead.
            seconds, chosen, name_of_seconds = slice(frames.end), frames.index, "until the last"
        elif frames is not None:
            seconds, name_of_seconds = frames.index, "chosen"  # no second needs another
        maps = {name: batch.visual[name][:, seconds] for name in self.visual.names}
        visual = self.visual(maps, chosen, once, name_of_seconds)
        audio, text, valid = self._audio(batch.audio[:, seconds]), *self._text(batch)
        cues = self.cues(audio, visual.tokens, text, valid, batch.clip, chosen)
        queries = self.prompting(*self.integration(*cues, valid))
        return self.decoder(queries, visual.mask_features, visual.levels, batch.groups)

    def cues(
        self,
        audio: Float[Tensor, "u t one c"] | None,
        visual: Float[Tensor, "u t n c"],
        text: Float[Tensor, "b l c"] | None,
        valid: Bool[Tensor, "b l"],
        clip: Int[Tensor, "b"],
        frames: Int[Tensor, "f"] | None = None,
    ) -> tuple[Float[Tensor, "b f one c"] | None, Float[Tensor, "b f n c"], Float[Tensor, "b f l c"] | None]:
        """Q_A, Q_V and Q_T of the chosen seconds (Eq. 1-3 and the mean of the expression's features)."""
        texts = [] if text is None else [rearrange(text, "b l c -> b 1 l c")]
        fused = []
        for modality, fusion in ((audio, self.audio_fusion), (visual, self.visual_fusion)):
            if modality is None or fusion is None:
                fused.append(None)
                continue
            features, aware = fusion(modality, text, valid, clip, frames)
            cue = emphasise_change(features, self.config.beta) if self.config.memory else features
            fused.append(cue if frames is None else cue[:, frames])
            texts += [] if aware is None else [aware]
        mean = sum(texts[1:], start=texts[0]) / len(texts) if texts else None
        return fused[0], fused[1], mean

    def _audio(self, audio: Float[Tensor, "u t _"]) -> Float[Tensor, "u t 1 c"] | None:
        if self.audio is None:
            return None
        return rearrange(self.audio(audio.relu() if self.config.rectified_audio else audio), "u t c -> u t 1 c")

    def _text(self, batch: Batch) -> tuple[Float[Tensor, "b l c"] | None, Bool[Tensor, "b l"]]:
        """The expressions without the places that are padding in all of them."""
        if self.text is None:
            return None, batch.valid[:, :0]
        return self.text(batch.text[:, : batch.text_length]), batch.valid[:, : batch.text_length]

"""EEMC, Expression Enhancing with Multimodal Cues: the trainable head on frozen visual, audio and text features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from refavs.data.batches import Batch
from refavs.data.maps import Maps
from refavs.errors import ConfigError
from refavs.model.batch_cache import Once
from refavs.model.decoder import EEMCOutput, MaskDecoder, predict
from refavs.model.feature_sizes import LEVELS, MASKS, FeatureSizes
from refavs.model.heads.options import EEMCOptions, Trained
from refavs.model.heads.parts.fusion import BimodalFusion, MultimodalIntegration, QueryPrompting
from refavs.model.heads.parts.memory import CarriedMemory, emphasise_change
from refavs.model.heads.protocol import ChosenSteps, Head
from refavs.model.losses import eemc_loss
from refavs.model.options import LossConfig
from refavs.model.pretrained import Mask2Former, load_decoders, refuse_other_maps
from refavs.model.target import Target
from refavs.model.visual import FeatureProjection, Statistics, VisualInput


class EEMC(Head):
    """Segments the object an expression refers to in each step, from cached features.

    Follows Ref-AVS (arXiv 2407.10957v1), section 4. Differs: fusion layers are pre-norm and visual tokens have sine
    positions; the paper specifies neither.
    """

    losses: ClassVar[tuple[str, ...]] = ("bce", "dice", "classification")
    remembers: ClassVar[bool] = True

    def __init__(self, options: EEMCOptions, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        audio, text = sizes.audio if options.audio else None, sizes.text if options.text else None
        stored = {size.name: size.channels for size in sizes.maps}
        width, heads = options.channels or stored.get(MASKS, 256), options.num_heads
        if width % heads or width % 4:
            raise ConfigError(
                f"the model's width {width} must be a multiple of 4 and of model.num_heads={heads}; change it with "
                "--set model.channels=... or --set model.num_heads=..."
            )
        fusion = (width, options.num_layers, heads, options.feedforward_channels, options.dropout)
        self.visual = VisualInput(
            sizes, width, options.visual_downsample, min(options.decoder_layers, len(LEVELS)),
            as_stored=options.decoder_weights != "random",
        )
        self.visual_fusion = BimodalFusion(*fusion)
        self.audio = FeatureProjection(audio.channels, width) if audio else None
        self.audio_fusion = BimodalFusion(*fusion) if audio else None
        self.text = FeatureProjection(text.channels, width) if text else None
        self.integration = MultimodalIntegration(
            *fusion, modality_tokens=options.modality_tokens, audio=audio is not None
        )
        self.prompting = QueryPrompting(*fusion, num_queries=options.num_queries)
        self.decoder = MaskDecoder(
            width, heads, options.decoder_layers, options.decoder_feedforward_channels, options.dropout,
            num_queries=options.num_queries, mask_channels=self.visual.mask_channels,
            level_channels=self.visual.level_channels,
        )
        self._freeze()

    def parts(self) -> dict[str, nn.Module]:
        """The parts that can be trained or frozen, by name; a module in two of them belongs to the first."""
        parts = {"class head": self.decoder.class_head, "transformer decoder": self.decoder}
        if self.visual.pixel_decoder is not None:
            parts["pixel decoder"] = self.visual.pixel_decoder
        return {**parts, "fusion": self}

    def _freeze(self) -> None:
        """Freezes the modules that the options exclude from training.

        Raises:
            ConfigError: a pixel decoder would keep random weights, or there is none to train.
        """
        trained, pixel_decoder = self.options.trained.split("+"), self.visual.pixel_decoder
        if pixel_decoder is None and "pixel_decoder" in trained:
            raise ConfigError(
                "the maps are the output of a pixel decoder, so none can be trained; pass the sizes of the backbone's "
                "maps, or --set model.trained=fusion+transformer_decoder"
            )
        if pixel_decoder is not None and "pixel_decoder" not in trained and self.options.decoder_weights == "random":
            raise ConfigError(
                "the store has only the backbone's maps, and the pixel decoder would keep random weights; add its maps "
                "with refavs-extract --levels pixel_decoder, train it with --set "
                f"model.trained={get_args(Trained)[-1]}, or pass --set model.decoder_weights=mask2former"
            )
        self._frozen = [
            part for name, part in (("transformer_decoder", self.decoder), ("pixel_decoder", pixel_decoder))
            if part is not None and name not in trained
        ]
        for part in self._frozen:
            part.requires_grad_(False)
        self.decoder.class_head.requires_grad_(True)

    def train(self, mode: bool = True) -> "EEMC":
        """As `nn.Module.train`, but dropout stays off in the frozen parts."""
        super().train(mode)
        for part in self._frozen:
            for child in part.children():  # not the decoder itself: its mode switches deep supervision on
                child.eval()
        return self

    def steps_read(self, steps: Sequence[int]) -> Mapping[str, Sequence[int]]:
        """The chosen steps; for the memory also the tokens of those before, or all maps of a pixel decoder."""
        *names, pooled = self.visual.names
        if not self.options.memory:
            return dict.fromkeys(names, steps)
        before = range(max(steps) + 1)
        if self.visual.pixel_decoder is not None:
            return dict.fromkeys(names, before)
        return dict.fromkeys(names, steps) | {pooled: before}

    def set_statistics(self, statistics: Statistics) -> None:
        """Takes the per-channel mean and standard deviation from `FeatureStore.statistics`; call it before training."""
        self.visual.set_statistics(statistics)
        for projection, size in ((self.audio, self.sizes.audio), (self.text, self.sizes.text)):
            if projection is not None and size is not None:
                projection.standardise.set(*statistics[size.path])

    def load_pretrained(self, folder: Path, encoders: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Loads Mask2Former's decoders; stored pixel decoder maps must come from the same weights."""
        checkpoint = Mask2Former(folder)
        if not self.options.trains_pixel_decoder:
            refuse_other_maps(self.sizes, checkpoint, encoders)
        return load_decoders(self.decoder, self.visual.pixel_decoder, checkpoint, self.options)

    @classmethod
    def pretrained_stamp(cls, folder: Path) -> str:
        """The digest of Mask2Former's weights file."""
        return Mask2Former(folder).stamp

    def forward(
        self, batch: Batch, steps: ChosenSteps | None = None, once: Once | None = None,
        past: Sequence[CarriedMemory] | None = None,
    ) -> EEMCOutput:  # fmt: skip
        """Predicts masks and classes.

        The cached memory reads every step before the chosen ones, so a step's prediction does not depend on which
        other steps are decoded.

        Args:
            past: the memory of sound and picture from the steps before this piece of a video; it takes in the piece.
        """
        read, chosen, name = slice(None), None, "all"
        if steps is not None and self.options.memory:
            # The memory reads only steps before the chosen ones.
            read, chosen, name = slice(steps.end), steps.index, "until the last"
        elif steps is not None:
            read, name = steps.index, "chosen"  # without memory, no step depends on another
        maps = Maps.of(batch.visual).part(self.visual.names, read)
        visual = self.visual(maps, chosen, once, name)
        audio, text, valid = self._audio(batch.audio[:, read]), *self._text(batch)
        cues = self.cues(audio, visual.tokens, text, valid, batch.clip, chosen, past)
        queries = self.prompting(*self.integration(*cues, valid))
        return self.decoder(queries, visual.mask_features, visual.levels, batch.groups)

    def next_piece(self, batch: Batch, past: Any = None, window: int | None = None) -> tuple[EEMCOutput, Any]:
        """The cached memory covers the pieces before; masks do not depend on where the video is cut."""
        past = past or (CarriedMemory(window), CarriedMemory(window))
        return self(batch, past=past), past

    def loss(self, output: EEMCOutput, target: Target, weights: LossConfig) -> dict[str, Float[Tensor, ""]]:
        """Losses of the matched queries; see `eemc_loss`."""
        return eemc_loss(output, target, weights)

    def probs(self, output: EEMCOutput, size: tuple[int, int] | None = None) -> Float[Tensor, "b t _ _"]:
        """The masks of all queries, weighted by their class; see `predict`."""
        return predict(output, size)

    def cues(
        self,
        audio: Float[Tensor, "u t one c"] | None,
        visual: Float[Tensor, "u t n c"],
        text: Float[Tensor, "b l c"] | None,
        valid: Bool[Tensor, "b l"],
        clip: Int[Tensor, "b"],
        chosen: Int[Tensor, "f"] | None = None,
        past: Sequence[CarriedMemory] | None = None,
    ) -> tuple[Float[Tensor, "b f one c"] | None, Float[Tensor, "b f n c"], Float[Tensor, "b f l c"] | None]:
        """Q_A, Q_V and Q_T of the chosen steps (Eq. 1-3 and the mean of the expression's features)."""
        texts = [] if text is None else [rearrange(text, "b l c -> b 1 l c")]
        fused = []
        for number, (modality, fusion) in enumerate(((audio, self.audio_fusion), (visual, self.visual_fusion))):
            if modality is None or fusion is None:
                fused.append(None)
                continue
            features, aware = fusion(modality, text, valid, clip, chosen)
            emphasise = emphasise_change if past is None else past[number].emphasise_change
            cue = emphasise(features, self.options.beta) if self.options.memory else features
            fused.append(cue if chosen is None else cue[:, chosen])
            texts += [] if aware is None else [aware]
        mean = sum(texts[1:], start=texts[0]) / len(texts) if texts else None
        return fused[0], fused[1], mean

    def _audio(self, audio: Float[Tensor, "u t _"]) -> Float[Tensor, "u t 1 c"] | None:
        if self.audio is None:
            return None
        return rearrange(self.audio(audio.relu() if self.options.rectified_audio else audio), "u t c -> u t 1 c")

    def _text(self, batch: Batch) -> tuple[Float[Tensor, "b l c"] | None, Bool[Tensor, "b l"]]:
        """The features of the expressions, cut to the longest one of the batch, and which tokens are real."""
        if self.text is None:
            return None, batch.valid[:, :0]
        return self.text(batch.text[:, : batch.text_length]), batch.valid[:, : batch.text_length]

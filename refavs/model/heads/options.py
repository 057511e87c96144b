"""The options of the built-in heads, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from refavs.errors import SettingError
from refavs.model.feature_sizes import LEVELS, MASKS, STAGES, FeatureSizes, Needs
from refavs.model.options import HeadOptions, require

FLOAT_BYTES = 4
Trained = Literal["fusion", "fusion+transformer_decoder", "fusion+transformer_decoder+pixel_decoder"]
DecoderWeights = Literal["random", "mask2former"]


@dataclass(frozen=True, kw_only=True)
class EEMCOptions(HeadOptions):
    """The choices of EEMC; the defaults are the paper's.

    Attributes:
        beta: sensitivity to change against the cached memory (Eq. 2); 0 equals no memory.
        num_layers: N_L, layers of each of the four fusion transformers.
        num_queries: N_q, mask queries.
        num_heads: attention heads, of the fusion and of the mask decoder.
        channels: width c of the fusion and the decoder; None takes the width of the stored mask features, or 256 where
            the store has only the backbone's maps.
        feedforward_channels: hidden width in the fusion transformers.
        visual_downsample: factor, along each side, from the mask features (stride 4) to the visual tokens, each of
            which is the mean of a square.
        rectified_audio: True takes the ReLU of the stored sound features, which gives the form of torchvggish; VGGish
            is stored signed.
        memory: False leaves the cached memory out, an ablation.
        modality_tokens: False leaves out the tokens that mark audio and vision, an ablation.
        decoder_layers: layers of the mask decoder, read in turn from strides 32, 16 and 8; 0 predicts the masks
            straight from the prompted queries.
        decoder_feedforward_channels: hidden width in the mask decoder.
        dropout: share of the activations dropped in training.
        trained: which parts are trained; the class head always is, because no pretrained one has its classes. The
            model has a pixel decoder where that is trained, or where the store has only the backbone's maps.
        decoder_weights: what both decoders start from: `random`, or `mask2former`, whose weights `refavs-sweep` reads
            from `--weights-dir`. The decoders then get the maps as Mask2Former does, not standardised.
    """

    head: str = "eemc"
    beta: float = 1.0
    num_layers: int = 4
    num_queries: int = 100
    num_heads: int = 8
    channels: int | None = None
    feedforward_channels: int = 1024
    visual_downsample: int = 8
    rectified_audio: bool = False
    memory: bool = True
    modality_tokens: bool = True
    decoder_layers: int = 9
    decoder_feedforward_channels: int = 2048
    dropout: float = 0.0
    trained: Trained = "fusion+transformer_decoder"
    decoder_weights: DecoderWeights = "random"

    implementation: ClassVar[str] = "refavs.model.heads.eemc:EEMC"
    step_settings: ClassVar[tuple[str, ...]] = ("num_queries", "decoder_layers")
    layer_settings: ClassVar[tuple[str, ...]] = ("num_layers", "decoder_layers")
    unseen_settings: ClassVar[tuple[str, ...]] = ("num_heads",)
    free_settings: ClassVar[tuple[str, ...]] = ("beta",)
    weights_setting: ClassVar[str] = "decoder_weights"
    curve_setting: ClassVar[str] = "beta"
    curve_words: ClassVar[str] = "β, sensitivity to change against the cached memory (Eq. 2); 0 is a head without it"
    ablations: ClassVar[Mapping[str, str]] = {
        "text": "text", "audio": "audio", "memory": "cached memory", "modality_tokens": "modality encoding",
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.trained == "fusion" and self.decoder_weights == "random":
            raise SettingError(
                "trained is fusion, which would leave the transformer decoder at random weights; take --set "
                "model.decoder_weights=mask2former, or --set model.trained=fusion+transformer_decoder",
                "trained", "decoder_weights",
            )  # fmt: skip
        require(self, "beta", "a finite number, 1 in the paper", math.isfinite)
        require(self, "num_layers num_queries num_heads feedforward_channels visual_downsample "
                "decoder_feedforward_channels", "a whole number from 1 up", lambda value: value >= 1)  # fmt: skip
        require(self, "decoder_layers", "a whole number from 0 up", lambda value: value >= 0)
        require(self, "channels", "a whole number from 4 up, or null", lambda value: value >= 1)
        require(self, "dropout", "from 0 to below 1", lambda value: 0 <= value < 1)

    @property
    def trains_pixel_decoder(self) -> bool:
        """Whether the pixel decoder is trained, from the backbone's maps."""
        return self.trained.endswith("+pixel_decoder")

    def needs(self) -> Needs:
        """The maps of the pixel decoder, as many as the mask decoder has layers for, or those of the backbone."""
        if self.trains_pixel_decoder:
            advice = ("a pixel decoder is trained on these; add them by the same refavs-extract command with --levels "
                      "backbone, or train none by --set model.trained=fusion+transformer_decoder")  # fmt: skip
            return Needs(maps=(STAGES,), audio=bool(self.audio), text=bool(self.text), sound_by_second=True,
                         advice=advice)
        decoded = (MASKS, *reversed(LEVELS[: self.decoder_layers]))
        return Needs(maps=(decoded, STAGES), audio=bool(self.audio), text=bool(self.text),
                     sound_by_second=True)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """Mask logits and their gradients: those of every query before each decoder layer and after the last one, at
        stride 4."""
        finest = sizes.maps[0]
        logits = self.num_queries * finest.height * finest.width * (self.decoder_layers + 1)
        return 2 * FLOAT_BYTES * logits * num_expressions * num_frames

    @classmethod
    def removed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """As of any head; beta = 0 is no memory."""
        return super().removed({**settings, **({"memory": False} if settings.get("beta") == 0 else {})})


@dataclass(frozen=True, kw_only=True)
class ReleasedOptions(HeadOptions):
    """The sizes of the paper's public release, which is evaluated, not trained; `train.init` names its checkpoint.

    Attributes:
        channels: width of the pixel decoder and the mask decoder.
        num_queries: N_q, mask queries.
        decoder_layers: layers of the mask decoder.
        decoder_feedforward_channels: hidden width in the mask decoder.
    """

    head: str = "released"
    channels: int = 256
    num_queries: int = 100
    decoder_layers: int = 9
    decoder_feedforward_channels: int = 2048

    implementation: ClassVar[str] = "refavs.model.heads.released:ReleasedHead"
    trainable: ClassVar[bool] = False
    layer_settings: ClassVar[tuple[str, ...]] = ("decoder_layers",)

    def __post_init__(self) -> None:
        require(self, "channels num_queries decoder_layers decoder_feedforward_channels", "a whole number from 1 up",
                lambda value: value >= 1)  # fmt: skip

    def needs(self) -> Needs:
        """The maps of the backbone: its pixel decoder was trained."""
        return Needs(maps=(STAGES,), advice="extract a store of its own by refavs-extract --preset released "
                                            "--levels backbone")  # fmt: skip

"""The options of the built-in heads; does not import torch."""

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
    """The options of EEMC; the defaults are the paper's.

    Attributes:
        beta: sensitivity to change from the cached memory (Eq. 2); 0 is the same as no memory.
        num_layers: N_L, number of layers in each of the four fusion transformers.
        num_queries: N_q, number of mask queries.
        num_heads: number of attention heads in the fusion and the mask decoder.
        channels: width c of the fusion and the decoder; None uses the width of the stored mask features, or 256 if the
            store has only the backbone's maps.
        feedforward_channels: hidden width in the fusion transformers.
        visual_downsample: downsampling factor along each side from the mask features (stride 4) to the visual tokens;
            a token is the mean of a square.
        rectified_audio: True applies ReLU to the stored audio features, which gives the form of torchvggish; VGGish
            features are stored signed.
        memory: False removes the cached memory (an ablation).
        modality_tokens: False removes the tokens that mark audio and vision (an ablation).
        decoder_layers: number of mask decoder layers, which read strides 32, 16 and 8 in turn; 0 predicts the masks
            directly from the prompted queries.
        decoder_feedforward_channels: hidden width in the mask decoder.
        dropout: fraction of the activations dropped in training.
        trained: which parts are trained. The class head always is, because no pretrained one has its classes. The
            model has a pixel decoder if that is trained or if the store has only the backbone's maps.
        decoder_weights: initial weights of both decoders: `random`, or `mask2former`, which `refavs-sweep` reads from
            `--weights-dir`. With `mask2former` the decoders get the maps as stored, not standardised.
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
    curve_words: ClassVar[str] = "β, sensitivity to change from the cached memory (Eq. 2); 0 is a head without memory"
    ablations: ClassVar[Mapping[str, str]] = {
        "text": "text", "audio": "audio", "memory": "cached memory", "modality_tokens": "modality encoding",
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.trained == "fusion" and self.decoder_weights == "random":
            raise SettingError(
                "trained is fusion, which would leave the transformer decoder at random weights; pass --set "
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
        """Whether a pixel decoder is trained on the backbone's maps."""
        return self.trained.endswith("+pixel_decoder")

    def needs(self) -> Needs:
        """The pixel decoder's maps for which the mask decoder has layers, or the backbone's maps."""
        if self.trains_pixel_decoder:
            advice = ("a pixel decoder is trained on them; add them with the same refavs-extract command and --levels "
                      "backbone, or train none with --set model.trained=fusion+transformer_decoder")  # fmt: skip
            return Needs(maps=(STAGES,), audio=bool(self.audio), text=bool(self.text), sound_by_step=True,
                         advice=advice)
        decoded = (MASKS, *reversed(LEVELS[: self.decoder_layers]))
        return Needs(maps=(decoded, STAGES), audio=bool(self.audio), text=bool(self.text),
                     sound_by_step=True)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """Bytes of the mask logits and their gradients: one mask per query at stride 4, before each decoder layer and
        after the last."""
        finest = sizes.maps[0]
        logits = self.num_queries * finest.height * finest.width * (self.decoder_layers + 1)
        return 2 * FLOAT_BYTES * logits * num_expressions * num_frames

    @classmethod
    def removed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """As `HeadOptions.removed`; beta = 0 also counts as no memory."""
        return super().removed({**settings, **({"memory": False} if settings.get("beta") == 0 else {})})


@dataclass(frozen=True, kw_only=True)
class ReleasedOptions(HeadOptions):
    """The sizes of the paper's public release, which is only evaluated; `train.init` names its checkpoint.

    Attributes:
        channels: width of the pixel decoder and the mask decoder.
        num_queries: N_q, number of mask queries.
        decoder_layers: number of layers in the mask decoder.
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
        """The backbone's maps, because the release trained its own pixel decoder."""
        return Needs(maps=(STAGES,), advice="extract a separate store with refavs-extract --preset released "
                                            "--levels backbone")  # fmt: skip

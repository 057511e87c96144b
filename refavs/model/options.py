"""The settings of the head and of its losses, kept apart from both so that grids are read without torch."""

import math
from dataclasses import dataclass
from typing import Literal

from refavs.errors import SettingError

Trained = Literal["fusion", "fusion+transformer_decoder", "fusion+transformer_decoder+pixel_decoder"]
DecoderWeights = Literal["random", "mask2former"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The choices of EEMC that do not depend on the store; the defaults are the paper's.

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
        text: False leaves the expression out, an ablation.
        audio: False leaves the sound out, an ablation.
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
        variant: `released` computes as the paper's public release does, whose checkpoint `train.init` names; see
            `released.ReleasedHead`.
    """

    beta: float = 1.0
    num_layers: int = 4
    num_queries: int = 100
    num_heads: int = 8
    channels: int | None = None
    feedforward_channels: int = 1024
    visual_downsample: int = 8
    text: bool = True
    audio: bool = True
    rectified_audio: bool = False
    memory: bool = True
    modality_tokens: bool = True
    decoder_layers: int = 9
    decoder_feedforward_channels: int = 2048
    dropout: float = 0.0
    trained: Trained = "fusion+transformer_decoder"
    decoder_weights: DecoderWeights = "random"
    variant: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        if self.trained == "fusion" and self.decoder_weights == "random":
            raise SettingError(
                "trained is fusion, which would leave the transformer decoder at random weights; take --set "
                "model.decoder_weights=mask2former, or --set model.trained=fusion+transformer_decoder",
                "trained", "decoder_weights",
            )  # fmt: skip
        if not math.isfinite(self.beta):
            raise SettingError(f"beta is {self.beta}; accepted: a finite number, 1 in the paper", "beta")
        least = dict.fromkeys(
            ("num_layers", "num_queries", "num_heads", "feedforward_channels", "visual_downsample",
             "decoder_feedforward_channels"), 1,
        ) | {"decoder_layers": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SettingError(f"{name} is {getattr(self, name)}; accepted: a whole number from {minimum} up", name)
        if self.channels is not None and self.channels < 1:
            raise SettingError(f"channels is {self.channels}; accepted: a whole number from 4 up, or null", "channels")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"dropout is {self.dropout}; accepted: from 0 to below 1", "dropout")

    @property
    def trains_pixel_decoder(self) -> bool:
        """Whether the pixel decoder is trained, from the backbone's maps; that of the release was."""
        return self.trained.endswith("+pixel_decoder") or self.variant == "released"


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses.

    Ref-AVS (arXiv 2407.10957v1), supplement B.1, gives bce, dice and classification; the rest is open there.

    Attributes:
        bce: weight of the binary cross-entropy of the masks.
        dice: weight of the Dice loss of the masks.
        classification: weight of the loss of the classes.
        no_object: class weight of the unmatched queries of a frame with an object.
        null_frame: class weight of all queries of a frame without one. With one weight for both, either nulls were
            segmented or everything collapsed to empty.
        matching: weight of the class in the choice of the matched query. With the weight that Mask2Former takes, that
            of the loss, the query with the nearest mask is trained towards the object whatever the expression says, and
            queries become object proposals rather than answers. A high weight matches the query that claims to be the
            answer.
        num_points: points at which masks are compared, most of them where the prediction is least certain; 0 compares
            all pixels.
        oversampling: candidates drawn for each point that is chosen for its uncertainty.
        importance: share of the points that are chosen for their uncertainty; the others are uniform.
        deep_supervision: whether the predictions before each decoder layer are trained too.
    """

    bce: float = 5.0
    dice: float = 5.0
    classification: float = 2.0
    no_object: float = 0.1
    null_frame: float = 1.0
    matching: float = 2.0
    num_points: int = 12544
    oversampling: float = 3.0
    importance: float = 0.75
    deep_supervision: bool = True

    def __post_init__(self) -> None:
        for name in ("bce", "dice", "classification", "no_object", "null_frame", "matching"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name} is {getattr(self, name)}; accepted: a number from 0 up", name)
        if self.num_points < 0:
            raise SettingError(f"num_points is {self.num_points}; accepted: 0 (all pixels) or more", "num_points")
        if not 1 <= self.oversampling < math.inf:
            raise SettingError(f"oversampling is {self.oversampling}; accepted: a number from 1 up", "oversampling")
        if not 0 <= self.importance <= 1:
            raise SettingError(f"importance is {self.importance}; accepted: a share from 0 to 1", "importance")

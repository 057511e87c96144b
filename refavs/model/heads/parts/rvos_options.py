"""The options of the baselines from referring video segmentation, ReferFormer and R2VOS, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from refavs.errors import SettingError
from refavs.model.feature_sizes import FeatureSizes, Needs
from refavs.model.heads.parts.baseline_options import FLOAT_BYTES, GROUPS, StageOptions
from refavs.model.options import require


@dataclass(frozen=True, kw_only=True)
class ClipQueryOptions(StageOptions):
    """What ReferFormer and R2VOS have in common: one query is matched to the object of a whole clip.

    Attributes:
        channels: width of everything but the hidden layers.
        num_queries: queries in each frame; a query is the same object in all of them.
        num_heads: attention heads.
        encoder_layers: layers of the deformable encoder.
        decoder_layers: layers in which queries read the encoder.
        feedforward_channels: hidden width of all layers.
        dropout: share of the values that training sets to zero.
        sound_in_words: whether the sound is also added to the words, as the mean of the clip, and not only to the
            queries of its step.
        class_weight: weight of the class of the queries, in the loss and in the matching.
        box_weight: weight of the distance of the boxes.
        giou_weight: weight of the overlap of the boxes.
        mask_weight: weight of the focal loss of the masks. It has one value for each clip but is divided by the number
            of frames with an object, so it weighs half as much with ten frames as with five.
        dice_weight: weight of the Dice loss of the masks, which is divided in the same way.
        learn_null: True trains all queries of an expression without an object to the class "no object"; False leaves
            such expressions out, as published; null takes the opposite of `faithful`.
        min_score: the masks are empty if the mean score of the best query is lower; null takes 0 (never empty, as
            published) if `faithful`, else 0.3 for ReferFormer and 0 for R2VOS, which judges the expression itself.
    """

    channels: int = 256
    num_queries: int = 5
    num_heads: int = 8
    encoder_layers: int = 4
    decoder_layers: int = 4
    feedforward_channels: int = 2048
    dropout: float = 0.1
    sound_in_words: bool = True
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    mask_weight: float = 2.0
    dice_weight: float = 5.0
    learn_null: bool | None = None
    min_score: float | None = None

    step_settings: ClassVar[tuple[str, ...]] = ("channels",)
    layer_settings: ClassVar[tuple[str, ...]] = ("encoder_layers", "decoder_layers")
    unseen_settings: ClassVar[tuple[str, ...]] = ("num_heads",)
    free_settings: ClassVar[tuple[str, ...]] = (
        "class_weight", "box_weight", "giou_weight", "mask_weight", "dice_weight", "learn_null", "min_score",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "channels num_queries num_heads encoder_layers decoder_layers feedforward_channels",
                "a whole number from 1 up", lambda value: value >= 1)  # fmt: skip
        if self.channels % GROUPS or self.channels % self.num_heads:
            raise SettingError(f"channels is {self.channels}; accepted: a multiple of {GROUPS} and of num_heads="
                               f"{self.num_heads}", "channels", "num_heads")  # fmt: skip
        weights = " ".join(name for name in self.free_settings if name.endswith("_weight"))
        require(self, weights, "a number from 0 up", lambda value: 0 <= value < math.inf)
        require(self, "dropout min_score", "a number from 0 to below 1", lambda value: 0 <= value < 1)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """The features of the finest map around the pixel decoder's last convolutions, and their gradients."""
        finest = sizes.maps[0]
        return 8 * FLOAT_BYTES * self.channels * finest.height * finest.width * num_expressions * num_frames


@dataclass(frozen=True, kw_only=True)
class ReferFormerOptions(ClipQueryOptions):
    """ReferFormer (arXiv 2201.00487): queries that are made from the expression follow one object through a clip."""

    head: str = "referformer"

    implementation: ClassVar[str] = "refavs.model.heads.referformer:ReferFormer"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {"learn_null": (True, False), "min_score": (0.3, 0.0)}


@dataclass(frozen=True, kw_only=True)
class R2VOSOptions(ClipQueryOptions):
    """R2VOS (arXiv 2207.01203): ReferFormer that also guesses a sentence from the pixels and judges whether the
    expression fits it.

    Attributes:
        negatives: which expressions do not fit: `null` are those without an object; `batch` are those of other clips of
            the batch, as published, which read the pixels once more; null takes `batch` if `faithful`, else `null`.
        pair_weight: weight of the judgement.
        contrast_weight: weight of the distance between the guess and an expression that does not fit.
        relation_weight: weight of the distances and angles among the sentences of a batch, which depend on how the
            batch is divided; null takes 1, as published, if `faithful`, else 0.
    """

    head: str = "r2vos"
    negatives: Literal["null", "batch"] | None = None
    pair_weight: float = 1.0
    contrast_weight: float = 0.1
    relation_weight: float | None = None

    implementation: ClassVar[str] = "refavs.model.heads.r2vos:R2VOS"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "learn_null": (True, False), "min_score": (0.0, 0.0), "negatives": ("null", "batch"),
        "relation_weight": (0.0, 1.0),
    }  # fmt: skip
    free_settings: ClassVar[tuple[str, ...]] = (
        *ClipQueryOptions.free_settings, "pair_weight", "contrast_weight", "relation_weight",
    )  # fmt: skip

    def needs(self) -> Needs:
        """All maps of the level, and expressions that refer to nothing."""
        if self.choice("negatives") == "batch":
            return super().needs()
        return replace(super().needs(), without_null="r2vos then judges that every expression fits; to learn from the "
                       "other expressions of a batch, take --set model.negatives=batch")  # fmt: skip


"""The options of `simtoken`, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from refavs.errors import SettingError
from refavs.model.feature_sizes import FeatureSizes, Needs
from refavs.model.heads.parts.baseline_options import FLOAT_BYTES, SAM_MAP, BaselineOptions
from refavs.model.options import require

FINER = ("s4", "s8")  # of SAM 2's encoder, finest first
Sam2Weights = Literal[
    "random", "sam2.1-hiera-tiny", "sam2.1-hiera-small", "sam2.1-hiera-base-plus", "sam2.1-hiera-large"
]


@dataclass(frozen=True, kw_only=True)
class SimTokenOptions(BaselineOptions):
    """SimToken (arXiv 2509.17537) without its language model: one token prompts SAM 2's decoder in all steps.

    Attributes:
        channels: width of the fusion and of the decoder.
        num_heads: attention heads of both.
        fusion_layers: layers in which prompt, words, sound and pixels attend to each other.
        feedforward_channels: hidden width of the fusion.
        tokens_per_side: side of the grid of pixel tokens into which each frame is averaged for the fusion.
        prompt: `clip`, one token for all steps, as published; `second`, a token for each step.
        decoder_layers: layers in which prompt and pixels read each other.
        decoder_feedforward_channels: hidden width of the decoder.
        decoder_weights: initial weights of the decoder, which is trained: `random`, or those of SAM 2.1 in that folder
            of `--weights-dir`, which get the maps as they are stored.
        bce: weight of the binary cross-entropy of the masks.
        dice: weight of the Dice loss of the masks.
        object_score: weight of the loss of SAM 2's object score, which empties the masks of frames that do not show the
            object; 0 leaves the score out, as SimToken on the first SAM does; null takes 0 where `faithful`, else 1.
    """

    head: str = "simtoken"
    channels: int = 256
    num_heads: int = 8
    fusion_layers: int = 3
    feedforward_channels: int = 1024
    tokens_per_side: int = 4
    prompt: Literal["clip", "second"] = "clip"
    decoder_layers: int = 2
    decoder_feedforward_channels: int = 2048
    decoder_weights: Sam2Weights = "random"
    bce: float = 2.0
    dice: float = 0.5
    object_score: float | None = None

    implementation: ClassVar[str] = "refavs.model.heads.simtoken:SimToken"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {"object_score": (1.0, 0.0)}
    step_settings: ClassVar[tuple[str, ...]] = ("channels",)
    layer_settings: ClassVar[tuple[str, ...]] = ("fusion_layers", "decoder_layers")
    unseen_settings: ClassVar[tuple[str, ...]] = ("num_heads", "tokens_per_side", "prompt")
    free_settings: ClassVar[tuple[str, ...]] = ("bce", "dice", "object_score")
    weights_setting: ClassVar[str] = "decoder_weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "num_heads fusion_layers feedforward_channels tokens_per_side decoder_layers "
                "decoder_feedforward_channels", "a whole number from 1 up", lambda value: value >= 1)  # fmt: skip
        require(self, "bce dice object_score", "a number from 0 up", lambda value: 0 <= value < math.inf)
        if self.channels < 8 or self.channels % 8 or self.channels % (2 * self.num_heads):
            raise SettingError(f"channels is {self.channels}; accepted: a multiple of 8 and of twice num_heads="
                               f"{self.num_heads}", "channels", "num_heads")  # fmt: skip

    def needs(self) -> Needs:
        """The three maps of SAM 2's encoder."""
        return self._needs((*FINER, SAM_MAP), advice="extract a stream of SAM 2.1, e.g. --streams sam2.1-hiera-tiny")

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """The decoder's last features and their gradients."""
        finest = sizes.maps[0]
        return 2 * FLOAT_BYTES * self.channels // 8 * finest.height * finest.width * num_expressions * num_frames

"""The options of the baselines of the paper's Table 3, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from refavs.errors import SettingError
from refavs.model.feature_sizes import EXTENT, LEVELS, MASKS, STAGES, FeatureSizes, Needs
from refavs.model.options import HeadOptions, require

FLOAT_BYTES = 4
SAM_MAP = "map"  # of SAM's encoder
GROUPS = 32  # of the normalisation behind AVSegFormer's convolutions
SamWeights = Literal["random", "sam-vit-base", "sam-vit-large", "sam-vit-huge"]


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(HeadOptions):
    """What the baselines have in common.

    A baseline with `text` and `audio` is the paper's extended form (Ref-AVS, arXiv 2407.10957v1, supplement B.3); alone
    it has only the modality that its authors gave it.

    Attributes:
        faithful: True takes the published form in every choice that is null, where that form cannot learn from frames
            without an object or depends on how a batch is divided.
    """

    faithful: bool = False

    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {}
    """The settings that are null by default, each with its value in the useful and in the published form."""
    ablations: ClassVar[Mapping[str, str]] = {"text": "text", "audio": "audio"}

    def __post_init__(self) -> None:
        if not self.audio and not self.text:
            raise SettingError("audio and text are both false, so that nothing says what to look for; leave out one of "
                               "them at most", "audio", "text")  # fmt: skip

    def choice(self, name: str) -> Any:
        """The value of one of the `forms`, as it is set or of the form that `faithful` names."""
        value = getattr(self, name)
        return self.forms[name][self.faithful] if value is None else value

    @property
    def choices(self) -> dict[str, Any]:
        return {name: self.choice(name) for name in self.forms}

    def _needs(self, *maps: tuple[str, ...], advice: str) -> Needs:
        return Needs(maps=maps, audio=bool(self.audio), text=bool(self.text), sound_by_step=True, advice=advice)


@dataclass(frozen=True, kw_only=True)
class StageOptions(BaselineOptions):
    """What baselines on the stages of a backbone have in common.

    Attributes:
        level: `backbone` reads its four maps, as published; `pixel_decoder` reads those of the pixel decoder behind it,
            which EEMC reads.
    """

    level: Literal["backbone", "pixel_decoder"] = "backbone"

    @property
    def stages(self) -> tuple[str, ...]:
        """The maps of that level, finest first."""
        return STAGES if self.level == "backbone" else (MASKS, *reversed(LEVELS))

    @property
    def choices(self) -> dict[str, Any]:
        return {**super().choices, "level": self.level}

    def needs(self) -> Needs:
        """All maps of the level."""
        return self._needs(self.stages, advice=self.advice)

    @property
    def advice(self) -> str:
        """What to do if the store lacks the maps."""
        return f"add them by the same refavs-extract command with --levels {self.level}"


@dataclass(frozen=True, kw_only=True)
class AVSBenchOptions(StageOptions):
    """AVSBench (arXiv 2207.05042): sound and pixels meet in a temporal pixel-wise interaction at each stage.

    Attributes:
        channels: width of the stages and of the decoder.
        matching: weight of the loss that draws what the predicted mask shows towards the sound.
        batch_norm: True normalises the interaction by the statistics of the batch, as published; False by those of each
            step, which do not depend on how a batch is divided; null takes `faithful`.
        dice: weight of a Dice loss of the masks, which the published loss has not; with cross-entropy alone, a short
            training leaves all pixels below one half; null takes 0 where `faithful`, else 1.
        sum_matching: True sums the matching loss over all frames, as published; False takes the mean over the frames in
            which a mask is predicted; null takes `faithful`.
    """

    head: str = "avsbench"
    channels: int = 256
    matching: float = 0.5
    dice: float | None = None
    batch_norm: bool | None = None
    sum_matching: bool | None = None

    implementation: ClassVar[str] = "refavs.model.heads.avsbench:AVSBench"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "dice": (1.0, 0.0), "batch_norm": (False, True), "sum_matching": (False, True),
    }  # fmt: skip
    step_settings: ClassVar[tuple[str, ...]] = ("channels",)
    free_settings: ClassVar[tuple[str, ...]] = ("matching", "dice", "sum_matching")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels < 8 or self.channels % 8:
            raise SettingError(f"channels is {self.channels}; accepted: a multiple of 8 from 8 up", "channels")
        require(self, "matching dice", "a number from 0 up", lambda value: 0 <= value < math.inf)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """The decoder's last features, at twice the finest map's height and width, and their gradients."""
        finest = sizes.maps[0]
        return 2 * FLOAT_BYTES * self.channels * 4 * finest.height * finest.width * num_expressions * num_frames


@dataclass(frozen=True, kw_only=True)
class AVSegFormerOptions(StageOptions):
    """AVSegFormer (arXiv 2307.01146): queries made from the sound read a deformable encoder.

    Attributes:
        channels: width of everything but the hidden layers.
        num_queries: queries of each frame.
        num_heads: attention heads.
        generator_layers: layers that turn the sound into queries.
        encoder_layers: layers of the deformable encoder.
        decoder_layers: layers in which queries read the encoder.
        generator_feedforward_channels: hidden width in the layers that make queries.
        feedforward_channels: hidden width in encoder and decoder.
        mask_channels: hidden width of the layers that turn the masks of all queries into features.
        feature_weight: weight of the Dice loss on the mean of the mask features.
        bce: weight of a binary cross-entropy, which the published loss has not; smoothed Dice alone may empty every
            mask where many frames are empty; null takes 0 where `faithful`, else 1.
        smooth_dice: True smooths the numerator of Dice too, so that frames without an object have a gradient; False is
            the published loss, to which they teach nothing; null takes the opposite of `faithful`.
    """

    head: str = "avsegformer"
    channels: int = 256
    num_queries: int = 300
    num_heads: int = 8
    generator_layers: int = 6
    encoder_layers: int = 6
    decoder_layers: int = 6
    generator_feedforward_channels: int = 1024
    feedforward_channels: int = 2048
    mask_channels: int = 2048
    feature_weight: float = 0.1
    bce: float | None = None
    smooth_dice: bool | None = None

    implementation: ClassVar[str] = "refavs.model.heads.avsegformer:AVSegFormer"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {"bce": (1.0, 0.0), "smooth_dice": (True, False)}
    step_settings: ClassVar[tuple[str, ...]] = ("mask_channels",)
    layer_settings: ClassVar[tuple[str, ...]] = ("generator_layers", "encoder_layers", "decoder_layers")
    unseen_settings: ClassVar[tuple[str, ...]] = ("num_heads",)
    free_settings: ClassVar[tuple[str, ...]] = ("feature_weight", "bce", "smooth_dice")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "channels num_queries num_heads generator_layers encoder_layers decoder_layers "
                "generator_feedforward_channels feedforward_channels mask_channels", "a whole number from 1 up",
                lambda value: value >= 1)  # fmt: skip
        if self.channels % GROUPS or self.channels % self.num_heads:
            raise SettingError(f"channels is {self.channels}; accepted: a multiple of {GROUPS} and of num_heads="
                               f"{self.num_heads}", "channels", "num_heads")  # fmt: skip
        require(self, "feature_weight bce", "a number from 0 up", lambda value: 0 <= value < math.inf)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """Both hidden layers over the pixels of the finest map."""
        finest = sizes.maps[0]
        return 2 * FLOAT_BYTES * self.mask_channels * finest.height * finest.width * num_expressions * num_frames


@dataclass(frozen=True, kw_only=True)
class GAVSOptions(StageOptions):
    """GAVS (arXiv 2309.07929): the sound is the prompt of SAM's mask decoder.

    On the maps of SAM's encoder it may start from SAM's decoder, which then stays as it is but for adapters. On the
    maps of another backbone the decoder is trained from the start.

    Attributes:
        channels: width of the decoder.
        num_heads: attention heads of the decoder.
        decoder_layers: layers in which prompt and pixels read each other.
        feedforward_channels: hidden width of the decoder.
        decoder_weights: what the decoder starts from: `random`, which is trained, or SAM's of that folder in
            `--weights-dir`, which is not and gets the maps as they are stored.
        noise: in training, `add` adds noise to the sound, as the paper says; `replace` replaces the
            sound by noise, as the release does, so training never uses the sound; `none` leaves the sound unchanged;
            null means `replace` if `faithful`, else `add`.
        mask_loss: `bce` is the binary cross-entropy, the release's default; `avs` is 20 times focal loss, and Dice,
            also in the release; `bce_dice` is cross-entropy and Dice, which does not leave all pixels below one half
            where it is uncertain which object is meant; null means `bce` if `faithful`, else `bce_dice`.
    """

    head: str = "gavs"
    channels: int = 256
    num_heads: int = 8
    decoder_layers: int = 2
    feedforward_channels: int = 2048
    decoder_weights: SamWeights = "random"
    noise: Literal["add", "replace", "none"] | None = None
    mask_loss: Literal["bce", "avs", "bce_dice"] | None = None

    implementation: ClassVar[str] = "refavs.model.heads.gavs:GAVS"
    forms: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "noise": ("add", "replace"), "mask_loss": ("bce_dice", "bce"),
    }  # fmt: skip
    step_settings: ClassVar[tuple[str, ...]] = ("channels",)
    layer_settings: ClassVar[tuple[str, ...]] = ("decoder_layers",)
    unseen_settings: ClassVar[tuple[str, ...]] = ("num_heads",)
    free_settings: ClassVar[tuple[str, ...]] = ("noise", "mask_loss")
    weights_setting: ClassVar[str] = "decoder_weights"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "num_heads decoder_layers feedforward_channels", "a whole number from 1 up",
                lambda value: value >= 1)  # fmt: skip
        if self.channels < 8 or self.channels % 8 or self.channels % (2 * self.num_heads):
            raise SettingError(f"channels is {self.channels}; accepted: a multiple of 8 and of twice num_heads="
                               f"{self.num_heads}", "channels", "num_heads")  # fmt: skip

    def needs(self) -> Needs:
        """The map of SAM's encoder, or the two coarsest ones of a level where no weights of SAM are wanted."""
        if self.decoder_weights != "random":
            return self._needs((SAM_MAP, EXTENT), (SAM_MAP,), advice="SAM's decoder reads the map of SAM's encoder; "
                               "extract that, or take --set model.decoder_weights=random")  # fmt: skip
        of_sam = () if self.level == "pixel_decoder" else ((SAM_MAP, EXTENT), (SAM_MAP,))
        return self._needs(*of_sam, self.stages[2:], advice=self.advice)

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """The decoder's last features, at four times the map's height and width, and their gradients."""
        finest = sizes.maps[0]
        return 2 * FLOAT_BYTES * 2 * self.channels * finest.height * finest.width * num_expressions * num_frames

"""The options that every head has, and those of the losses; does not import torch, so that reading a grid is fast."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from refavs.errors import SettingError
from refavs.model.feature_sizes import FeatureSizes, Needs


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Base of a head's options, which are the `model.*` settings of a grid.

    A subclass sets the default of `head` to its name and adds fields of plain types (bool, int, float, str, Literal,
    each optionally with None), all with defaults. `__post_init__` rejects bad values with a `SettingError`.
    `refavs-sweep settings` shows the `Attributes` section of its docstring. Keep options in a module that does not
    import torch, so that reading a grid stays fast.

    Attributes:
        head: name of the head; refavs-sweep settings HEAD lists the settings of another head.
        visual: encoder whose maps the head reads; None uses the store's only one, or the paper's.
        audio: name of the audio encoder; True uses the store's only one, or the paper's; False leaves audio out (an
            ablation).
        text: the same for the expression.
    """

    head: str
    visual: str | None = None
    audio: bool | str = True
    text: bool | str = True

    implementation: ClassVar[str]
    """The head itself, a `refavs.model.heads.protocol.Head`, as `module:Class`."""
    trainable: ClassVar[bool] = True
    """False for a head that is only evaluated, with the weights that `train.init` names."""
    step_settings: ClassVar[tuple[str, ...]] = ()
    """Settings to lower if `step_bytes` exceeds the memory."""
    layer_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that count layers; a checkpoint that claims more layers than it has tensors is rejected."""
    unseen_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that must match the weights in `train.init` but cannot be checked by tensor shapes."""
    free_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that do not affect the size or cost of the head."""
    weights_setting: ClassVar[str] = ""
    """The setting that names the pretrained weights (`random` for none); see `Head.load_pretrained`."""
    curve_setting: ClassVar[str] = ""
    """The numeric setting against which a report plots J."""
    curve_words: ClassVar[str] = ""
    """Symbol and meaning of that setting, for the figure's axis."""
    ablations: ClassVar[Mapping[str, str]] = {}
    """Settings that remove a part when False, with the name that a report gives to the part."""

    @property
    def use(self) -> dict[str, str]:
        """The encoders named in the options, by modality, in the form that `FeatureStore` accepts."""
        named = {"visual": self.visual, "audio": self.audio, "text": self.text}
        return {modality: name for modality, name in named.items() if isinstance(name, str)}

    def needs(self) -> Needs:
        """The features that the head reads from a store."""
        raise NotImplementedError

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """Lower bound of the memory for a training step; a step that cannot fit is rejected before any allocation."""
        return 0

    @property
    def choices(self) -> dict[str, Any]:
        """What a published method leaves open or does otherwise, by the names of the settings; a report prints it."""
        return {}

    @classmethod
    def removed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The parts that these settings remove, by their names in `ablations`."""
        return tuple(part for name, part in cls.ablations.items() if settings.get(name) is False)

    @property
    def pretrained(self) -> str | None:
        """The folder in `--weights-dir` with the initial weights; None for random weights."""
        name = getattr(self, self.weights_setting, "random")
        return None if name == "random" else name

    def same_cost(self) -> "HeadOptions":
        """These options with the `free_settings` at their defaults."""
        return type(self)(**{f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.free_settings})


def require(options: Any, names: str, accepted: str, holds: Callable[[Any], bool]) -> None:
    """Checks that each setting is None or an accepted value.

    Args:
        names: names of the settings, separated by spaces.
        accepted: what is accepted, in words.
        holds: returns whether a value is accepted.

    Raises:
        SettingError: a value is not accepted.
    """
    for name in names.split():
        value = getattr(options, name)
        if value is not None and not holds(value):
            raise SettingError(f"{name} is {value}; accepted: {accepted}", name)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses.

    Ref-AVS (arXiv 2407.10957v1), supplement B.1, specifies bce, dice and classification, but not the others.

    Attributes:
        bce: weight of the binary cross-entropy of the masks.
        dice: weight of the Dice loss of the masks.
        classification: weight of the classification loss.
        no_object: class weight of the unmatched queries in frames with an object.
        null_frame: class weight of all queries in frames without an object. With one weight for both kinds of frames,
            either null expressions got masks or every mask collapsed to empty.
        matching: weight of the class in the matching cost. Mask2Former uses the weight of the loss; then the query with
            the most similar mask is matched whatever the expression says, and queries become object proposals. A high
            weight matches the query that claims to be the answer.
        num_points: number of points at which masks are compared, most of them where the prediction is least certain; 0
            compares all pixels.
        oversampling: number of candidates drawn per point that is chosen by uncertainty.
        importance: fraction of the points chosen by uncertainty; the others are uniform.
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
        require(self, "bce dice classification no_object null_frame matching", "a number from 0 up",
                lambda value: 0 <= value < math.inf)  # fmt: skip
        require(self, "num_points", "0 (all pixels) or more", lambda value: value >= 0)
        require(self, "oversampling", "a number from 1 up", lambda value: 1 <= value < math.inf)
        require(self, "importance", "a share from 0 to 1", lambda value: 0 <= value <= 1)

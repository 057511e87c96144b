"""The options that every head has, and those of the losses; without torch, so that grids are read fast."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from refavs.errors import SettingError
from refavs.model.feature_sizes import FeatureSizes, Needs


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Base of a head's options, which are the settings below `model.` of a grid.

    A subclass gives `head` its name as the default and adds fields of plain types (bool, int, float, str, Literal, each
    perhaps with None), all with defaults. `__post_init__` refuses bad values with a `SettingError`. The section
    `Attributes` of its docstring is what `refavs-sweep settings` shows. A module that holds options only and does not
    import torch keeps reading grids fast.

    Attributes:
        head: name of the head; refavs-sweep settings HEAD lists the settings of another one.
        visual: encoder whose maps the head reads; None takes the store's only one, or the paper's.
        audio: encoder of the sound, by name; True takes the store's only one, or the paper's; False leaves the sound
            out, an ablation.
        text: the same for the expression.
    """

    head: str
    visual: str | None = None
    audio: bool | str = True
    text: bool | str = True

    implementation: ClassVar[str]
    """The head itself, a `refavs.model.heads.protocol.Head`, as `module:Class`."""
    trainable: ClassVar[bool] = True
    """False of a head that is only evaluated, with the weights that `train.init` names."""
    step_settings: ClassVar[tuple[str, ...]] = ()
    """Settings to lower where `step_bytes` is more than there is."""
    layer_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that count layers; a checkpoint that claims more layers than it has tensors is refused unbuilt."""
    unseen_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that no tensor's shape shows, but which must be those of the weights in `train.init`."""
    free_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that change neither the size nor the cost of the head."""
    weights_setting: ClassVar[str] = ""
    """The setting that names pretrained weights, `random` for none; see `Head.load_pretrained`."""
    curve_setting: ClassVar[str] = ""
    """The number against which a report draws J."""
    curve_words: ClassVar[str] = ""
    """Symbol and meaning of that number, for the axis of the figure."""
    ablations: ClassVar[Mapping[str, str]] = {}
    """What a report calls the part that is left out where this setting is False."""

    @property
    def use(self) -> dict[str, str]:
        """The encoders that are named, by modality, as `FeatureStore` takes them."""
        named = {"visual": self.visual, "audio": self.audio, "text": self.text}
        return {modality: name for modality, name in named.items() if isinstance(name, str)}

    def needs(self) -> Needs:
        """What the head reads of a store."""
        raise NotImplementedError

    def step_bytes(self, sizes: FeatureSizes, num_expressions: int, num_frames: int) -> int:
        """The least memory that a training step takes; what cannot fit is refused before anything is allocated."""
        return 0

    @classmethod
    def removed(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The parts of the head that these settings leave out, in the words of `ablations`."""
        return tuple(part for name, part in cls.ablations.items() if settings.get(name) is False)

    @property
    def pretrained(self) -> str | None:
        """The folder in `--weights-dir` that the head starts from; None for random weights."""
        name = getattr(self, self.weights_setting, "random")
        return None if name == "random" else name

    def same_cost(self) -> "HeadOptions":
        """These options with the `free_settings` at their defaults."""
        return type(self)(**{f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.free_settings})


def require(options: Any, names: str, accepted: str, holds: Callable[[Any], bool]) -> None:
    """Refuses settings with a value, other than None, that is not accepted.

    Args:
        names: of the settings, separated by spaces.
        accepted: what is accepted, in words.
        holds: whether a value is.

    Raises:
        SettingError: with the name of the setting.
    """
    for name in names.split():
        value = getattr(options, name)
        if value is not None and not holds(value):
            raise SettingError(f"{name} is {value}; accepted: {accepted}", name)


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
        require(self, "bce dice classification no_object null_frame matching", "a number from 0 up",
                lambda value: 0 <= value < math.inf)  # fmt: skip
        require(self, "num_points", "0 (all pixels) or more", lambda value: value >= 0)
        require(self, "oversampling", "a number from 1 up", lambda value: 1 <= value < math.inf)
        require(self, "importance", "a share from 0 to 1", lambda value: 0 <= value <= 1)

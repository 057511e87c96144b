"""The settings of one trial; each part is described beside the code it configures."""

from dataclasses import dataclass, field

from experiments.train import TrainConfig
from refavs.model.eemc import ModelOptions
from refavs.model.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's outcome, apart from the features it reads."""

    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

"""The settings of one trial; each part is described beside the code it configures."""

from dataclasses import dataclass, field

from experiments.train import TrainConfig
from refavs.errors import ConfigError
from refavs.model.eemc import ModelOptions
from refavs.model.losses import LossConfig


@dataclass(frozen=True, kw_only=True)
class TrialResources:
    """What one trial runs on, which is no part of a trial's key.

    Attributes:
        workers: processes that share each batch, under Ray Train where they are several. They change the outcome by
            rounding where nothing is drawn in a step; points of the losses (loss.num_points) and dropout are drawn for
            each part of a batch, so that another number of workers is with these as good as another seed.
    """

    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"resources.workers is {self.workers}; accepted: a whole number from 1")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides a trial's outcome, apart from the features it reads; and what it runs on."""

    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    resources: TrialResources = field(default_factory=TrialResources)
    seed: int = 0

"""What text and sound encoders share: a network of transformers, or one tower of it, with weights on the hub."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from extract.encoders.hub_folder import HubFolder
from extract.encoders.networks import DTYPES, frozen, of_transformers
from extract.encoders.protocol import EncoderSetup
from refavs.choices import Precision


class HubTower:
    """Builds the network. Its config may be a part of the config of a larger network.

    Attributes:
        settings: of the encoder; `settings.config` is the published config, used with random weights.
        config_name: the class of the config, as `of_transformers` takes it.
        network_name: the class whose tensors are named as in the checkpoint.
        unused: patterns of the names of tensors in checkpoints that the network does not need.
        options: of the network's class.
    """

    settings: Any
    setup: EncoderSetup
    config_name: ClassVar[str]
    network_name: ClassVar[str]
    unused: ClassVar[Sequence[str]] = ()
    options: ClassVar[Mapping[str, Any]] = {}

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config of the network, from the content of a config.json or from the published config."""
        return of_transformers(self.config_name)(**values)

    def network_class(self) -> Any:
        """The class of the network."""
        return of_transformers(self.network_name)

    @property
    def precision(self) -> Precision:
        """The precision in which the network computes."""
        return self.setup.precision

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The config beside the weights, or the published one."""
        return self._hub.tower(self.settings.config, self.config_of)

    @property
    def _hub(self) -> HubFolder:
        return HubFolder(repository=self.settings.repository, source=self.setup.weights)

    @cached_property
    def _network(self) -> Any:
        config = self.config_of(self.config)
        network = self._hub.network(self.network_class(), config, self.unused, **self.options)
        return frozen(network, self.setup.device, DTYPES[self.precision])

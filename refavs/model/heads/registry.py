"""The head that a configuration names: the paper's, or the release's."""

from refavs.model.heads.eemc import EEMC, EEMCConfig
from refavs.model.heads.released import ReleasedHead


def build_head(config: EEMCConfig) -> EEMC:
    """A new head of the variant that `config` names."""
    return ReleasedHead(config) if config.variant == "released" else EEMC(config)

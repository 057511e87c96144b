"""refavs: cached features, EEMC and evaluation for referring audio-visual segmentation (Ref-AVS)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refavs.model.heads.eemc import EEMC
    from refavs.model.heads.options import EEMCOptions
    from refavs.store.reader import FeatureStore

    load: Any  # experiments.predict.segmenter.load; this package imports no other

_HOMES = {
    "EEMC": "refavs.model.heads.eemc", "EEMCOptions": "refavs.model.heads.options",
    "FeatureStore": "refavs.store.reader", "load": "experiments.predict.segmenter",
}

__all__ = ["EEMC", "EEMCOptions", "FeatureStore", "load"]


def __getattr__(name: str) -> Any:
    """Loads what is public on first use, so that `import refavs` stays fast for the commands."""
    if name not in _HOMES:
        raise AttributeError(f"module 'refavs' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

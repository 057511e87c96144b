"""The heads by name: the built-in ones and those of installed packages (entry points in the group `refavs.heads`).

An entry names the head's options class, which names its implementation, so a grid can be read without torch.
"""

import functools
import importlib
from typing import TYPE_CHECKING

from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.model.options import HeadOptions
from refavs.plugins import entries_of, entry_named

if TYPE_CHECKING:
    from refavs.model.heads.protocol import Head

GROUP = "refavs.heads"
DEFAULT = "eemc"
BUILT_IN = {
    "eemc": "refavs.model.heads.options:EEMCOptions",
    "released": "refavs.model.heads.options:ReleasedOptions",
    "avsbench": "refavs.model.heads.parts.baseline_options:AVSBenchOptions",
    "avsegformer": "refavs.model.heads.parts.baseline_options:AVSegFormerOptions",
    "gavs": "refavs.model.heads.parts.baseline_options:GAVSOptions",
    "referformer": "refavs.model.heads.parts.rvos_options:ReferFormerOptions",
    "r2vos": "refavs.model.heads.parts.rvos_options:R2VOSOptions",
    "simtoken": "refavs.model.heads.parts.simtoken_options:SimTokenOptions",
}


def names() -> list[str]:
    """Names of all heads, the built-in ones first."""
    return list(entries_of(GROUP, BUILT_IN))


@functools.cache
def options_class(name: str) -> type[HeadOptions]:
    """The options class of the head called `name`.

    Raises:
        ConfigError: no package or several packages define the head, or its package cannot be imported.
    """
    if name not in names():
        raise ConfigError(f"model.head is {name!r}; {nearest(name, names())}")
    found = entry_named(name, GROUP, BUILT_IN)
    if not (isinstance(found, type) and issubclass(found, HeadOptions)) or getattr(found, "head", None) != name:
        raise ConfigError(f"the head {name!r} cannot be used: {found!r} is not a subclass of "
                          f"refavs.model.options.HeadOptions with head = {name!r}; repair or uninstall its package")
    return found


def default_options(name: str = DEFAULT) -> HeadOptions:
    """The default options of a head.

    Raises:
        ConfigError: as `options_class`.
    """
    return options_class(name)(head=name)


def implementation_of(options: HeadOptions) -> type["Head"]:
    """The class of the head with these options.

    Raises:
        ConfigError: its module cannot be imported.
    """
    module, _, name = options.implementation.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the head {options.head!r} cannot be loaded ({type(error).__name__}: {error}); repair or "
                          "uninstall its package") from error  # fmt: skip

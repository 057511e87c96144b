"""MLflow settings from the user: a command's option, else MLflow's environment variable, else our default."""

import json
import os
from collections.abc import Mapping, Sequence

from refavs.errors import ConfigError

ADDRESS, EXPERIMENT, TAGS = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_TAGS"
RESERVED = ("mlflow.", "refavs.")


def address(option: str | None) -> str | None:
    """MLflow's address; None if the user names none."""
    return option or os.environ.get(ADDRESS) or None


def experiment(option: str | None) -> str | None:
    """The name of the experiment; None if the user names none."""
    return option or os.environ.get(EXPERIMENT) or None


def run_tags(options: Sequence[str] = ()) -> dict[str, str]:
    """Tags for all runs: a JSON object in the environment, and options `NAME=VALUE`, which take precedence.

    Raises:
        ConfigError: an option is not NAME=VALUE, a name is reserved, or the variable is not a JSON object of texts.
    """
    try:
        found = json.loads(os.environ.get(TAGS) or "{}")
    except ValueError:
        found = None
    if not isinstance(found, Mapping) or not all(isinstance(value, str | int | float) for value in found.values()):
        raise ConfigError(f"{TAGS} is {os.environ[TAGS][:80]!r}; accepted: a JSON object of texts, such as "
                          '{"team": "audio", "ticket": "42"}')  # fmt: skip
    tags = {name: str(value) for name, value in found.items()}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ConfigError(f"--tag {option!r}; accepted: NAME=VALUE")
        tags[name] = value
    for name in tags:
        if not name or name.startswith(RESERVED):
            raise ConfigError(f"a tag cannot be called {name!r}; accepted: a name that does not begin with "
                              f"{' or '.join(RESERVED)}")  # fmt: skip
    return tags

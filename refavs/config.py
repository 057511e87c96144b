"""Typed settings: nested frozen dataclasses, dotted overrides, and a digest of a resolved configuration."""

import dataclasses
import difflib
import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from refavs.errors import ConfigError, SettingError

Config = TypeVar("Config")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name, or all of them if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def leaves(config: Any) -> list[str]:
    """All dotted names of the settings in `config`."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = leaves(value) if dataclasses.is_dataclass(value) else [""]
        names += [f"{field.name}.{leaf}".rstrip(".") for leaf in inner]
    return names


def kinds(config: Any) -> dict[str, Any]:
    """The type of each setting, by dotted name."""
    hints, found = get_type_hints(type(config)), {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        inner = kinds(value) if dataclasses.is_dataclass(value) else {"": hints[field.name]}
        found |= {f"{field.name}.{leaf}".rstrip("."): kind for leaf, kind in inner.items()}
    return found


def replace(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Returns `config` with dotted settings replaced, e.g. `{"model.beta": 0.5}`, all at once and in any order.

    Raises:
        ConfigError: a name is unknown, or a value has the wrong type.
        SettingError: values are out of range or in conflict; the error has the dotted names of their settings.
    """
    return _replaced(config, {name: typed(config, name, value) for name, value in overrides.items()})


def typed(config: Any, name: str, value: Any) -> Any:
    """Converts `value` to the type of the setting `name`: an int to a float, a list to a tuple, nothing else.

    Raises:
        ConfigError: an unknown name, or a value of the wrong type.
    """
    known = leaves(config)
    if name not in known:
        raise ConfigError(f"unknown setting {name!r}; {nearest(name, known)}")
    *path, leaf = name.split(".")
    for part in path:
        config = getattr(config, part)
    return _checked(value, get_type_hints(type(config))[leaf], name)


def _replaced(config: Any, values: Mapping[str, Any]) -> Any:
    own = {name: value for name, value in values.items() if "." not in name}
    for part in dict.fromkeys(name.partition(".")[0] for name in values if "." in name):
        below = {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}
        try:
            own[part] = _replaced(getattr(config, part), below)
        except SettingError as error:
            raise error.within(part) from error
    return dataclasses.replace(config, **own) if own else config


def _checked(value: Any, kind: Any, key: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [argument for argument in arguments if argument is not type(None)]
        if len(kinds) == 1:
            return _checked(value, kinds[0], key)
        if type(value) in kinds:
            return value
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); accepted: a value of type "
                          f"{' or '.join(one.__name__ for one in kinds)}")  # fmt: skip
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{key} is {value!r}; accepted: {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_checked(item, arguments[0], key) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value) + 0.0  # turns -0.0 into 0.0
        except OverflowError:
            raise ConfigError(f"{key} is a whole number too large to compute with; accepted: up to 1.8e308") from None
    expected = origin or kind
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); accepted: a value of type {expected.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """`config` as nested JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flat(config: Any) -> dict[str, Any]:
    """`config` flattened to dotted names, as in grids and MLflow parameters."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for name, inner in value.items() for k, v in walk(f"{prefix}{name}.", inner).items()}
        return {prefix[:-1]: value}

    return walk("", to_dict(config))


def digest(facts: Any) -> str:
    """Hex sha256 of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_stamp(*paths: Path) -> str:
    """Identifies weight files in a fingerprint by the sha256 of their bytes."""
    whole = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{whole.hexdigest()}"

"""A trained model as a folder: `model.safetensors` and `config.json`, written whole or not at all, never a pickle."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from refavs.config import digest, to_dict
from refavs.errors import RefAVSError, WeightsError
from refavs.files.atomic import write_atomically
from refavs.files.partials import remove_left
from refavs.files.plain_file import open_plain, read_plain
from refavs.files.typed_json import OddRecord, read_json, shaped
from refavs.finite import require_finite_weights
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.protocol import Head
from refavs.model.heads.registry import DEFAULT, implementation_of, options_class
from refavs.model.options import HeadOptions
from refavs.model.pretrained import mismatch

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1
_Size = Annotated[int, range(1, 2**31)]


class _Stream(TypedDict):
    path: str
    channels: _Size


class _Map(_Stream):
    name: str
    height: _Size
    width: _Size


class _Sizes(TypedDict):
    audio: _Stream | None
    text: _Stream | None
    maps: list[_Map]


class _Train(TypedDict, total=False):
    precision: str


class _Trial(TypedDict, total=False):
    train: _Train


class Facts(TypedDict, total=False):
    """The facts saved with a model that this package reads back."""

    store: str
    encoders: dict[str, dict[str, Any]]
    seconds: int
    fps: float
    mask_size: int | list[int]
    trial: _Trial


def save_model(folder: Path, model: Head, facts: Mapping[str, Any] | None = None) -> None:
    """Writes weights and configuration. A reader sees either the old checkpoint or the new one, never a mixture.

    Args:
        facts: other facts to save with the model, e.g. the fingerprint of the store it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = {**to_dict(model.options), "sizes": to_dict(model.sizes)}
    config = {"format": FORMAT, "model": described, "facts": dict(facts or {})}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # The weights contain the digest of their configuration, so a crash between the two writes cannot pair old with new.
    for path, content in (
        (folder / WEIGHTS, save(weights, metadata={"config": digest(described)})),
        (folder / CONFIG, json.dumps(config, indent=1).encode()),
    ):
        remove_left(path)
        write_atomically(path, content)


def load_model(folder: Path) -> Head:
    """The model saved in `folder`, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file is missing, truncated or of another format, the two files do not belong together, or a
            weight is not finite.
    """
    config = read_config(folder)
    found = _shapes(folder / WEIGHTS)
    try:
        options, sizes = _described(config["model"])
        _refuse_deeper(options, sizes, len(found))
        kind = implementation_of(options)
        with torch.device("meta"):  # the meta device allocates no memory, whatever the sizes are
            _refuse_other_shapes(folder / WEIGHTS, kind(options, sizes), found)
        model = kind(options, sizes)
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, RefAVSError) as error:  # torch rejects sizes and names so
        raise WeightsError(
            f"{folder / CONFIG} does not describe a head of this version ({error}); train again or use the version "
            "that wrote it"
        ) from error
    load_weights(folder, model)
    return model.eval()


def load_weights(folder: Path, model: Head) -> None:
    """Loads the weights saved in `folder` into `model`.

    Raises:
        WeightsError: as `load_model`, or the weights belong to a model of other sizes.
    """
    config = read_config(folder)["model"]
    weights = _read_weights(folder / WEIGHTS, digest(config))
    name, head = _head_of(config), model.options.head
    if name != head:
        raise WeightsError(f"{folder} holds a head {name!r}, the model is {head!r}; take --set model.head={name}")
    for setting in model.options.unseen_settings:
        wanted = getattr(model.options, setting)
        found = config.get(setting, wanted)
        if found != wanted:
            raise WeightsError(
                f"{folder / CONFIG} says {setting}={found}, the model has {wanted}; take --set model.{setting}={found}"
            )
    _refuse_other_shapes(folder / WEIGHTS, model, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    model.load_state_dict(weights)


def checkpoint_digest(folder: Path) -> str:
    """The sha256 of the weights file in `folder`.

    Raises:
        WeightsError: there is no checkpoint.
    """
    read_config(folder)
    try:
        with open(open_plain(folder / WEIGHTS), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"no weights at {folder / WEIGHTS}; copy the checkpoint again or train again") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's description: `model`, its configuration, and `facts`, what was saved with it."""
    path = folder / CONFIG
    try:
        config = read_json(read_plain(path))
    except FileNotFoundError as error:
        raise WeightsError(
            f"no checkpoint in {folder}: {CONFIG} is missing; a checkpoint is a folder with {WEIGHTS} and {CONFIG}, "
            "such as a trial's folder `checkpoint`"
        ) from error
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; copy the checkpoint again or train again") from error
    good = isinstance(config, dict) and config.get("format") == FORMAT
    if not good or not all(isinstance(config.get(part), dict) for part in ("model", "facts")):
        raise WeightsError(f"{path} is not a description of format {FORMAT}; use the version of refavs that wrote it")
    try:
        shaped(config["facts"], Facts, "facts")
    except OddRecord as error:
        raise WeightsError(f"{path} cannot be used ({error}); copy the checkpoint again or train again") from error
    return config


def _head_of(facts: Mapping[str, Any]) -> str:
    """The head's name. Older checkpoints have no head name, only `variant`, which is set for the released model."""
    return str(facts.get("head", "released" if facts.get("variant") == "released" else DEFAULT))


def _described(facts: Mapping[str, Any]) -> tuple[HeadOptions, FeatureSizes]:
    """The options of the head and the features it reads, from a checkpoint's description.

    Raises:
        ConfigError: the head is unknown, or it rejects the options.
        ValueError, TypeError: the description has another form.
    """
    kind = options_class(_head_of(facts))
    hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)} | {"sizes": _Sizes}
    if "head" not in facts:  # written when all heads shared one set of options
        facts = {name: value for name, value in facts.items() if name in hints and value is not None}
    for name in hints.keys() & facts.keys() | {"sizes"}:
        shaped(facts.get(name), hints[name], name)
    options, sizes = kind(**{name: value for name, value in facts.items() if name != "sizes"}), facts["sizes"]
    needs, names = options.needs(), {size["name"] for size in sizes["maps"]}
    if not any(names.issuperset(wanted) for wanted in needs.maps):
        raise ValueError(f"its maps are {', '.join(sorted(names))[:80] or 'none'}")
    streams = {name: StreamSize(**(sizes[name] or {})) for name in ("audio", "text") if getattr(needs, name)}
    maps = tuple(MapSize(**size) for size in sizes["maps"])
    return options, FeatureSizes(audio=streams.get("audio"), text=streams.get("text"), maps=maps)


def _refuse_deeper(options: HeadOptions, sizes: FeatureSizes, num_tensors: int) -> None:
    """Checks before building that the number of layers is not above the number of tensors in the file."""
    parts = {name: getattr(options, name) for name in options.layer_settings} | {"maps": len(sizes.maps)}
    for name, number in parts.items():
        if number > num_tensors:
            raise ValueError(f"{name} is {number}, the weights beside it are {num_tensors} tensors")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens the weights file.

    Raises:
        WeightsError: it is missing, truncated or not a safetensors file.
    """
    try:
        os.close(open_plain(path))
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise WeightsError(f"no weights at {path}; copy the checkpoint again or train again") from error
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file ({error}); truncated copies and pickles are refused: copy the "
            "checkpoint again or train again"
        ) from error


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the file, from the header alone."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _read_weights(path: Path, config_digest: str) -> dict[str, Any]:
    with _opened(path) as file:
        belongs = (file.metadata() or {}).get("config") == config_digest
        weights = load_file(path)
    if not belongs:
        raise WeightsError(f"{path} was not written with the {CONFIG} beside it; copy both files of one checkpoint")
    require_finite_weights(path, weights)
    return weights


def _refuse_other_shapes(path: Path, model: Head, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wrong := mismatch(expected, found):
        raise WeightsError(f"{path} {wrong}; use the checkpoint as refavs wrote it, or train again")

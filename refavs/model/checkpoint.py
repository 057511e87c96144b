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
from refavs.files.partials import PARTIAL
from refavs.files.plain_file import open_plain, read_plain
from refavs.files.typed_json import OddRecord, read_json, shaped
from refavs.finite import require_finite_weights
from refavs.model.feature_sizes import LEVELS, MASKS, STAGES, FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC, EEMCConfig
from refavs.model.heads.registry import build_head
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
    audio: _Stream
    text: _Stream
    maps: list[_Map]


class _Train(TypedDict, total=False):
    precision: str


class _Trial(TypedDict, total=False):
    train: _Train


class Facts(TypedDict, total=False):
    """What is read of the facts that are kept with a model."""

    store: str
    encoders: dict[str, dict[str, Any]]
    seconds: int
    mask_size: int
    trial: _Trial


def save_model(folder: Path, model: EEMC, facts: Mapping[str, Any] | None = None) -> None:
    """Writes weights and configuration; a reader meets the old checkpoint or the new one, never a part.

    Args:
        facts: what else to keep with the model, e.g. the fingerprint of the store it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, "model": to_dict(model.config), "facts": dict(facts or {})}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    # The weights name their configuration, so that a crash between the two files cannot pair old with new.
    _write(folder / WEIGHTS, save(weights, metadata={"config": digest(config["model"])}))
    _write(folder / CONFIG, json.dumps(config, indent=1).encode())


def load_model(folder: Path) -> EEMC:
    """The model saved in `folder`, on the CPU and in evaluation mode.

    Raises:
        WeightsError: a file is missing, truncated, of another format, does not belong to the other, or holds weights
            that are not finite.
    """
    config = read_config(folder)
    found = _shapes(folder / WEIGHTS)
    try:
        described = _config_of(config["model"])
        _refuse_deeper(described, len(found))
        with torch.device("meta"):  # which takes no memory, whatever the sizes are
            _refuse_other_shapes(folder / WEIGHTS, build_head(described), found)
        model = build_head(described)
    except WeightsError:
        raise
    except (TypeError, ValueError, RuntimeError, RefAVSError) as error:  # torch's refusal of a size is a RuntimeError
        raise WeightsError(
            f"{folder / CONFIG} does not describe an EEMC of this version ({error}); train again or use the version "
            "that wrote it"
        ) from error
    load_weights(folder, model)
    return model.eval()


def load_weights(folder: Path, model: EEMC) -> None:
    """Puts the weights saved in `folder` into `model`.

    Raises:
        WeightsError: as `load_model`, or the weights are of a model of other sizes.
    """
    config = read_config(folder)["model"]
    weights = _read_weights(folder / WEIGHTS, digest(config))
    heads = config.get("num_heads", model.config.num_heads)
    if heads != model.config.num_heads:  # the one size that no tensor tells
        raise WeightsError(
            f"{folder / CONFIG} says num_heads={heads}, the model has {model.config.num_heads}; take --set "
            f"model.num_heads={heads}"
        )
    _refuse_other_shapes(folder / WEIGHTS, model, {name: tuple(tensor.shape) for name, tensor in weights.items()})
    model.load_state_dict(weights)


def checkpoint_digest(folder: Path) -> str:
    """What names the weights saved in `folder`: the sha256 of their file.

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
    """The checkpoint's description: `model`, its configuration, and `facts`, what was kept with it."""
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


def _config_of(facts: Mapping[str, Any]) -> EEMCConfig:
    kinds = {**get_type_hints(EEMCConfig), "sizes": _Sizes}
    for name in ({field.name for field in fields(EEMCConfig)} & facts.keys()) | {"sizes"}:
        shaped(facts.get(name), kinds[name], name)
    sizes = facts["sizes"]
    names = tuple(size["name"] for size in sizes["maps"])
    if names not in ((MASKS, *reversed(LEVELS)), STAGES):
        raise ValueError(f"its maps are {', '.join(names)[:80] or 'none'}")
    known = FeatureSizes(
        audio=StreamSize(**sizes["audio"]), text=StreamSize(**sizes["text"]),
        maps=tuple(MapSize(**size) for size in sizes["maps"]),
    )
    return EEMCConfig(**{**facts, "sizes": known})


def _refuse_deeper(config: EEMCConfig, num_tensors: int) -> None:
    """Checks that so many tensors can be those of so many layers, before any layer is built."""
    parts = {"num_layers": config.num_layers, "decoder_layers": config.decoder_layers, "maps": len(config.sizes.maps)}
    for name, number in parts.items():
        if number > num_tensors:
            raise ValueError(f"{name} is {number}, the weights beside it are {num_tensors} tensors")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file of weights.

    Raises:
        WeightsError: it is missing, truncated, or no safetensors file.
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
    """The shape of each tensor in the file; no tensor is read."""
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


def _refuse_other_shapes(path: Path, model: EEMC, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if wrong := mismatch(expected, found):
        raise WeightsError(f"{path} {wrong}; use the checkpoint as refavs wrote it, or train again")


def _write(path: Path, content: bytes) -> None:
    """Writes beside `path`, flushes to the disk, then takes its name; what a killed writer left beside it goes."""
    for left in path.parent.glob(f"{path.name}.*{PARTIAL}"):
        left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

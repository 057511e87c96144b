"""Describes a trained head as an MLflow model: its inputs, its outputs and how to load it."""

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from refavs.files.atomic import write_atomically
from refavs.model.checkpoint import CONFIG, WEIGHTS, read_config

if TYPE_CHECKING:
    from refavs.store import FeatureStore

CARD = "MLmodel"  # the file by which MLflow recognises a model
ANY = -1  # an axis of any length, in MLflow's notation


def write_card(folder: Path, store: "FeatureStore") -> None:
    """Writes the description of the checkpoint in `folder`.

    Inputs are those of `refavs.data.batches.collate`, with axes clips u, frames t, expressions b, tokens l.

    Raises:
        WeightsError: the checkpoint's own configuration is missing.
    """
    write_atomically(folder / CARD, yaml.safe_dump(card_of(read_config(folder), store), sort_keys=False).encode())


def card_of(config: dict[str, Any], store: "FeatureStore") -> dict[str, Any]:
    """The description of a checkpoint with this `config.json`, trained on `store`."""
    sizes = config["model"]["sizes"]
    inputs = [
        _tensor(f"visual/{size['name']}", _dtype(store, size["path"]), ANY, ANY, size["channels"], size["height"],
                size["width"]) for size in sizes["maps"]
    ]  # fmt: skip
    inputs += [_tensor(name, _dtype(store, sizes[name]["path"]), ANY, ANY, sizes[name]["channels"])
               for name in ("audio", "text") if sizes[name]]  # fmt: skip
    inputs += [_tensor("valid", "bool", ANY, ANY), _tensor("clip", "int64", ANY)]
    outputs = [_tensor("probs", "float32", ANY, ANY, ANY, ANY)]
    return {
        "flavors": {"refavs": {
            "version": _version(), "weights": WEIGHTS, "config": CONFIG,
            "load": "refavs.model.checkpoint.load_model(FOLDER)", "predict": "refavs-predict VIDEO TEXT --run FOLDER",
            "output": "model.probs(model(batch))",
            "axes": "visual u t c h w; audio u t c; text b l c; valid b l; clip b; probs b t h w",
        }},
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
        "metadata": {"encoders": {name: one.get("name") for name, one in store.encoders.items()},
                     "store": store.fingerprint, "input_size": store.mask_size, "num_frames": store.seconds},
    }  # fmt: skip


def _version() -> str:
    try:
        return metadata.version("refavs")
    except metadata.PackageNotFoundError:  # code shipped with a Ray job is not installed
        return "unknown"


def _dtype(store: "FeatureStore", path: str) -> str:
    """The type of an array's values in a batch."""
    return "float32" if store.specs[path].scale else store.specs[path].dtype


def _tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}

"""A trained head described for MLflow: what goes in, what comes out and how to load it, in the form of its models."""

import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from refavs.files.atomic import write_atomically
from refavs.model.checkpoint import CONFIG, WEIGHTS, read_config

if TYPE_CHECKING:
    from refavs.store import FeatureStore

CARD = "MLmodel"  # the name by which MLflow knows a model
ANY = -1  # MLflow's mark of an axis of any length


def write_card(folder: Path, store: "FeatureStore") -> None:
    """Writes the description of the checkpoint in `folder` beside it; inputs are as `refavs.data.batches.collate` gives
    them: clips u, frames t, expressions b, tokens l.

    Raises:
        WeightsError: the checkpoint has no description of its own.
    """
    write_atomically(folder / CARD, yaml.safe_dump(card_of(read_config(folder), store), sort_keys=False).encode())


def card_of(config: dict[str, Any], store: "FeatureStore") -> dict[str, Any]:
    """The description of a checkpoint with this `config.json`, trained on `store`."""
    model, sizes = config["model"], config["model"]["sizes"]
    mask = sizes["maps"][0]
    inputs = [
        _tensor(f"visual/{size['name']}", _dtype(store, size["path"]), ANY, ANY, size["channels"], size["height"],
                size["width"]) for size in sizes["maps"]
    ]  # fmt: skip
    inputs += [
        _tensor("audio", _dtype(store, sizes["audio"]["path"]), ANY, ANY, sizes["audio"]["channels"]),
        _tensor("text", _dtype(store, sizes["text"]["path"]), ANY, ANY, sizes["text"]["channels"]),
        _tensor("valid", "bool", ANY, ANY), _tensor("clip", "int64", ANY),
    ]  # fmt: skip
    outputs = [
        _tensor("mask_logits", "float32", ANY, ANY, model["num_queries"], mask["height"], mask["width"]),
        _tensor("class_logits", "float32", ANY, ANY, model["num_queries"], 2),
    ]
    return {
        "flavors": {"refavs": {
            "version": _version(), "weights": WEIGHTS, "config": CONFIG,
            "load": "refavs.model.checkpoint.load_model(FOLDER)", "predict": "refavs-predict VIDEO TEXT --run FOLDER",
            "axes": "visual u t c h w; audio u t c; text b l c; valid b l; clip b; mask_logits b t q h w; "
                    "class_logits b t q 2",
        }},
        "signature": {"inputs": json.dumps(inputs), "outputs": json.dumps(outputs), "params": None},
        "metadata": {"encoders": {name: one.get("name") for name, one in store.encoders.items()},
                     "store": store.fingerprint, "input_size": store.mask_size, "num_frames": store.seconds},
    }  # fmt: skip


def _version() -> str:
    try:
        return metadata.version("refavs")
    except metadata.PackageNotFoundError:  # code that travels with a job of Ray is not installed
        return "unknown"


def _dtype(store: "FeatureStore", path: str) -> str:
    return store.specs[path].dtype


def _tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}

"""Describes a trained head as an MLflow model: how MLflow loads it, its input and output, and its own tensors."""

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from experiments.tracking.mlflow_model import EXPRESSION, LOADER, MASKS, PROBABILITY, SETTINGS, VIDEO
from refavs.files.atomic import write_atomically
from refavs.model.checkpoint import CONFIG, WEIGHTS, read_config
from refavs.store import FeatureStore

CARD = "MLmodel"  # the file by which MLflow recognises a model
REQUIREMENTS = "requirements.txt"
ANY = -1  # an axis of any length, in MLflow's notation
INPUTS = [{"type": "string", "name": VIDEO, "required": True}, {"type": "string", "name": EXPRESSION, "required": True}]
RUN_LENGTHS = {"type": "object", "properties": {
    "size": {"type": "array", "items": {"type": "long"}, "required": True},
    "counts": {"type": "string", "required": True},
}}  # fmt: skip
OUTPUTS = [
    *INPUTS, {"type": "array", "items": RUN_LENGTHS, "name": MASKS, "required": True},
    {"type": "array", "items": {"type": "double"}, "name": PROBABILITY, "required": True},
]  # fmt: skip


def write_card(folder: Path, store: FeatureStore) -> None:
    """Writes the description of the checkpoint in `folder`, and the packages that loading it needs.

    Raises:
        WeightsError: the checkpoint's own configuration is missing.
    """
    write_atomically(folder / CARD, yaml.safe_dump(card_of(read_config(folder), store), sort_keys=False).encode())
    write_atomically(folder / REQUIREMENTS, f"refavs=={_version()}\n".encode())


def card_of(config: dict[str, Any], store: FeatureStore) -> dict[str, Any]:
    """The description of a checkpoint with this `config.json`, trained on `store`."""
    return {
        "flavors": {
            "python_function": {"loader_module": LOADER, "python_version": platform.python_version(),
                                "config": dict(SETTINGS)},
            "refavs": {
                "version": _version(), "weights": WEIGHTS, "config": CONFIG,
                "load": "refavs.model.checkpoint.load_model(FOLDER)",
                "predict": "refavs-predict VIDEO TEXT --run FOLDER", "output": "model.probs(model(batch))",
                "axes": "visual u t c h w; audio u t c; text b l c; valid b l; clip b; probs b t h w",
                "tensors": _tensors(config["model"]["sizes"], store),
            },
        },
        "signature": {"inputs": json.dumps(INPUTS), "outputs": json.dumps(OUTPUTS), "params": None},
        "metadata": {"encoders": {name: one.get("name") for name, one in store.encoders.items()},
                     "store": store.fingerprint, "input_size": store.mask_size, "num_frames": len(store.steps)},
    }  # fmt: skip


def _tensors(sizes: dict[str, Any], store: FeatureStore) -> dict[str, list[dict[str, Any]]]:
    """The head's own inputs, those of `refavs.data.batches.collate`: clips u, frames t, expressions b, tokens l."""
    inputs = [
        _tensor(f"visual/{size['name']}", _dtype(store, size["path"]), ANY, ANY, size["channels"], size["height"],
                size["width"]) for size in sizes["maps"]
    ]  # fmt: skip
    inputs += [_tensor(name, _dtype(store, sizes[name]["path"]), ANY, ANY, sizes[name]["channels"])
               for name in ("audio", "text") if sizes[name]]  # fmt: skip
    inputs += [_tensor("valid", "bool", ANY, ANY), _tensor("clip", "int64", ANY)]
    return {"inputs": inputs, "outputs": [_tensor("probs", "float32", ANY, ANY, ANY, ANY)]}


def _version() -> str:
    try:
        return metadata.version("refavs")
    except metadata.PackageNotFoundError:  # code shipped with a Ray job is not installed
        return "unknown"


def _dtype(store: FeatureStore, path: str) -> str:
    """The type of an array's values in a batch."""
    return "float32" if store.specs[path].scale else store.specs[path].dtype


def _tensor(name: str, dtype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": list(shape)}}

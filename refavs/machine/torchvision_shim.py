"""Lets `import torchvision` succeed where its compiled operators do not load beside this torch.

timm and transformers import torchvision although nothing here calls its operators. The registry's torchvision is built
against another torch than the CPU build, so its operators are missing and the import dies while registering `nms`.
"""

import importlib.util

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def ensure_torchvision() -> None:
    """Makes torchvision importable; does nothing where it is absent or imports by itself."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name, schema in _SCHEMAS.items():
            torch.library.define(name, schema)
        import torchvision  # noqa: F401

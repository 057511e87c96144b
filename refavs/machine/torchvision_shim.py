"""Lets `import torchvision` succeed although its compiled operators do not load with this torch.

timm and transformers import torchvision, and nothing here calls its operators. The published torchvision is built for
another torch than the CPU build, so its operators are missing and the import fails while registering `nms`.
"""

import importlib.util

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def ensure_torchvision() -> None:
    """Makes torchvision importable; does nothing if it is absent or imports by itself."""
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

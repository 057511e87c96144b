"""Networks that take little time to build, for tests of what surrounds them."""

import copy
from typing import Any

import pytest
from torch import nn


def few_weights(patch: pytest.MonkeyPatch) -> None:
    """From here on VGGish has a few weights in the place of 72 million."""
    patch.setattr("extract.encoders.vggish.build_vggish", _few)


def _few() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(16, 128))


def built_once(patch: pytest.MonkeyPatch) -> None:
    """From here on a Swin with random weights is a copy of the first one of its sizes and seed."""
    from extract.encoders.mask2former import VisualEncoder

    build = VisualEncoder.build
    known: dict[str, Any] = {}

    def copied(encoder: VisualEncoder) -> Any:
        if encoder.setup.weights.kind != "random":
            return build(encoder)
        key = repr((encoder.settings, encoder.setup.weights))
        if key not in known:
            known[key] = build(encoder)
        return copy.deepcopy(known[key])

    patch.setattr(VisualEncoder, "build", copied)

"""A few weights in the place of VGGish's 72 million, which take most of the time of a short extraction."""

import pytest
from torch import nn


def few_weights(patch: pytest.MonkeyPatch) -> None:
    """From here on VGGish is built so."""
    patch.setattr("extract.encoders.vggish.build_vggish", _build)


def _build() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(16, 128))

"""Weights, features and probabilities that are not finite are an error everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extract.encoders.networks import load_tensors
from refavs.errors import StatisticsError, WeightsError
from refavs.finite import is_finite, require_finite_features, require_finite_probs
from refavs.model.heads.released import _read
from refavs.model.pretrained import Mask2Former

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [NAN, INFINITE, -INFINITE])
def test_one_value_is_found_in_every_precision(dtype: torch.dtype, bad: float) -> None:
    values = torch.zeros(100)
    assert is_finite(values.to(dtype)) and is_finite(torch.arange(3)) and is_finite(torch.zeros(0))
    values[77] = bad
    assert not is_finite(values.to(dtype))


def test_weights_of_every_kind_are_refused(tmp_path: Path) -> None:
    state = {"class_predictor.good": torch.ones(2), "class_predictor.bad": torch.tensor([0.0, NAN])}
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    told = r"1 of the 2 tensors in .* hold values that are infinite or not a number \(class_predictor\.bad\); "
    for read in (
        lambda: load_tensors(tmp_path / "model.safetensors"),
        lambda: load_tensors(tmp_path / "weights.pth"),
        lambda: _read(tmp_path / "weights.pth"),
        lambda: Mask2Former(tmp_path).tensors("class_predictor"),
    ):
        with pytest.raises(WeightsError, match=told):
            read()
    assert list(Mask2Former(tmp_path).tensors("class_predictor.good")) == ["class_predictor.good"]


def test_features_and_probabilities_are_refused() -> None:
    good = {"text/valid": np.ones(3, bool), "text/features": np.ones(3, np.float16)}
    require_finite_features("the video", good)
    with pytest.raises(WeightsError, match=r"values of the video that are infinite or not a number \(text/features\)"):
        require_finite_features("the video", good | {"text/features": np.array([1, np.inf], np.float16)})
    require_finite_probs("a", torch.tensor(True))
    with pytest.raises(StatisticsError, match="probabilities of a that are not a number"):
        require_finite_probs("a", torch.tensor([0.5, NAN]).isfinite().all())

"""Weights, features and probabilities are finite numbers; what is not decides nothing silently."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from refavs.errors import StatisticsError, WeightsError


def require_finite_weights(path: Path, tensors: Mapping[str, Any]) -> None:
    """Refuses weights that hold infinite values or NaN, as those of a run that diverged.

    Raises:
        WeightsError: names the file and the first such tensors.
    """
    wrong = [name for name, value in tensors.items() if isinstance(value, Tensor) and not is_finite(value)]
    if wrong:
        told = ", ".join(map(str, wrong[:3])) + " ..." * (len(wrong) > 3)
        raise WeightsError(f"{len(wrong)} of the {len(tensors)} tensors in {path} hold values that are infinite or not "
                           f"a number ({told}); fetch or copy the file again, or train again")  # fmt: skip


def require_finite_features(of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuses features that hold infinite values or NaN.

    Args:
        of: what they are computed of.

    Raises:
        WeightsError: names the arrays.
    """
    wrong = [path for path, array in arrays.items() if not is_finite(torch.from_numpy(array))]
    if wrong:
        raise WeightsError(
            f"the encoders compute values of {of} that are infinite or not a number ({', '.join(wrong)}); check their "
            "weights by refavs-extract --check-weights, or extract and train in precision fp32"
        )


def require_finite_probs(of: str, finite: Bool[Tensor, ""]) -> None:
    """Refuses probabilities that are not a number, which no threshold would show: each comparison with NaN is false.

    Args:
        of: what is predicted.
        finite: whether all probabilities are finite; of several batches asked once, for the device is waited for.

    Raises:
        StatisticsError: they are none.
    """
    if not finite:
        raise StatisticsError(f"the head predicts probabilities of {of} that are not a number; its weights do not fit "
                              "these features, or it diverged: train it again")  # fmt: skip


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite numbers."""
    if not values.is_floating_point():
        return True
    return bool(torch.isfinite(values if values.element_size() > 1 else values.float()).all())

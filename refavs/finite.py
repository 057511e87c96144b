"""Rejects weights, features and probabilities that are not finite, before they silently spoil a result."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from refavs.errors import StatisticsError, WeightsError


def require_finite_weights(path: Path, tensors: Mapping[str, Any]) -> None:
    """Rejects weights with NaN or infinite values, e.g. from a diverged run.

    Raises:
        WeightsError: a weight is not finite; the message names the file and the first tensors.
    """
    wrong = [name for name, value in tensors.items() if isinstance(value, Tensor) and not is_finite(value)]
    if wrong:
        shown = ", ".join(map(str, wrong[:3])) + " ..." * (len(wrong) > 3)
        raise WeightsError(f"{len(wrong)} of the {len(tensors)} tensors in {path} hold values that are infinite or not "
                           f"a number ({shown}); fetch or copy the file again, or train again")  # fmt: skip


def require_finite_features(of: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Rejects features with NaN or infinite values.

    Args:
        of: the clip or text that they were computed from.

    Raises:
        WeightsError: a value is not finite; the message names the arrays.
    """
    wrong = [path for path, array in arrays.items() if not is_finite(torch.from_numpy(array))]
    if wrong:
        raise WeightsError(
            f"the encoders compute values of {of} that are infinite or not a number ({', '.join(wrong)}); check their "
            "weights with refavs-extract --check-weights, or extract and train in precision fp32"
        )


def require_finite_probs(of: str, finite: Bool[Tensor, ""]) -> None:
    """Rejects NaN probabilities, which a threshold would silently turn into an empty mask.

    Args:
        of: the expressions that are predicted.
        finite: whether all probabilities are finite; combine several batches, because reading it waits for the device.

    Raises:
        StatisticsError: some are not finite.
    """
    if not finite:
        raise StatisticsError(f"the head predicts probabilities of {of} that are not a number; its weights do not fit "
                              "these features, or it diverged; train it again")  # fmt: skip


def is_finite(values: Tensor) -> bool:
    """Whether all values are finite numbers."""
    if not values.is_floating_point():
        return True
    return bool(torch.isfinite(values if values.element_size() > 1 else values.float()).all())

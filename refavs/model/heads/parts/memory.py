"""The cached memory: the change of a step's cues from the mean of all earlier steps."""

from collections import deque

import torch
from jaxtyping import Float
from torch import Tensor


def cached_memory(features: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t k c"]:
    """Mean of each token over all earlier steps; zero in the first step.

    Ref-AVS (arXiv 2407.10957v1), Eq. 3. Differs: the printed sum has one more term than its divisor and starts before
    the first step; this is the mean over i = 1..t-1 that the text describes.
    """
    past = features.cumsum(dim=1)[:, :-1]
    counts = torch.arange(1, features.shape[1], device=features.device, dtype=features.dtype)
    return torch.cat([torch.zeros_like(features[:, :1]), past / counts[None, :, None, None]], dim=1)


def emphasise_change(features: Float[Tensor, "b t k c"], beta: float) -> Float[Tensor, "b t k c"]:
    """Amplifies the change of the cue features from the cached memory by `beta`; 0 leaves them unchanged.

    Ref-AVS (arXiv 2407.10957v1), Eq. 2.
    """
    return (beta + 1) * features - beta * cached_memory(features)


class CarriedMemory:
    """The cached memory of a modality, carried from one piece of a long video to the next.

    Steps are added one after another in float64, so the result does not depend on where the video was cut.

    Args:
        window: how many of the latest steps it covers; None for all.
    """

    def __init__(self, window: int | None = None) -> None:
        self._window, self._latest = window, deque[Tensor]()
        self._total: Tensor | None = None
        self._count = 0

    def emphasise_change(self, features: Float[Tensor, "b t k c"], beta: float) -> Float[Tensor, "b t k c"]:
        """As the function of this name, for steps that follow those of earlier calls."""
        return torch.stack([self._emphasised(step, beta) for step in features.unbind(dim=1)], dim=1)

    def _emphasised(self, step: Float[Tensor, "b k c"], beta: float) -> Float[Tensor, "b k c"]:
        mean = torch.zeros_like(step) if self._total is None or not self._count else (
            self._total.to(step.dtype) / self._count)  # fmt: skip
        self._total = step.double() if self._total is None else self._total + step
        self._count += 1
        if self._window is not None:
            self._latest.append(step)
            if self._count > self._window:
                self._total, self._count = self._total - self._latest.popleft(), self._window
        return (beta + 1) * step - beta * mean

"""The cached memory: what is new in a second against the mean of all seconds before it."""

import torch
from jaxtyping import Float
from torch import Tensor


def cached_memory(features: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t k c"]:
    """Mean of each token over the seconds before the current one, zero in the first second.

    Ref-AVS (arXiv 2407.10957v1), Eq. 3. Differs: the printed sum has one term more than its divisor and starts before
    the first second; this is the mean over i = 1..t-1 that the text describes.
    """
    past = features.cumsum(dim=1)[:, :-1]
    counts = torch.arange(1, features.shape[1], device=features.device, dtype=features.dtype)
    return torch.cat([torch.zeros_like(features[:, :1]), past / counts[None, :, None, None]], dim=1)


def emphasise_change(features: Float[Tensor, "b t k c"], beta: float) -> Float[Tensor, "b t k c"]:
    """Cue features with the change against the cached memory amplified by `beta`; 0 leaves them as they are.

    Ref-AVS (arXiv 2407.10957v1), Eq. 2.
    """
    return (beta + 1) * features - beta * cached_memory(features)

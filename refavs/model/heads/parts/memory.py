"""The cached memory: the change of a second's cues from the mean of all earlier seconds."""

import torch
from jaxtyping import Float
from torch import Tensor


def cached_memory(features: Float[Tensor, "b t k c"]) -> Float[Tensor, "b t k c"]:
    """Mean of each token over all earlier seconds; zero in the first second.

    Ref-AVS (arXiv 2407.10957v1), Eq. 3. Differs: the printed sum has one more term than its divisor and starts before
    the first second; this is the mean over i = 1..t-1 that the text describes.
    """
    past = features.cumsum(dim=1)[:, :-1]
    counts = torch.arange(1, features.shape[1], device=features.device, dtype=features.dtype)
    return torch.cat([torch.zeros_like(features[:, :1]), past / counts[None, :, None, None]], dim=1)


def emphasise_change(features: Float[Tensor, "b t k c"], beta: float) -> Float[Tensor, "b t k c"]:
    """Amplifies the change of the cue features from the cached memory by `beta`; 0 leaves them unchanged.

    Ref-AVS (arXiv 2407.10957v1), Eq. 2.
    """
    return (beta + 1) * features - beta * cached_memory(features)

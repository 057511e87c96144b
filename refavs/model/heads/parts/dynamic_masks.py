"""Masks by three 1 x 1 convolutions that each query makes for itself (CondInst, arXiv 2003.05664)."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from refavs.model.heads.parts.box_decoder import perceptron

HIDDEN = 8  # channels between the convolutions
STRIDE = 4  # of the mask features, in pixels of the frame


class DynamicMasks(nn.Module):
    """The first convolution reads the mask features and the offset of each pixel from the query's centre, in pixels.

    The features are not repeated for each query: their columns of the first convolution are a matrix product, and the
    two columns of the offset are added separately.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.sizes = [HIDDEN * (channels + 2), HIDDEN * HIDDEN, HIDDEN, HIDDEN, HIDDEN, 1]
        self.controller = perceptron(channels, sum(self.sizes))
        for layer in self.controller:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self, queries: Float[Tensor, "b t q c"], features: Float[Tensor, "b t c h w"], centres: Float[Tensor, "b t q 2"]
    ) -> Float[Tensor, "b t q h w"]:
        """Mask logits.

        Args:
            centres: of the queries, (x, y) from 0 to 1.
        """
        first, second, third, *biases = self.controller(queries).split(self.sizes, dim=-1)
        first = rearrange(first, "b t q (o c) -> b t q o c", o=HIDDEN)
        second = rearrange(second, "b t q (p o) -> b t q p o", p=HIDDEN)
        hidden = torch.einsum("btqoc,btchw->btqohw", first[..., :-2], features)
        for axis, offset in enumerate(_offsets(centres, (features.shape[-2], features.shape[-1]))):
            weight = first[..., -2 + axis].float()  # offsets of hundreds of pixels are too coarse in bfloat16
            hidden = hidden + rearrange(weight, "b t q o -> b t q o 1 1") * offset
        biases = [rearrange(bias, "b t q o -> b t q o 1 1") for bias in biases]
        hidden = torch.einsum("btqpo,btqohw->btqphw", second, (hidden + biases[0]).relu())
        logits = torch.einsum("btqo,btqohw->btqhw", third, (hidden + biases[1]).relu())
        return (logits + biases[2][..., 0, :, :]).float()


def _offsets(
    centres: Float[Tensor, "b t q 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "b t q 1 1 w"], Float[Tensor, "b t q 1 h 1"]]:
    """The centre's distance from each column and row, in pixels of the frame."""
    x, y = (
        rearrange(centres[..., axis] * STRIDE * length, "b t q -> b t q 1")
        - (torch.arange(length, device=centres.device) * STRIDE + STRIDE // 2)
        for axis, length in enumerate(reversed(size))
    )
    return rearrange(x, "b t q w -> b t q 1 1 w"), rearrange(y, "b t q h -> b t q 1 h 1")

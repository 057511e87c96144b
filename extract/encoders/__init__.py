"""The frozen encoders, one file each, behind two protocols: of clips' frames, and of sounds or texts."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from extract.encoders.weights import WeightPart
from refavs.choices import Precision
from refavs.errors import ConfigError
from refavs.machine.accelerator import compute_fp32_exactly
from refavs.store.format.schema import ArraySpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Input_contra = TypeVar("Input_contra", contravariant=True)
Prepared = TypeVar("Prepared")
Network = TypeVar("Network", bound=nn.Module)


@runtime_checkable
class Encoder(Protocol):
    """One frozen encoder, of one or more streams.

    Making one costs nothing and reads nothing, so it can be sent to workers; weights are read on the first `encode`.
    What it returns for an input depends on that input, never on what else was encoded before or beside it (on a GPU,
    whose kernels change with the size of a batch, up to the last bits).
    """

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Plain facts that name the encoder of each stream: name, weights, preprocessing, sizes and types.

        Raises:
            WeightsError: its weights are nowhere to be found.
        """
        ...

    def specs(self) -> Sequence[ArraySpec]:
        """The arrays that `encode` makes."""
        ...

    def weight_parts(self) -> Sequence[WeightPart]:
        """The files that it reads, which `refavs-extract --check-weights` looks at."""
        ...


class ItemEncoder(Encoder, Protocol[Input_contra, Prepared]):
    """An encoder of sounds or texts."""

    def prepare(self, item: Input_contra) -> Prepared:
        """What can be computed of one input without the network; called from the threads that decode."""
        ...

    def encode(self, items: Sequence[Prepared]) -> list[dict[str, np.ndarray]]:
        """Arrays of each prepared input, by path.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...


class ClipEncoder(Encoder, Protocol):
    """An encoder of the frames of several clips at once, into the levels asked for.

    Attributes:
        levels: those whose arrays and fingerprints it speaks of.
        precision: type in which it computes.
    """

    levels: tuple[str, ...]
    precision: Precision

    def encode(
        self, clips: Sequence[UInt8[np.ndarray, "t h w 3"]], levels: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Arrays of each clip, by path.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...


def refuse_precision(precision: Precision, device: str) -> None:
    """Checks that the device computes in that precision.

    Raises:
        ConfigError: it has no instructions for it, so that it would be slower than fp32, by far.
    """
    if precision != "fp16" or device != "cpu" or torch.ops.mkldnn._is_mkldnn_fp16_supported():
        return
    raise ConfigError("--precision fp16 needs a GPU, or a processor with AVX512-FP16, which this one lacks; take fp32 "
                      "or bf16, or --device cuda where there is a GPU")


def frozen(network: Network, device: str, dtype: torch.dtype) -> Network:
    """A network as it computes features: for inference, on its device, and exact where it is fp32.

    Every encoder goes through here. Autocast instead would convert the weights in each pass.
    """
    compute_fp32_exactly()
    return network.eval().requires_grad_(False).to(device, dtype)


def to_host(maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors on the host; from a GPU through pinned memory, which is ten times as fast as pageable memory.

    The pinned blocks come from torch's cache and return to it when the arrays made of them are freed.
    """
    if not all(value.is_cuda for value in maps.values()):
        return {path: value.cpu() for path, value in maps.items()}
    found = {path: torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
             for path, value in maps.items()}  # fmt: skip
    torch.cuda.current_stream().synchronize()
    return found

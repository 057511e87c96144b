"""The frozen encoders, one file each, behind one protocol."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from refavs.store.schema import ArraySpec

Precision = Literal["fp32", "bf16"]
Input_contra = TypeVar("Input_contra", contravariant=True)


@runtime_checkable
class Encoder(Protocol[Input_contra]):
    """One stream's frozen encoder.

    Making one costs nothing and reads nothing, so it can be sent to workers; weights are read on the first `encode`.
    What it returns depends on the one input given, never on what else was encoded before or beside it.
    """

    @property
    def stream(self) -> str:
        """Name of the stream: `visual`, `audio` or `text`."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain facts that name the encoder: name, weights, preprocessing, sizes and types.

        Raises:
            WeightsError: its weights are nowhere to be found.
        """
        ...

    def specs(self) -> Sequence[ArraySpec]:
        """The arrays that `encode` makes."""
        ...

    def encode(self, item: Input_contra) -> dict[str, np.ndarray]:
        """Arrays of one clip or one text, by path.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...

"""What a frozen encoder is: the protocol that built-in encoders and plug-ins follow.

An encoder turns the frames, the sound or the text of a clip into arrays; each level of its arrays is a stream of the
store, `<modality>/<encoder>` or `<modality>/<encoder>/<level>`. A plug-in subclasses `Encoder`, registers a factory in
the entry-point group `refavs.encoders`, and tests itself by `extract.encoders.contract.check_encoder`:

    class Loudness(Encoder):
        name, modality, takes = "loudness", "audio", Sound(rate_hz=48_000)
        licence, num_parameters, weights = "MIT", 0, "none"

        def facts(self, level):
            return {"name": "loudness", "weights": "none", "precision": "fp32", "preprocessing": "48 kHz, rms of 0.1 s"}

        def arrays(self, seconds):
            return {"": (ArraySpec(name="features", shape=(10 * seconds, 1), dtype="float32", axes=("n", "c"),
                                   statistics=True),)}

        def encode(self, batch, levels):
            tenths = [rearrange(sound, "(n s) -> n s", s=4800) for sound in batch]
            return [{"features": np.sqrt((each**2).mean(1, keepdims=True)).astype(np.float32)} for each in tenths]

    def loudness(setup):    # pyproject.toml: [project.entry-points."refavs.encoders"] loudness = "mine:loudness"
        return Loudness()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from extract.encoders.weights import WeightPart, WeightSource
from extract.media.forms import Frames, Sound, Text
from refavs.choices import Precision
from refavs.store.format.schema import ArraySpec

__all__ = ["Encoder", "EncoderSetup", "Frames", "Modality", "Sound", "Text"]

Modality = Literal["visual", "audio", "text"]


@dataclass(frozen=True, kw_only=True)
class EncoderSetup:
    """What a factory is given: the user's choices.

    Attributes:
        weights: where pretrained weights come from, or the seed of random ones.
        precision: type in which the network computes.
        device: `cpu` or `cuda`.
    """

    weights: WeightSource
    precision: Precision = "fp32"
    device: str = "cpu"


@runtime_checkable
class Encoder(Protocol):
    """One frozen encoder.

    Making one costs nothing and reads nothing, so that it can be sent to workers; weights are read by the first
    `encode`. The arrays of an input depend on that input alone, never on what else was encoded before or beside it (on
    a GPU, whose kernels change with the size of a batch, up to the last bits).

    Attributes:
        name: letters, digits, `_`, `-` and `.`.
        modality: what it encodes; names the streams.
        takes: the form in which it takes that.
        licence: of its weights; shown by `refavs-extract --list-encoders`, like the next two.
        num_parameters: of the network.
        weights: where they come from.
    """

    name: str
    modality: Modality
    takes: Frames | Sound | Text
    licence: str = "unknown"
    num_parameters: int = 0
    weights: str = "its own package"

    def facts(self, level: str) -> Mapping[str, Any]:
        """Plain facts that name the stream of a level, its fingerprint: all that changes a value of its arrays.

        `name`, `weights`, `preprocessing` and `precision` are required. Random weights are named `random:<seed>`.

        Raises:
            WeightsError: the weights are nowhere to be found.
        """
        ...

    def arrays(self, seconds: int) -> Mapping[str, Sequence[ArraySpec]]:
        """The arrays of one clip of so many seconds, or of one text, by level; one level is called ``""``."""
        ...

    def encode(self, batch: Sequence[Any], levels: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
        """Arrays of each prepared input by their names, `<level>/<array>` or `<array>`.

        Args:
            batch: what `prepare` returned for each input.
            levels: those to compute.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...

    def prepare(self, item: Any) -> Any:
        """What can be computed of one input without the network; called from the threads that decode."""
        return item

    def weight_parts(self) -> Sequence[WeightPart]:
        """The files that it reads, for `refavs-extract --check-weights`."""
        return ()

    def remarks(self, items: Sequence[Any]) -> Sequence[str]:
        """Lines to show before a run about inputs that it does not take whole."""
        return ()

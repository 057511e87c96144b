"""The protocol of frozen encoders, for built-in encoders and plug-ins.

An encoder turns the frames, the audio or the text of a clip into arrays; each level of its arrays is a stream of the
store, `<modality>/<encoder>` or `<modality>/<encoder>/<level>`. A plug-in subclasses `Encoder`, registers a factory in
the entry-point group `refavs.encoders`, and runs `extract.encoders.contract.check_encoder` in its tests:

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
    """The user's choices, passed to a factory.

    Attributes:
        weights: source of pretrained weights, or the seed of random ones.
        precision: type in which the network computes.
        device: `cpu` or `cuda`.
        fps: steps per second of the clips, for encoders of sound that make a row for each step.
    """

    weights: WeightSource
    precision: Precision = "fp32"
    device: str = "cpu"
    fps: float = 1.0


@runtime_checkable
class Encoder(Protocol):
    """A frozen encoder.

    Creating one is cheap and reads nothing, so that it can be sent to workers; the first `encode` reads the weights.
    The arrays of an input depend only on that input, never on other inputs before it or in the batch (on a GPU, whose
    kernels depend on the batch size, up to the last bits).

    Attributes:
        name: consists of letters, digits, `_`, `-` and `.`.
        modality: the modality it encodes, used in stream ids.
        takes: the form of its input.
        licence: licence of its weights; shown by `refavs-extract --list-encoders`, like the next two.
        num_parameters: number of parameters of the network.
        weights: origin of the weights.
    """

    name: str
    modality: Modality
    takes: Frames | Sound | Text
    licence: str = "unknown"
    num_parameters: int = 0
    weights: str = "its own package"

    def facts(self, level: str) -> Mapping[str, Any]:
        """The fingerprint of a level's stream: plain facts about everything that affects the values of its arrays.

        `name`, `weights`, `preprocessing` and `precision` are required. Random weights are called `random:<seed>`.

        Raises:
            WeightsError: the weights cannot be found.
        """
        ...

    def arrays(self, length: int, /) -> Mapping[str, Sequence[ArraySpec]]:
        """The arrays of one clip, or of one text, by level; a single level is called ``""``.

        Arrays with an axis `t` must have a row for each step of the clip: those of sound for the second that begins
        there. An encoder of sound that makes a row for each second can only be used at one frame per second.

        Args:
            length: of the clip: the number of its frames, or of the seconds of its sound.
        """
        ...

    def encode(self, batch: Sequence[Any], levels: Sequence[str]) -> Sequence[Mapping[str, np.ndarray]]:
        """Computes the arrays of each prepared input, by name: `<level>/<array>` or `<array>`.

        Args:
            batch: results of `prepare` for each input.
            levels: levels to compute.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...

    def prepare(self, item: Any) -> Any:
        """Preprocesses one input without the network; called in the decoding threads."""
        return item

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights files that it reads, for `refavs-extract --check-weights`."""
        return ()

    def remarks(self, items: Sequence[Any]) -> Sequence[str]:
        """Lines to show before a run about inputs that will be truncated."""
        return ()

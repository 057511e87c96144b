"""The two kinds of model of an annotation project: one finds objects by name, one makes and follows masks.

Real ones are in `grounding_dino.py`, `sam3.py` and `sam2_masks.py`. A model is created cheaply and reads its weights
when it is first used, so that it can be sent to workers. A package adds one as an entry point: in the group
`refavs.detectors`, called with an `EncoderSetup` and two thresholds, or in `refavs.trackers`, called with the setup.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, UInt8

from extract.annotate.records import Box
from extract.encoders.weights import WeightPart

PRESENT = 0.5  # an object with a lower probability of presence has an empty mask


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """The frame of a second.

    Attributes:
        clip: id of its clip.
        second: its second in the clip.
        pixels: RGB.
    """

    clip: str
    second: int
    pixels: UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A place where a frame shows something of a name.

    Attributes:
        name: one of the names asked for.
        box: in px.
        score: from 0 to 1.
        label: what the detector called it, perhaps only a part of the name.
    """

    name: str
    box: Box
    score: float
    label: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredMask:
    """A mask, and the IoU with the object that the model expects of it."""

    mask: Bool[np.ndarray, "h w"]
    iou_score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """The masks of an object in the frames of a scene.

    Attributes:
        masks: empty where the object is absent.
        presence: probability that the object shows.
    """

    masks: Bool[np.ndarray, "t h w"]
    presence: Float[np.ndarray, " t"]


class Model(Protocol):
    """What detectors and trackers have in common.

    Attributes:
        name: as on the command line.
    """

    name: str

    def revision(self) -> str:
        """Identifies the weights.

        Raises:
            WeightsError: they cannot be found.
        """
        ...

    def weight_parts(self) -> Sequence[WeightPart]:
        """The weights files, for a dry run."""
        return ()

    def rehearse(self, computes: Collection[str]) -> Mapping[str, float]:
        """Seconds for a frame (`frame`) and for an object in a frame (`object`), measured with the weights it has.

        Args:
            computes: which of them are wanted.

        Returns:
            Those that the model has.
        """
        return {}


class Detector(Model, Protocol):
    """Finds objects by their names."""

    def detect(self, frame: Frame, names: Sequence[str]) -> list[Detection]:
        """All places above the detector's threshold, in any order; several for one name where there are several.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...


class Maps(Protocol):
    """The features of the frames of one clip."""

    def of(self, second: int) -> Mapping[str, np.ndarray]:
        """The arrays of a second, by path in the encoder (`image/map`)."""
        ...


class Tracker(Model, Protocol):
    """Makes masks from boxes, and follows masks through the frames of a scene."""

    def candidates(self, frame: Frame, boxes: Sequence[Box]) -> list[tuple[ScoredMask, ...]]:
        """Three masks for each box.

        Raises:
            WeightsError: the weights are missing or of another architecture.
        """
        ...

    def maps(self, frames: Sequence[Frame]) -> Maps | None:
        """The features of a clip's frames, which its scenes share; None if the tracker computes none."""
        return None

    def track(
        self, frames: Sequence[Frame], prompts: Mapping[int, Mapping[int, Bool[np.ndarray, "h w"]]],
        pivots: Mapping[int, int], maps: Maps | None = None,
    ) -> dict[int, Track]:  # fmt: skip
        """Follows all objects of a scene from their pivots to both of its ends.

        Args:
            frames: the frames of the scene in order.
            prompts: for each object, by fid, its known masks by number of the frame in `frames`.
            pivots: the frame, one of its `prompts`, that each object starts from.
            maps: features of the frames, from a store or from `maps`; None computes them.

        Returns:
            The track of each object by fid; its masks in the frames of `prompts` may differ from those given.
        """
        ...

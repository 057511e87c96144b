"""A project of small clips with known masks, as `propose` and `track` leave it."""

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from extract.annotate.records import (
    Candidate,
    Candidates,
    Masks,
    MaskSecond,
    Project,
    ProjectFolder,
    ProposedObject,
    RunLengths,
    Scene,
    Scenes,
    TrackedObject,
)
from refavs.data.rle import plain

SIZE = 24, 32  # height, width
SECONDS = 10


def blob(fid: int, second: int) -> np.ndarray:
    """The mask of an object: a square with a hole that moves to the right; object 3 leaves after second 4."""
    mask = np.zeros(SIZE, bool)
    if fid == 3 and second > 4:
        return mask
    top, left = 2 + 7 * (fid - 1), 1 + 2 * second
    mask[top : top + 6, left : left + 6] = True
    mask[top + 2, left + 2] = False
    return mask


def make_project(
    folder: Path, clips: Sequence[str] = ("one", "two"), names: Sequence[str] = ("drum", "drum", "old man"),
    sound: bool = True,
) -> ProjectFolder:  # fmt: skip
    """Writes a project whose clips have the same objects."""
    project = ProjectFolder(folder)
    models = {"tracker": {"name": "stand-in", "revision": "r1"}}
    project.write(Project(source=str(folder / "videos"), layout="videos", seconds=SECONDS, models=models))
    for number, clip_id in enumerate(clips):
        files = project.clip(clip_id)
        (files.folder / "frames").mkdir(parents=True)
        for second in range(SECONDS):
            pixels = np.full((*SIZE, 3), (20 * number + 3 * second) % 256, np.uint8)
            Image.fromarray(pixels).save(files.frame(second))
        if sound:
            with wave.open(str(files.sound), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(np.full(160_000, 100 * (number + 1), "<i2").tobytes())
        scenes = (Scene(first=0, last=4), Scene(first=5, last=9))
        height, width = SIZE
        files.write(Scenes(width=width, height=height, seconds=SECONDS, scenes=scenes, method="given", threshold=None))
        proposed = ProposedObject(
            fid=1, name=names[0], scene=0, pivot=2, box=(0.0, 0.0, 9.0, 9.0), detector_score=0.9, label=names[0],
            candidates=(Candidate(rle=rle_of(blob(1, 2)), iou_score=0.9),),
        )  # fmt: skip
        files.write(Candidates(objects=(proposed,)))
        files.write(masks_of(names))
    return project


def rle_of(mask: np.ndarray) -> RunLengths:
    """The run lengths as records have them."""
    return plain(mask)


def masks_of(names: Sequence[str]) -> Masks:
    """The masks of a clip as tracked."""
    objects = []
    for fid, name in enumerate(names, start=1):
        shown = [blob(fid, second) for second in range(SECONDS)]
        seconds = tuple(
            MaskSecond(second=second, rle=rle_of(mask) if mask.any() else None, presence=float(mask.any()),
                       scene=int(second > 4))
            for second, mask in enumerate(shown)
        )  # fmt: skip
        objects.append(TrackedObject(fid=fid, name=name, seconds=seconds))
    return Masks(objects=tuple(objects), tracker="stand-in", revision="r1")

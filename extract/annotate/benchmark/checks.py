"""What a person should look at in the masks of a clip."""

from itertools import combinations

import numpy as np

from extract.annotate.exchange.exports import picture
from extract.annotate.models import PRESENT
from extract.annotate.records import Masks, Scenes, TrackedObject

_MOST_OVERLAP = 0.01  # of the smaller mask
_MOST_FRAME = 0.6  # of the frame
_MOST_GROWTH = 4.0  # of the area, from one second to the next
_MOST_MOVE = 0.5  # of the frame's side


def checks(masks: Masks, scenes: Scenes) -> list[str]:
    """One line for each odd mask that no person has edited."""
    found = []
    pictures = {one.fid: np.stack([picture(each.rle, scenes.height, scenes.width) for each in one.seconds])
                for one in masks.objects}  # fmt: skip
    for one in masks.objects:
        found += _of_object(one, pictures[one.fid], scenes)
    for one, other in combinations(masks.objects, 2):
        left, right = pictures[one.fid], pictures[other.fid]
        smaller = np.minimum(left.sum((1, 2)), right.sum((1, 2)))
        overlap = (left & right).sum((1, 2))
        found += [f"objects {one.fid} and {other.fid}, second {second}: {overlap[second] / smaller[second]:.0%} overlap"
                  for second in np.flatnonzero(overlap > _MOST_OVERLAP * smaller).tolist()]  # fmt: skip
    return found


def _of_object(one: TrackedObject, shown: np.ndarray, scenes: Scenes) -> list[str]:
    areas = shown.sum((1, 2))
    lines = []
    for each in one.seconds:
        second, where = each.second, f"object {one.fid}, second {each.second}"
        if each.origin == "edited":
            continue
        if (each.presence >= PRESENT) != bool(areas[second]):
            lines.append(f"{where}: its mask has {areas[second]} px, but it shows with probability {each.presence:.2f}")
        if areas[second] > _MOST_FRAME * scenes.height * scenes.width:
            lines.append(f"{where}: fills {areas[second] / (scenes.height * scenes.width):.0%} of the frame")
        before = second - 1
        if before < 0 or scenes.scene_of(before) != scenes.scene_of(second) or not areas[before] or not areas[second]:
            continue
        ratio = float(max(areas[second] / areas[before], areas[before] / areas[second]))
        if ratio > _MOST_GROWTH:
            lines.append(f"{where}: its area changes {ratio:.1f}-fold")
        moved = np.abs(_centre(shown[second]) - _centre(shown[before])) / (scenes.height, scenes.width)
        if moved.max() > _MOST_MOVE:
            lines.append(f"{where}: it jumps by {moved.max():.0%} of the frame")
    return lines


def _centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(0)

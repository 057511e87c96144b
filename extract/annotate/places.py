"""Where the objects of a clip are: for each scene a pivot and a box of each object.

The pivot is the second with the highest score of the detector; of equal ones, the middle one. Several objects of one
name take the best places of one second, from left to right.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from extract.annotate.models import Detection
from extract.annotate.records import Box, Request, Scene, Scenes

SAME_PLACE = 0.7  # IoU above which two boxes of one name are one place


@dataclass(frozen=True, kw_only=True)
class Place:
    """An object in the pivot of a scene.

    Attributes:
        score: None where a person gave the box.
    """

    request: Request
    scene: int
    pivot: int
    box: Box
    score: float | None
    label: str


@dataclass
class Placed:
    """The places of the objects of a clip, and lines for people about those that could not be placed."""

    places: list[Place] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def placed(
    requests: Sequence[Request], scenes: Scenes, detections: Mapping[int, Sequence[Detection]],
    taken: Iterable[tuple[int, Box]] = (),
) -> Placed:  # fmt: skip
    """Places every object in every scene where it is found.

    Args:
        detections: of each second that was searched.
        taken: seconds and boxes of other objects, which are not given away again.
    """
    found = Placed()
    by_name: dict[str, dict[int, list[Request]]] = defaultdict(lambda: defaultdict(list))
    for request in requests:
        by_name[request.name][request.fid].append(request)
    others = list(taken)
    for objects in by_name.values():
        for number, scene in enumerate(scenes.scenes):
            free: list[Request] = []
            for rows in objects.values():
                row = next((row for row in rows if row.pivot in scene.seconds), rows[0])
                given = row.pivot in scene.seconds
                if given and row.box is not None:
                    _place_given(found, row, number, scenes)
                elif given:
                    _place_found(found, [row], number, [row.pivot or 0], detections, others)
                else:
                    free.append(row)
            if free:
                _place_found(found, free, number, scene.seconds, detections, others)
    _tell(found, by_name, scenes)
    return found


def _place_given(found: Placed, row: Request, scene: int, scenes: Scenes) -> None:
    assert row.box is not None and row.pivot is not None
    box = within(row.box, scenes.width, scenes.height)
    if box is None:
        found.problems.append(f"{called(row)}: its box {_shown(row.box)} lies outside of the frame of {scenes.width} x "
                              f"{scenes.height} pixels; correct it in the table")  # fmt: skip
        return
    if box != row.box:
        found.problems.append(f"{called(row)}: its box {_shown(row.box)} reaches beyond the frame of {scenes.width} x "
                              f"{scenes.height} pixels and was cut")  # fmt: skip
    found.places.append(Place(request=row, scene=scene, pivot=row.pivot, box=box, score=None, label="given"))


def _place_found(
    found: Placed, rows: Sequence[Request], scene: int, seconds: Iterable[int],
    detections: Mapping[int, Sequence[Detection]], others: list[tuple[int, Box]],
) -> None:  # fmt: skip
    """Gives the best places of one second to objects of one name."""
    name, ranked = rows[0].name, {}
    for second in seconds:
        known = [box for other, box in others if other == second]
        ranked[second] = _distinct([each for each in detections.get(second, ()) if each.name == name], known)
    most = min(len(rows), max(map(len, ranked.values()), default=0))
    if not most:
        return
    scores = {second: places[most - 1].score for second, places in ranked.items() if len(places) >= most}
    best = [second for second, score in scores.items() if score == max(scores.values())]
    pivot = best[(len(best) - 1) // 2]
    chosen = sorted(ranked[pivot][:most], key=lambda each: each.box[0])
    for row, each in zip(rows, chosen, strict=False):
        found.places.append(Place(request=row, scene=scene, pivot=pivot, box=each.box, score=each.score,
                                  label=each.label))  # fmt: skip
        others.append((pivot, each.box))


def _tell(found: Placed, by_name: Mapping[str, Mapping[int, Sequence[Request]]], scenes: Scenes) -> None:
    seen = defaultdict(set)
    for place in found.places:
        seen[place.request.fid].add(place.scene)
    for name, objects in by_name.items():
        if len(objects) > 1:
            fids = ", ".join(map(str, objects))
            found.problems.append(f"{len(objects)} objects are called {name!r} (fid {fids}): they were taken from left "
                                  "to right in each scene; check that each fid is the same object everywhere")
        for fid, rows in objects.items():
            absent = [scene for number, scene in enumerate(scenes.scenes) if number not in seen[fid]]
            if not seen[fid]:
                found.problems.append(f"{called(rows[0])}: the detector finds it in no second; give it another name, "
                                      "lower --threshold, or give its pivot and box in the table")  # fmt: skip
            elif absent:
                found.problems.append(f"{called(rows[0])}: not found in {_spans(absent)}; its masks there stay empty")


def _distinct(detections: Iterable[Detection], known: Sequence[Box]) -> list[Detection]:
    """The detections of different places, best first."""
    kept: list[Detection] = []
    for each in sorted(detections, key=lambda each: -each.score):
        if all(iou(each.box, box) <= SAME_PLACE for box in (*known, *(other.box for other in kept))):
            kept.append(each)
    return kept


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / max(areas - shared, 1e-9)


def within(box: Box, width: int, height: int) -> Box | None:
    """The part of a box that lies in the frame; None if there is none."""
    x0, y0, x1, y1 = max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def called(row: Request) -> str:
    """How lines name an object."""
    return f"{row.name!r} (fid {row.fid})"


def _shown(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)


def _spans(scenes: Sequence[Scene]) -> str:
    return " and ".join(f"second {scene.first}" if scene.first == scene.last else
                        f"seconds {scene.first} to {scene.last}" for scene in scenes)  # fmt: skip

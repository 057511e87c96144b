"""Proposes the objects of one clip: scenes, pivots, boxes, and three masks for each box."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from extract.annotate.clip_jobs import ClipJob, Step
from extract.annotate.film import write_media
from extract.annotate.models import Detection, Detector, Frame, Tracker
from extract.annotate.places import Place, placed, within
from extract.annotate.records import (
    CANDIDATES,
    SCENES,
    Candidate,
    Candidates,
    ClipFiles,
    ProjectFolder,
    ProposedObject,
    Request,
    Scenes,
)
from extract.annotate.scenes import cuts_named
from extract.media.clip import read_picture
from refavs.data.rle import plain
from refavs.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class ProposeStep(Step):
    """The step for one clip after the other.

    Attributes:
        cuts: how scenes are found.
        cut_threshold: None takes the usual one.
    """

    project: Path
    seconds: int
    detector: Detector
    tracker: Tracker
    cuts: str
    cut_threshold: float | None

    def begin(self) -> None:
        """Looks for the weights."""
        self.detector.revision()
        self.tracker.revision()

    def run(self, job: ClipJob) -> Sequence[str]:
        """Writes the media and the scenes if they are missing, then the candidates of new objects."""
        files, clip = ProjectFolder(self.project).clip(job.clip), job.work.clip
        if (files.folder / SCENES).exists():
            scenes = files.scenes()
        else:
            scenes = write_media(clip, files, self.seconds, cuts_named(self.cuts, self.cut_threshold))
        earlier = files.candidates() if (files.folder / CANDIDATES).exists() else Candidates(objects=())
        found = self._completed(job.clip, files, scenes, earlier, job.work.requests)
        files.write(found)
        return (*scenes.notes, *found.problems)

    def _completed(
        self, clip: str, files: ClipFiles, scenes: Scenes, earlier: Candidates, requests: Sequence[Request]
    ) -> Candidates:
        """The candidates of all requests; those of earlier ones stay, with what people chose."""
        changed = {row.fid for row in requests if row not in earlier.requests}
        new = [row for row in requests if row.fid in changed]
        asked = {row.fid for row in requests} - changed
        kept = [one for one in earlier.objects if one.fid in asked]

        @lru_cache(maxsize=2)
        def frame(second: int) -> Frame:
            return read_frame(files, clip, second, scenes)

        detections = self._detections(new, scenes, frame)
        found = placed(new, scenes, detections, [(one.pivot, one.box) for one in kept])
        by_pivot: dict[int, list[Place]] = defaultdict(list)
        for place in found.places:
            by_pivot[place.pivot].append(place)
        objects = list(kept)
        for second, places in by_pivot.items():
            masks = self.tracker.candidates(frame(second), [place.box for place in places])
            for place, own in zip(places, masks, strict=True):
                objects.append(ProposedObject(
                    fid=place.request.fid, name=place.request.name, scene=place.scene, pivot=second, box=place.box,
                    detector_score=place.score, label=place.label,
                    candidates=tuple(Candidate(rle=plain(each.mask), iou_score=each.iou_score) for each in own),
                ))  # fmt: skip
        objects.sort(key=lambda one: (one.fid, one.scene))
        return Candidates(requests=tuple(requests), objects=tuple(objects), problems=tuple(found.problems))

    def _detections(
        self, rows: Sequence[Request], scenes: Scenes, frame: Callable[[int], Frame]
    ) -> Mapping[int, list[Detection]]:
        """What the detector finds in the seconds that matter."""
        found: dict[int, list[Detection]] = {}
        for scene in scenes.scenes:
            given = {row.fid: row for row in rows if row.pivot in scene.seconds}
            searched = [row for row in rows if row.fid not in given]
            for second in scene.seconds:
                there = [row for row in given.values() if row.pivot == second and row.box is None]
                names = sorted({row.name for row in (*searched, *there)})
                for each in self.detector.detect(frame(second), names) if names else ():
                    if (box := within(each.box, scenes.width, scenes.height)) is not None:
                        found.setdefault(second, []).append(replace(each, box=box))
        return found


def read_frame(files: ClipFiles, clip: str, second: int, scenes: Scenes) -> Frame:
    """The frame of a second, as the project has it.

    Raises:
        DatasetError: it is missing, damaged, or of another size than the scenes say.
    """
    picture = read_picture(files.frame(second))
    if picture.size != (scenes.width, scenes.height):
        raise DatasetError(f"frame {files.frame(second)} has {picture.width} x {picture.height} pixels, scenes.json "
                           f"says {scenes.width} x {scenes.height}; remove the clip's folder, then propose it again")
    return Frame(clip=clip, second=second, pixels=np.asarray(picture))

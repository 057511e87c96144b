"""Tracks the objects of one clip through its scenes."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from extract.annotate.clip_jobs import ClipJob, Step
from extract.annotate.models import Frame, Maps, Track, Tracker
from extract.annotate.proposing import read_frame
from extract.annotate.records import (
    MASKS,
    Candidates,
    ClipFiles,
    Masks,
    MaskSecond,
    ProjectFolder,
    ProposedObject,
    Scene,
    Scenes,
    TrackedObject,
)
from extract.annotate.store_maps import StoredMaps
from refavs.config import digest
from refavs.data.layouts import Clip, find_clip
from refavs.data.rle import decoded, plain
from refavs.errors import DatasetError

Mask = Bool[np.ndarray, "h w"]
Edited = Mapping[int, Mapping[int, MaskSecond]]  # by fid and second


@dataclass(frozen=True, kw_only=True)
class TrackStep(Step):
    """The step for one clip after the other.

    Attributes:
        revision: stamp of the tracker's weights.
        store: has the features of the frames; None computes them.
        source: the folder that the project was made from, and its layout.
    """

    project: Path
    tracker: Tracker
    revision: str
    store: StoredMaps | None
    source: str | os.PathLike[str]
    layout: str

    def begin(self) -> None:
        """Looks for the weights."""
        self.tracker.revision()

    def is_done(self, clip: str) -> bool:
        """Whether the masks of a clip come from its present candidates and corrected frames."""
        files = ProjectFolder(self.project).clip(clip)
        try:
            known = _masks(files)
            return known is not None and known.inputs == self._inputs(files.candidates(), files.scenes(), known)
        except DatasetError:  # the step meets it again and lists the clip
            return False

    def run(self, job: ClipJob) -> Sequence[str]:
        """Writes the masks of every second; keeps those that people made."""
        files = ProjectFolder(self.project).clip(job.clip)
        known, scenes, candidates = _masks(files), files.scenes(), files.candidates()
        found = _Objects(candidates, known, scenes)
        frames = [read_frame(files, job.clip, second, scenes) for second in range(scenes.seconds)]
        prompts = [found.prompts(number, scene) for number, scene in enumerate(scenes.scenes)]
        if any(known for known, _ in prompts):
            maps = self._stored(frames, files) if self.store is not None else self.tracker.maps(frames)
            for scene, (known_masks, pivots) in zip(scenes.scenes, prompts, strict=True):
                own = frames[scene.first : scene.last + 1]
                tracks = self.tracker.track(own, known_masks, pivots, maps) if known_masks else {}
                found.add(scene, tracks, known_masks)
        objects = tuple(found.object(fid) for fid in found.names)
        problems = [f"{one.name!r} (fid {one.fid}) never shows: all its masks are empty; correct a frame, or leave it "
                    "out of the table" for one in objects if all(each.rle is None for each in one.seconds)]  # fmt: skip
        files.write(Masks(objects=objects, tracker=self.tracker.name, revision=self.revision,
                          inputs=self._inputs(candidates, scenes, known), problems=tuple(problems)))  # fmt: skip
        return problems

    def _inputs(self, candidates: Candidates, scenes: Scenes, known: Masks | None) -> str:
        """Digest of everything that the masks depend on."""
        edited = {fid: {second: each.rle for second, each in seconds.items()}
                  for fid, seconds in _edited(known).items()}  # fmt: skip
        chosen = [[one.fid, one.scene, one.pivot, one.mask] for one in candidates.objects]
        names = {row.fid: row.name for row in candidates.requests}
        spans = [[scene.first, scene.last] for scene in scenes.scenes]
        return digest([self.tracker.name, self.revision, names, spans, chosen, edited])

    def _stored(self, frames: Sequence[Frame], files: ClipFiles) -> Maps:
        """The features of a clip from the store."""
        assert self.store is not None
        clip = frames[0].clip
        source = find_clip({"extraction": {"source": os.fspath(self.source), "layout": self.layout}}, clip)
        own = Clip(id=clip, frames=tuple(files.frame(frame.second) for frame in frames))
        return self.store.of_clip(clip, source, own, len(frames))


class _Objects:
    """The objects of a clip while their masks are found.

    Attributes:
        names: of all objects, by fid, in order.
    """

    def __init__(self, candidates: Candidates, known: Masks | None, scenes: Scenes) -> None:
        self._edited, self._scenes = _edited(known), scenes
        self._empty = np.zeros((scenes.height, scenes.width), bool)
        self._proposed: dict[int, list[ProposedObject]] = defaultdict(list)
        for one in candidates.objects:
            self._proposed[one.scene].append(one)
        names = {one.fid: one.name for one in (known.objects if known else ()) if one.fid in self._edited}
        names |= {row.fid: row.name for row in candidates.requests} | {one.fid: one.name for one in candidates.objects}
        self.names = dict(sorted(names.items()))
        self._found: dict[tuple[int, int], tuple[Mask, float]] = {}

    def prompts(self, number: int, scene: Scene) -> tuple[dict[int, dict[int, Mask]], dict[int, int]]:
        """The known masks of each object in a scene, by place in it, and the place that it starts from.

        Corrected frames count more than a candidate. An object without any known pixel is absent from the scene.
        """
        prompts: dict[int, dict[int, Mask]] = defaultdict(dict)
        starts: dict[int, int] = {}
        for one in self._proposed[number]:
            prompts[one.fid][one.pivot - scene.first] = decoded(one.mask)
            starts[one.fid] = one.pivot - scene.first
        for fid, seconds in self._edited.items():
            for second in sorted(seconds.keys() & set(scene.seconds)):
                rle, place = seconds[second].rle, second - scene.first
                prompts[fid][place] = self._empty if rle is None else decoded(rle)
        shown = {fid: [place for place in sorted(known) if known[place].any()] for fid, known in prompts.items()}
        pivots = {fid: starts[fid] if starts.get(fid) in places else places[0]
                  for fid, places in shown.items() if places}  # fmt: skip
        return {fid: prompts[fid] for fid in sorted(pivots)}, pivots

    def add(self, scene: Scene, tracks: Mapping[int, Track], prompts: Mapping[int, Mapping[int, Mask]]) -> None:
        """Takes the tracks of a scene; known masks stay as they are."""
        for fid, track in tracks.items():
            for place, second in enumerate(scene.seconds):
                given = prompts[fid].get(place)
                mask = track.masks[place] if given is None else given
                presence = float(track.presence[place]) if given is None else float(given.any())
                self._found[fid, second] = mask, presence

    def object(self, fid: int) -> TrackedObject:
        """The record of an object; what people made stays."""
        edited, seconds = self._edited.get(fid, {}), []
        for second in range(self._scenes.seconds):
            mask, presence = self._found.get((fid, second), (None, 0.0))
            rle = plain(mask) if mask is not None and mask.any() else None
            seconds.append(edited.get(second) or MaskSecond(second=second, rle=rle, presence=presence,
                                                            scene=self._scenes.scene_of(second)))  # fmt: skip
        return TrackedObject(fid=fid, name=self.names[fid], seconds=tuple(seconds))


def _masks(files: ClipFiles) -> Masks | None:
    return files.masks() if (files.folder / MASKS).exists() else None


def _edited(known: Masks | None) -> dict[int, dict[int, MaskSecond]]:
    """The masks that people made, by fid and second."""
    found: dict[int, dict[int, MaskSecond]] = {}
    for one in known.objects if known else ():
        seconds = {each.second: each for each in one.seconds if each.origin == "edited"}
        if seconds:
            found[one.fid] = seconds
    return found

"""How a benchmark is packed: which sentences go into it, its files, and where everything comes from."""

import json
import shutil
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from extract.annotate.benchmark.checks import checks
from extract.annotate.benchmark.splitting import Splitting, assign
from extract.annotate.exchange.exports import by_file_id, copy_frame, file_id, picture
from extract.annotate.records import CANDIDATES, ClipFiles, Masks, ProjectFolder, Scenes
from extract.annotate.sentences.clip_sentences import Sentence, clip_sentences, null_media_id
from extract.annotate.sentences.facts import categories, shown
from refavs.data.layouts.ref_avs_bench import SECONDS
from refavs.data.layouts.ref_avs_metadata import TEST_N, TEST_S, TEST_U
from refavs.errors import DatasetError
from refavs.files.path_text import path_text
from refavs.files.tables import csv_bytes
from refavs.files.whole_folder import whole_folder
from refavs.terminal.console import ProgressBar

_RATE_HZ = 16_000  # of the silence of a clip without sound
NULL_FID = 0


@dataclass(frozen=True, kw_only=True)
class PackedClip:
    """A clip with the sentences that go into the benchmark.

    Attributes:
        split: of its sentences about objects.
        null_split: of those about nothing; None leaves them out.
    """

    clip_id: str
    files: ClipFiles
    masks: Masks
    scenes: Scenes
    sentences: tuple[Sentence, ...]
    split: str
    null_split: str | None

    def rows(self) -> Iterator[tuple[Sentence, str]]:
        """Its sentences with their splits."""
        for one in self.sentences:
            split = self.split if one.fid is not None else self.null_split
            if split is not None:
                yield one, split


def collect(
    project: ProjectFolder, clip_ids: Sequence[str], splitting: Splitting
) -> tuple[list[PackedClip], list[str]]:
    """The clips that have accepted sentences, and a line for each other one.

    Raises:
        DatasetError: none has.
        ConfigError: no clip shows a category that is to be held out.
    """
    by_file_id(clip_ids)
    problems = []
    accepted: dict[str, tuple[Sentence, ...]] = {}
    visible: dict[str, set[str]] = {}
    for clip_id in clip_ids:
        files = project.clip(clip_id)
        objects = {one.fid for one in shown(files.masks())}
        known = [one for one in clip_sentences(files) if one.status == "accepted"]
        found = tuple(one for one in known if one.fid is None or one.fid in objects)
        if len(found) < len(known):
            problems.append(f"clip {clip_id}: {len(known) - len(found)} sentences are about objects that no longer "
                            "show; left out. Run express again")  # fmt: skip
        if found:
            accepted[clip_id] = found
            visible[clip_id] = {name for fid, name in categories(files).items() if fid in objects}
        else:
            problems.append(f"clip {clip_id}: no accepted sentence; left out. Run refavs-annotate express")
    if not accepted:
        raise DatasetError(f"{project.path} has no accepted sentence; run refavs-annotate express {project.path}")
    splits = assign(project, visible, splitting)
    clips = []
    for clip_id, sentences in accepted.items():
        files, split = project.clip(clip_id), splits[clip_id]
        masks = files.masks()
        if split == TEST_U:
            held_out = {fid for fid, name in categories(files).items() if name in splitting.unseen}
            sentences = tuple(one for one in sentences if one.fid is None or one.fid in held_out)
        null_split = {TEST_S: TEST_N, TEST_U: None}.get(split, split)
        clip = PackedClip(clip_id=clip_id, files=files, masks=masks, scenes=files.scenes(), split=split,
                          sentences=_distinct(sentences), null_split=null_split)  # fmt: skip
        if any(True for _ in clip.rows()):
            clips.append(clip)
        else:
            problems.append(f"clip {clip_id}: no sentence about its unseen objects; left out")
    return clips, problems


def _distinct(sentences: Sequence[Sentence]) -> tuple[Sentence, ...]:
    """Without sentences that say the same about the same object."""
    return tuple({(one.fid, one.text, one.sound): one for one in reversed(sentences)}.values())[::-1]


def pack(project: ProjectFolder, out: Path, clips: Sequence[PackedClip]) -> None:
    """Writes the benchmark."""
    with whole_folder(out) as folder, ProgressBar("refavs-annotate pack", len(clips), "clips") as progress:
        for clip in clips:
            _write_clip(project, folder, clip)
            progress.advance()
        rows = [(file_id(clip.clip_id), one.uid, split, NULL_FID if one.fid is None else one.fid, one.text)
                for clip in clips for one, split in clip.rows()]  # fmt: skip
        cues = [(one.uid, one.grade or "", one.dimension, one.template) for clip in clips for one, _ in clip.rows()]
        (folder / "metadata.csv").write_bytes(csv_bytes(("vid", "uid", "split", "fid", "exp"), rows))
        (folder / "expressions.csv").write_bytes(csv_bytes(("uid", "grade", "dimension", "template"), cues))
        told = json.dumps(provenance(project, clips), ensure_ascii=False, indent=1)
        (folder / "annotations.json").write_text(told + "\n", encoding="utf-8")


def _write_clip(project: ProjectFolder, out: Path, clip: PackedClip) -> None:
    kept = [one for one, _ in clip.rows()]
    name = file_id(clip.clip_id)
    fids = {one.fid for one in kept if one.fid is not None}
    if fids:
        media = _write_frames(out / "media" / name, clip)
        _write_sound(clip.files.sound, media / "audio.wav", muted=False)
        for one in clip.masks.objects:
            if one.fid in fids:
                masks = [picture(each.rle, clip.scenes.height, clip.scenes.width) for each in one.seconds]
                _write_masks(out / "gt_mask" / name / f"fid_{one.fid}", masks)
    for one in {each.sound: each for each in kept if each.fid is None}.values():
        null = null_media_id(clip.clip_id, one.sound)
        media = _write_frames(out / "media" / null, clip)
        source = project.clip(one.donor).sound if one.sound == "crossed" else clip.files.sound
        _write_sound(source, media / "audio.wav", muted=one.sound == "muted")
        empty = np.zeros((clip.scenes.height, clip.scenes.width), bool)
        _write_masks(out / "gt_mask" / null / f"fid_{NULL_FID}", [empty] * len(SECONDS))


def _write_frames(media: Path, clip: PackedClip) -> Path:
    (media / "frames").mkdir(parents=True)
    for second in SECONDS:
        copy_frame(clip.files, second, media / "frames" / f"{second}.jpg")
    return media


def _write_sound(source: Path, target: Path, muted: bool) -> None:
    """Copies a sound, or writes silence of the same form."""
    if source.exists() and not muted:
        shutil.copyfile(source, target)
        return
    channels, width, rate, frames = 1, 2, _RATE_HZ, _RATE_HZ * len(SECONDS)
    if source.exists():
        with wave.open(str(source), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
    with wave.open(str(target), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(bytes(channels * width * frames))


def _write_masks(folder: Path, masks: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for second, mask in zip(SECONDS, masks, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{second:05d}.png")


def provenance(project: ProjectFolder, clips: Sequence[PackedClip]) -> dict[str, Any]:
    """Where every mask and sentence comes from."""
    settings = project.settings()
    return {
        "schema": 1, "source": settings.source, "layout": settings.layout, "models": settings.models,
        "options": settings.options, "project": path_text(project.path),
        "versions": {name: version(name) for name in ("refavs", "torch", "transformers", "av")},
        "clips": {file_id(clip.clip_id): _of_clip(clip) for clip in clips},
    }  # fmt: skip


def _of_clip(clip: PackedClip) -> dict[str, Any]:
    names = categories(clip.files)
    pivots: dict[int, list[dict[str, Any]]] = {}
    if (clip.files.folder / CANDIDATES).exists():
        for one in clip.files.candidates().objects:
            pivots.setdefault(one.fid, []).append({"scene": one.scene, "pivot": one.pivot, "label": one.label,
                                                   "detector_score": one.detector_score})  # fmt: skip
    return {
        "clip": clip.clip_id, "scenes": [[scene.first, scene.last] for scene in clip.scenes.scenes],
        "cuts": {"method": clip.scenes.method, "threshold": clip.scenes.threshold},
        "tracker": {"name": clip.masks.tracker, "revision": clip.masks.revision},
        "objects": [
            {"fid": one.fid, "name": one.name, "category": names[one.fid], "pivots": pivots.get(one.fid, []),
             "origin": [each.origin for each in one.seconds],
             "presence": [round(float(each.presence), 4) for each in one.seconds]}
            for one in clip.masks.objects
        ],
        "sentences": [
            {"uid": one.uid, "fid": one.fid, "template": one.template, "grade": one.grade, "dimension": one.dimension,
             "by": one.by, "sound": one.sound, "donor": one.donor, "made": one.made, "reason": one.reason}
            for one, _ in clip.rows()
        ],
        "checks": checks(clip.masks, clip.scenes),
    }  # fmt: skip

"""refavs-annotate pack: the benchmark of a project, in the layout of Ref-AVS Bench.

    OUT/metadata.csv                            vid,uid,split,fid,exp
    OUT/expressions.csv                         uid,grade,dimension,template
    OUT/annotations.json                        where every mask and sentence comes from
    OUT/media/<id>/{frames/{0..9}.jpg,audio.wav}
    OUT/gt_mask/<id>/fid_<fid>/0000{0..9}.png

Accepted sentences make rows. A clip of which copies refer to nothing has those as `null_m-<id>` (muted), `null_c-<id>`
(another clip's sound) and `null_s-<id>` (its own sound).
"""

import json
import shutil
import wave
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from extract.annotate.checks import checks
from extract.annotate.exchange import by_file_id, chosen_clips, file_id, picture
from extract.annotate.facts import categories
from extract.annotate.records import CANDIDATES, ClipFiles, Masks, ProjectFolder, Scenes
from extract.annotate.sentences import Sentence, clip_sentences, null_media_id
from extract.annotate.splitting import Splitting, assign
from refavs.data.layouts.ref_avs_bench import SECONDS
from refavs.data.layouts.ref_avs_metadata import TEST_N, TEST_S, TEST_U
from refavs.errors import ConfigError, DatasetError
from refavs.files.path_text import path_text
from refavs.files.whole_folder import refuse_full, whole_folder
from refavs.synthetic.write import csv_bytes
from refavs.terminal.command import CommandParser, Exit
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import say, warn

NAME = "refavs-annotate pack"
_RATE_HZ = 16_000  # of the silence of a clip without sound
_SHOWN = 20
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


def add_arguments(parser: CommandParser) -> None:
    """The options of the step."""
    add = parser.add_argument
    add("project", type=Path, metavar="PROJECT", help="folder of the project")
    add("out", type=Path, metavar="OUT", help="new folder for the benchmark")
    add("--splits", default="70/10/20", metavar="A/B/C", help="shares of train, val and test_s, by video; a video "
        "keeps the split that it first got")  # fmt: skip
    add("--unseen", metavar="NAME,...", help="categories held out of training: clips that show one are in test_u")
    add("--clips", metavar="ID,...", help="these clips only")


def run(args: Namespace) -> int:
    """Packs; returns the exit status."""
    project = ProjectFolder(args.project)
    out = args.out.resolve()
    refuse_full(out)
    seconds = project.settings().seconds
    if seconds != len(SECONDS):
        raise ConfigError(f"{project.path} has clips of {seconds} seconds; the layout of Ref-AVS has {len(SECONDS)}. "
                          f"Make a new project by refavs-annotate propose --seconds {len(SECONDS)}")  # fmt: skip
    splitting = Splitting.of(args.splits, args.unseen)
    clips, problems = collect(project, chosen_clips(project, args.clips), splitting)
    pack(project, out, clips)
    counts = Counter(split for clip in clips for _, split in clip.rows())
    say(f"{args.out}: {len(clips)} clips, {sum(counts.values())} sentences ("
        + ", ".join(f"{split} {count}" for split, count in sorted(counts.items())) + ")")  # fmt: skip
    for line in problems[:_SHOWN]:
        warn(f"{NAME}: {line}")
    if len(problems) > _SHOWN:
        warn(f"{NAME}: ... and {len(problems) - _SHOWN} more")
    return Exit.FAILURES if problems else Exit.COMPLETE


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
    shown: dict[str, set[str]] = {}
    for clip_id in clip_ids:
        files = project.clip(clip_id)
        objects = categories(files)
        known = [one for one in clip_sentences(files) if one.status == "accepted"]
        found = tuple(one for one in known if one.fid is None or one.fid in objects)
        if len(found) < len(known):
            problems.append(f"clip {clip_id}: {len(known) - len(found)} sentences are about objects that it no longer "
                            "has; left out. Run express again")  # fmt: skip
        if found:
            accepted[clip_id] = found
            shown[clip_id] = set(objects.values())
        else:
            problems.append(f"clip {clip_id}: no accepted sentence; left out. Run refavs-annotate express")
    if not accepted:
        raise DatasetError(f"{project.path} has no accepted sentence; run refavs-annotate express {project.path}")
    splits = assign(project, shown, splitting)
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
    with whole_folder(out) as folder, ProgressBar(NAME, len(clips), "clips") as progress:
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
        shutil.copyfile(clip.files.frame(second), media / "frames" / f"{second}.jpg")
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

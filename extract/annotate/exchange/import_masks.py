"""refavs-annotate import: takes back what people changed in a label tool, and reports it.

A mask counts as changed if it differs from what was exported. A change replaces the project's mask unless another
person's change is there already; what no person changed stays as it is.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np

from extract.annotate.exchange.exports import (
    EXPORT,
    REPORT,
    Export,
    by_file_id,
    export_folder,
    export_numbers,
    imported,
    masks_in,
    picture,
)
from extract.annotate.exchange.formats.drawn import DrawnFrame
from extract.annotate.exchange.formats.registry import FORMATS, Format
from extract.annotate.problems import ended
from extract.annotate.records import ClipFiles, Masks, MaskSecond, ProjectFolder, RunLengths, Scenes, read_record
from refavs.data.rle import plain
from refavs.errors import ConfigError
from refavs.files.atomic import write_atomically
from refavs.terminal.command import CommandParser
from refavs.terminal.printing import say

_PAPER_SHARE, _PAPER_PIXELS = 0.0327, 0.20  # Ref-AVS, supplement A.2: masks corrected in the test set, pixels of each
_SHOWN = 20  # lines on the terminal; the report has all


@dataclass(frozen=True, kw_only=True)
class Change:
    """A mask that a person changed.

    Attributes:
        before_px: area as exported; 0 where the object was absent.
        changed_px: pixels that differ.
    """

    clip: str
    fid: int
    second: int
    before_px: int
    after_px: int
    changed_px: int

    @property
    def share(self) -> float:
        """Changed pixels relative to the larger of both masks."""
        return self.changed_px / max(self.before_px, self.after_px)


@dataclass(kw_only=True)
class Report:
    """What an import found.

    Attributes:
        num_masks: masks of the clips in the file, in either state.
        authors: who drew, if the file says so.
        problems: lines about what could not be used, or was not.
    """

    num_masks: int = 0
    changes: list[Change] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people, beside the paper's numbers."""
        shares = sorted(change.share for change in self.changes)
        part = len(shares) / max(self.num_masks, 1)
        lines = [f"{len(shares):,} of {self.num_masks:,} masks changed ({part:.2%}; the paper's test set: "
                 f"{_PAPER_SHARE:.2%})"]  # fmt: skip
        if shares:
            small = sum(share < _PAPER_PIXELS for share in shares)
            lines.append(f"pixels changed in each: median {median(shares):.1%}, most {shares[-1]:.1%} of the mask; "
                         f"{small:,} below {_PAPER_PIXELS:.0%}, as all of the paper's")  # fmt: skip
            lines += [f"  clip {each.clip}, object {each.fid}, second {each.second}: {each.changed_px:,} px "
                      f"({each.share:.1%}), {each.before_px:,} before, {each.after_px:,} after"
                      for each in self.changes[:_SHOWN]]  # fmt: skip
        if len(shares) > _SHOWN:
            lines.append(f"  ... and {len(shares) - _SHOWN:,} more in the report")
        return lines


def add_arguments(parser: CommandParser) -> None:
    """Adds the arguments of the step."""
    parser.add_argument("file", type=Path, metavar="FILE", help="what the tool exported, as it is or in a ZIP")
    parser.add_argument("--format", choices=sorted(FORMATS), default="cvat", help="the tool's file format")
    parser.add_argument("--export", type=int, metavar="N", help="number of the export that the file comes from; by "
                        "default what the file says, else the latest of its format")  # fmt: skip
    parser.add_argument("--annotator", default="people", metavar="NAME", help="who worked on it; see agreement")


def run(args: argparse.Namespace) -> int:
    """Imports; returns the exit status."""
    project = ProjectFolder(args.project)
    project.settings()
    report = import_masks(project, args.file, args.format, args.export, args.annotator)
    for line in report.lines():
        say(line)
    say(f"report: {imported(project, args.annotator).path / REPORT}")
    return ended("refavs-annotate import", report.problems)


def import_masks(
    project: ProjectFolder, path: Path, format_name: str, number: int | None = None, annotator: str = "people"
) -> Report:
    """Takes a tool's file into the project.

    Raises:
        ConfigError: there is no such export, or the annotator's name cannot be used.
        DatasetError: the file is of another kind.
    """
    returned = imported(project, annotator)
    number = _export_of(project, path, format_name, number)
    kept = ProjectFolder(export_folder(project, number))
    exported = read_record(kept.path / EXPORT, Export)
    report = Report()
    found = _read(project, kept, path, FORMATS[format_name], exported.clips, report)
    for clip_id in exported.clips:
        if clip_id not in found:
            report.problems.append(f"clip {clip_id}: the file has none of its frames; left as it was")
            continue
        files, copy = project.clip(clip_id), returned.clip(clip_id)
        _take(clip_id, files, masks_in(kept.clip(clip_id)), found[clip_id], copy, report)
    write_atomically(returned.path / REPORT, json.dumps(asdict(report), ensure_ascii=False, indent=1).encode())
    return report


def _export_of(project: ProjectFolder, path: Path, format_name: str, number: int | None) -> int:
    """The number of the export that a file comes from."""
    if number is None:
        number = FORMATS[format_name].export_of(path)
    numbers = export_numbers(project)
    if number is None:
        records = {each: read_record(export_folder(project, each) / EXPORT, Export) for each in numbers}
        own = [each for each, record in records.items() if record.format == format_name]
        if not own:
            raise ConfigError(f"{project.path} was never exported for {format_name}; name the right --format, or run "
                              f"refavs-annotate export {project.path} OUT --format {format_name} first")  # fmt: skip
        return own[-1]
    if number not in numbers:
        raise ConfigError(f"{project.path} has no export {number}; it has {', '.join(map(str, numbers)) or 'none'}. Is "
                          "this the project that the file comes from?")  # fmt: skip
    return number


@dataclass(kw_only=True)
class _Returned:
    """A second as the tool returned it: masks by fid; `sure` unless some of them could not be used."""

    masks: dict[int, RunLengths]
    sure: bool


def _read(
    project: ProjectFolder, kept: ProjectFolder, path: Path, tool: Format, clips: Iterable[str], report: Report
) -> dict[str, dict[int, _Returned]]:
    """What the file has of each clip and second."""
    ids = by_file_id(clips)
    scenes = {name: project.clip(clip_id).scenes() for name, clip_id in ids.items()}
    objects = {name: masks_in(kept.clip(clip_id)).objects for name, clip_id in ids.items()}
    names = {name: {one.fid: one.name for one in found} for name, found in objects.items()}
    sizes = {name: (each.height, each.width) for name, each in scenes.items()}
    found: dict[str, dict[int, _Returned]] = defaultdict(dict)
    authors = set()
    for frame in tool.read(path, sizes):
        report.problems += frame.refused
        if not frame.clip:
            continue
        authors.add(frame.author)
        where = f"clip {frame.clip}, second {frame.second}"
        if frame.second >= scenes[frame.clip].seconds:
            report.problems.append(f"{where}: the clip has {scenes[frame.clip].seconds} seconds; left out")
        elif frame.second in found[ids[frame.clip]]:
            report.problems.append(f"{where}: the file has this frame twice; the first is used")
        else:
            odd = list(_odd_masks(frame, names[frame.clip], where))
            report.problems += odd
            found[ids[frame.clip]][frame.second] = _Returned(
                masks=_joined(frame, names[frame.clip]), sure=not (frame.refused or odd)
            )
    report.authors = sorted(authors - {""})
    return found


def _odd_masks(frame: DrawnFrame, names: dict[int, str], where: str) -> Iterator[str]:
    for drawn in frame.masks:
        if drawn.fid not in names:
            yield (f"{where}: a mask {drawn.name[:40]!r} of object {drawn.fid}, but the clip has "
                   f"{', '.join(map(str, sorted(names)))}; left out. Set fid back, or propose it")  # fmt: skip
        elif drawn.name != names[drawn.fid]:
            yield (f"{where}: object {drawn.fid} is a {names[drawn.fid]!r}, the file has a {drawn.name[:40]!r} with "
                   "this fid; left out. Set label or fid back")  # fmt: skip


def _joined(frame: DrawnFrame, names: dict[int, str]) -> dict[int, RunLengths]:
    """The masks by fid; parts drawn apart are one mask."""
    parts = defaultdict(list)
    for drawn in frame.masks:
        if names.get(drawn.fid) == drawn.name:
            parts[drawn.fid].append(drawn.mask)
    whole = {fid: np.logical_or.reduce(masks) for fid, masks in parts.items()}
    return {fid: plain(mask) for fid, mask in whole.items() if mask.any()}


def _take(
    clip_id: str, files: ClipFiles, exported: Masks, found: dict[int, _Returned], returned: ClipFiles, report: Report
) -> None:
    """Takes over one clip: the changes into the project, everything into the annotator's copy."""
    scenes, current = files.scenes(), files.masks()
    missing = [second for second in range(scenes.seconds) if second not in found]
    if missing:
        seconds = ", ".join(map(str, missing))
        report.problems.append(f"clip {clip_id}: the file lacks second {seconds}; left as it was")
    before = {(one.fid, each.second): each.rle for one in exported.objects for each in one.seconds}
    changes: dict[tuple[int, int], RunLengths | None] = {}
    for (fid, second), old in before.items():
        frame = found.get(second)
        new = None if frame is None else frame.masks.get(fid)
        if frame is None or (new is None and not frame.sure):
            continue
        report.num_masks += old is not None or new is not None
        if new != old:
            changes[fid, second] = new
            report.changes.append(_change(clip_id, fid, second, old, new, scenes))
    returned.write(_with(exported, changes))
    kept = dict(_new_to_project(clip_id, current, before, changes, report))
    if kept:
        files.write(_with(current, kept))


def _new_to_project(
    clip_id: str, current: Masks, before: dict[tuple[int, int], RunLengths | None],
    changes: dict[tuple[int, int], RunLengths | None], report: Report,
) -> Iterable[tuple[tuple[int, int], RunLengths | None]]:  # fmt: skip
    """The changes to take; a mask that another person changed since the export stays."""
    now = {(one.fid, each.second): each for one in current.objects for each in one.seconds}
    for (fid, second), new in changes.items():
        there = now.get((fid, second))
        if there is None:
            report.problems.append(f"clip {clip_id}, object {fid}, second {second}: the project no longer has it; its "
                                   "mask is only in the annotator's copy")  # fmt: skip
        elif there.origin == "edited" and there.rle not in (new, before[fid, second]):
            report.problems.append(f"clip {clip_id}, object {fid}, second {second}: another edit came in after this "
                                   "export and stays; this one is in the annotator's copy")  # fmt: skip
        elif there.origin != "edited" or there.rle != new:
            yield (fid, second), new


def _change(
    clip_id: str, fid: int, second: int, old: RunLengths | None, new: RunLengths | None, scenes: Scenes
) -> Change:
    before, after = (picture(rle, scenes.height, scenes.width) for rle in (old, new))
    return Change(clip=clip_id, fid=fid, second=second, before_px=int(before.sum()), after_px=int(after.sum()),
                  changed_px=int((before != after).sum()))  # fmt: skip


def _with(masks: Masks, changes: dict[tuple[int, int], RunLengths | None]) -> Masks:
    """The masks with some replaced and marked as edited."""

    def changed(fid: int, each: MaskSecond) -> MaskSecond:
        if (fid, each.second) not in changes:
            return each
        rle = changes[fid, each.second]
        return replace(each, rle=rle, presence=float(rle is not None), origin="edited")

    return replace(masks, objects=tuple(
        replace(one, seconds=tuple(changed(one.fid, each) for each in one.seconds)) for one in masks.objects
    ))  # fmt: skip

"""refavs-annotate export: the masks of a project in the file format of a label tool, with their frames."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from extract.annotate.exchange.exports import (
    EXPORT,
    Export,
    by_file_id,
    chosen_clips,
    copy_frame,
    export_folder,
    export_numbers,
    file_id,
)
from extract.annotate.exchange.formats.drawn import DrawnFrame, DrawnMask, frame_name
from extract.annotate.exchange.formats.registry import FORMATS
from extract.annotate.problems import ended
from extract.annotate.records import ClipFiles, Masks, ProjectFolder, write_record
from refavs.data.rle import decoded
from refavs.files.whole_folder import refuse_full, whole_folder
from refavs.terminal.command import CommandParser
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import say


def add_arguments(parser: CommandParser) -> None:
    """Adds the arguments of the step."""
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder for the masks and frames")
    parser.add_argument("--format", choices=sorted(FORMATS), default="cvat", help="the tool's file format")
    parser.add_argument("--clips", metavar="ID,...", help="export these clips only")


def run(args: argparse.Namespace) -> int:
    """Exports; returns the exit status."""
    project = ProjectFolder(args.project)
    clips, problems = chosen_clips(project, args.clips)
    number = export(project, args.out.resolve(), args.format, clips)
    say(f"{args.out}: {len(clips)} clips for {args.format}, export {number}. After the work: refavs-annotate import "
        f"{args.project} FILE --format {args.format} --export {number}")  # fmt: skip
    return ended("refavs-annotate export", problems)


def export(project: ProjectFolder, out: Path, format_name: str, clips: list[str]) -> int:
    """Writes the masks of some clips into a new folder; returns the number of the export.

    Raises:
        ConfigError: the folder holds files.
        DatasetError: a clip's masks are damaged, or two clips would have the same name.
    """
    refuse_full(out)
    by_file_id(clips)
    tool = FORMATS[format_name]
    masks = {clip_id: project.clip(clip_id).masks() for clip_id in clips}
    number = max(export_numbers(project), default=0) + 1
    with whole_folder(out) as folder:
        (folder / "frames").mkdir()
        with ProgressBar("refavs-annotate export", len(clips), "clips") as progress, \
                (folder / tool.file_name).open("wb") as file:  # fmt: skip
            for piece in tool.write(_frames(project, masks, folder / "frames", progress), number):
                file.write(piece)
        objects = [(one.fid, one.name) for found in masks.values() for one in found.objects]
        for name, content in tool.labels(objects).items():
            (folder / name).write_bytes(content)
        with whole_folder(export_folder(project, number)) as kept:
            for clip_id, found in masks.items():
                ClipFiles(kept / "clips" / clip_id).write(found)
            write_record(kept / EXPORT, Export(format=format_name, clips=tuple(clips)))
    return number


def _frames(
    project: ProjectFolder, masks: dict[str, Masks], pictures: Path, progress: ProgressBar
) -> Iterator[DrawnFrame]:
    """The frames with their masks; copies each picture."""
    for clip_id, found in masks.items():
        files = project.clip(clip_id)
        scenes = files.scenes()
        for second in range(scenes.seconds):
            name = file_id(clip_id)
            copy_frame(files, second, pictures / f"{frame_name(name, second)}.jpg")
            yield DrawnFrame(clip=name, second=second, height=scenes.height, width=scenes.width,
                             masks=tuple(_drawn(found, second)))  # fmt: skip
        progress.advance()


def _drawn(masks: Masks, second: int) -> Iterable[DrawnMask]:
    for one in masks.objects:
        rle = one.seconds[second].rle
        if rle is not None:
            yield DrawnMask(fid=one.fid, name=one.name, mask=decoded(rle))

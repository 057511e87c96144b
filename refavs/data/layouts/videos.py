"""The layout of a folder of videos, with or without a CSV of expressions."""

import os
from collections.abc import Iterator
from pathlib import Path

from refavs.data.layouts.own_expressions import own_expressions
from refavs.data.layouts.protocol import Clip, Layout, Source, expression_table
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.source_files import reason_of
from refavs.files.tables import composed, is_plain_path, named_on_disk

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".m2ts", ".mts")
PREDICT_SPLIT = "predict"


class Videos(Layout):
    """Video files in a folder and its subfolders; a clip's id is its path without the suffix, e.g. `day1/cam2/a`."""

    accepts = f"a folder of videos (*{' *'.join(VIDEO_SUFFIXES)})"

    def detect(self, root: Path) -> bool:
        """Whether any entry is named like a video."""
        return next(named_as_videos(root), None) is not None

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads a folder. Skips hidden files and folders and does not follow links to folders.

        Entries that are not files or whose name cannot be an id are left out and named in the report.

        Args:
            root: folder with files of the types in `VIDEO_SUFFIXES`, possibly in subfolders.
            expressions: CSV with columns `video,exp`; video is a path below the folder, with or without suffix. Rows
                about missing videos are left out and named in the report.

        Raises:
            DatasetError: the folder has no video, two videos have the same id, or the CSV names none of them.
        """
        report = SourceReport(source=str(root))
        clips = _clips(root, report)
        if not clips:
            left_out = [name for kind in ("not_files", "unusable_names") for name in report.names.get(kind, [])]
            more = f" (left out: {', '.join(map(repr, left_out[:3]))})" if left_out else ""
            raise DatasetError(f"{root} has no video{more}; accepted: {self.accepts}.")
        names = {composed(clip.video.relative_to(root).as_posix()): name for name, clip in clips.items() if clip.video}
        names.update({name: name for name in clips})
        rows = [] if expressions is None else own_expressions(expressions, names, report)
        return Source(
            root=root, clips=tuple(clips[name] for name in sorted(clips)), report=report,
            expressions=expression_table({**row, "split": PREDICT_SPLIT} for row in rows),
        )

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a video by looking in the folder that its id names."""
        if not is_plain_path(clip_id):
            return None
        *folders, name = clip_id.split("/")
        place = root
        for folder in folders:
            place = named_on_disk(place, folder)
        try:
            paths = [path for path in place.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES]
        except OSError:
            return None
        found = [path for path in paths if composed(path.stem) == composed(name)]
        return Clip(id=clip_id, video=found[0], root=root) if len(found) == 1 else None


def named_as_videos(root: Path) -> Iterator[Path]:
    """Entries named like videos, folder by folder, sorted within each.

    Raises:
        DatasetError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DatasetError(f"{error.filename} cannot be read ({reason_of(error)}); change its permissions.")

    for place, folders, files in os.walk(root, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(folders + files):
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                yield Path(place, name)


def _clips(root: Path, report: SourceReport) -> dict[str, Clip]:
    clips: dict[str, Clip] = {}
    not_files, unusable_names = [], []
    for path in named_as_videos(root):
        told = path.relative_to(root).as_posix()
        name = composed(path.relative_to(root).with_suffix("").as_posix())
        if not (path.is_symlink() or path.is_file()) or path.is_dir():
            not_files.append(told)
        elif not is_plain_path(name):
            unusable_names.append(told)
        elif name in clips:
            raise DatasetError(f"{path} and {clips[name].video} have the same id {name!r}; rename one of them.")
        else:
            clips[name] = Clip(id=name, video=path, root=root)
    for kind, names in (("not_files", not_files), ("unusable_names", unusable_names)):
        if names:
            report.note_names(kind, names)
    return clips

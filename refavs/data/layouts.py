"""Where the media, masks and expressions of a source lie: the Ref-AVS Bench layout, or a plain folder of videos."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from refavs.data.cues import parse
from refavs.data.masks import read_mask
from refavs.data.metadata import NULL_PREFIX, MetadataReport, composed, plain_name, read_metadata, read_rows
from refavs.errors import DatasetError
from refavs.files.source_files import reason_of

__all__ = [
    "Clip", "MetadataReport", "Source", "read_benchmark", "read_mask", "read_metadata", "read_source", "read_videos",
]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts", ".m2ts", ".mts")
EXPRESSION_COLUMNS = ("uid", "vid", "clip_id", "fid", "split", "text", "grade", "dimension")
PREDICT_SPLIT = "predict"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Where one clip's media lies: frames and sound of the benchmark, or one video file.

    Attributes:
        root: folder that none of the files may lie outside of, symbolic links followed; None where they may.
    """

    id: str
    frames: Path | None = None
    audio: Path | None = None
    video: Path | None = None
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that can be extracted from one place.

    Attributes:
        clips: sorted by id, each id once.
        objects: `clip_id, fid, folder`, a row for each object that has masks; those of a null are empty by definition
            and need no folder, which is None where there is none.
        expressions: `uid, vid, clip_id, fid, split, text, grade, dimension`. `fid` is -1 where there are no masks;
            otherwise (clip_id, fid) is a row of `objects`. Grade and dimension are of a benchmark's expressions only,
            as its expressions.csv says or else as parsed from the text; empty where unknown.
        report: every odd row, clip and object by kind.
    """

    kind: Literal["bench", "videos"]
    root: Path
    clips: tuple[Clip, ...]
    objects: pd.DataFrame
    expressions: pd.DataFrame
    report: MetadataReport


def read_source(path: str | os.PathLike[str], expressions_csv: str | os.PathLike[str] | None = None) -> Source:
    """Reads a benchmark where `path` has a metadata.csv, else a folder of videos.

    Raises:
        DatasetError: `path` is neither, or expressions are given for a benchmark, which has its own.
    """
    root = Path(path).absolute()
    if not root.is_dir():
        found = "is a file" if root.exists() else "does not exist"
        raise DatasetError(f"{root} {found}; accepted: {_ACCEPTED}.")
    # Whatever the name stands for: a benchmark with a damaged table is no folder of videos.
    if os.path.lexists(root / "metadata.csv"):
        if expressions_csv is not None:
            raise DatasetError(
                f"{root} is a benchmark, its expressions are in metadata.csv; leave out the CSV {expressions_csv}."
            )
        return read_benchmark(root)
    return read_videos(root, expressions_csv)


def read_benchmark(root: str | os.PathLike[str]) -> Source:
    """Reads a folder in the benchmark's layout; a clip or mask folder that is missing is named in the report.

    An optional `expressions.csv` beside metadata.csv (`uid,grade,dimension`, more columns allowed) says what cues an
    expression needs. The real benchmark has none; there `refavs.data.cues` reads them from the words.

    Raises:
        DatasetError: metadata.csv cannot be read, or none of its clips has media.
    """
    root = Path(root).absolute()
    table, report = read_metadata(root / "metadata.csv")
    media = root / "media"
    wanted = sorted(set(table["media_id"]))
    on_disk = _folders(media, required=True)
    present = on_disk.keys() & set(wanted)
    report.note_names("missing_media", set(wanted) - present)
    if not present:
        raise DatasetError(
            f"{root}: none of the {len(wanted)} clips of metadata.csv has a folder under {media}; expected "
            "media/<id>/frames/{0..9}.jpg and media/<id>/audio.wav. Unpack the benchmark's media there."
        )
    table = table.loc[table["media_id"].isin(sorted(present))].rename(columns={"media_id": "clip_id"})
    objects = list(zip(table["clip_id"], table["fid"], strict=True))
    folders = _mask_folders(root / "gt_mask", set(objects), report)
    grades, dimensions = _cues(root / "expressions.csv", table)
    expressions = table.assign(
        fid=[fid if (clip_id, fid) in folders else -1 for clip_id, fid in objects],
        grade=grades,
        dimension=dimensions,
    )
    return Source(
        kind="bench",
        root=root,
        clips=tuple(
            Clip(id=name, frames=folder / "frames", audio=folder / "audio.wav", root=media)
            for name, folder in sorted((name, media / on_disk[name]) for name in present)
        ),
        objects=_object_table(folders),
        expressions=_expression_table({name: expressions[name].tolist() for name in EXPRESSION_COLUMNS}),
        report=report,
    )


def read_videos(folder: str | os.PathLike[str], expressions_csv: str | os.PathLike[str] | None = None) -> Source:
    """Reads a folder of video files (not its subfolders); a clip's id is its file name without the suffix.

    Args:
        folder: holds files of the types in `VIDEO_SUFFIXES`; hidden files are passed over. What is no file, or has a
            name that cannot be an id, is left out and named in the report.
        expressions_csv: columns `video,exp`, where video is a file name with or without its suffix. Rows about videos
            that the folder lacks are left out and named in the report.

    Raises:
        DatasetError: no video in the folder, two videos of one id, or a CSV that names none of them.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; accepted: {_ACCEPTED}.")
    report = MetadataReport(source=str(root))
    clips = _video_clips(root, report)
    if not clips:
        left_out = [name for kind in ("not_files", "unusable_names") for name in report.names.get(kind, [])]
        more = f" (left out: {', '.join(map(repr, left_out[:3]))})" if left_out else ""
        raise DatasetError(f"{root} has neither a metadata.csv nor a video{more}; accepted: {_ACCEPTED}.")
    rows = [] if expressions_csv is None else _video_expressions(Path(expressions_csv), clips, report)
    return Source(
        kind="videos",
        root=root,
        clips=tuple(clips[name] for name in sorted(clips)),
        objects=_object_table({}),
        expressions=_expression_table({name: [row[name] for row in rows] for name in EXPRESSION_COLUMNS}),
        report=report,
    )


_ACCEPTED = (
    "a benchmark folder (metadata.csv, media/<id>/frames/{0..9}.jpg, media/<id>/audio.wav, gt_mask/) or a folder of "
    f"videos (*{' *'.join(VIDEO_SUFFIXES)})"
)


def _video_clips(root: Path, report: MetadataReport) -> dict[str, Clip]:
    clips: dict[str, Clip] = {}
    not_files, unusable_names = [], []
    for path in _listed(root):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."):
            continue
        if not (path.is_symlink() or path.is_file()) or path.is_dir():
            not_files.append(path.name)
            continue
        try:
            name = composed(plain_name(path.stem, str(path)))
        except DatasetError:
            unusable_names.append(path.name)
            continue
        if name in clips:
            raise DatasetError(f"{path} and {clips[name].video} have the same id {name!r}; rename one of them.")
        clips[name] = Clip(id=name, video=path, root=root)
    for kind, names in (("not_files", not_files), ("unusable_names", unusable_names)):
        if names:
            report.note_names(kind, names)
    return clips


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read ({reason_of(error)}); give yourself access to it.") from error


def named_on_disk(folder: Path, name: str) -> Path:
    """The entry of a folder with that name, in whichever form of Unicode the disk writes it."""
    path = folder / name
    if name.isascii() or os.path.exists(path) or not os.access(folder, os.R_OK | os.X_OK):
        return path
    return next((entry for entry in sorted(folder.iterdir()) if composed(entry.name) == composed(name)), path)


def _folders(path: Path, required: bool = False) -> dict[str, str]:
    """The folders in `path`, as the disk writes their names, by the composed form of these.

    None where it cannot be listed, unless it is required and there.
    """
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if os.path.isdir(entry))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if not required:
            return {}
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); give yourself access to it.") from error
    found: dict[str, str] = {}
    for name in names:
        if composed(name) in found:
            raise DatasetError(f"{path} has two folders {composed(name)!r}, in the composed and the decomposed form of "
                               "Unicode; rename one of them, or merge them.")
        found[composed(name)] = name
    return found


def _mask_folders(
    root: Path, objects: set[tuple[str, int]], report: MetadataReport
) -> dict[tuple[str, int], Path | None]:
    """The folder of each object's masks; none of a null, which has no object, where there is no folder either."""
    on_disk = _folders(root)
    folder_of = {clip_id: root / on_disk.get(clip_id, clip_id) for clip_id, _ in objects}
    present = {clip_id: _folders(folder) for clip_id, folder in folder_of.items()}
    bare = {(c, fid) for c, fid in objects if f"fid_{fid}" not in present[c]}
    nulls = {(c, fid) for c, fid in bare if c.startswith(NULL_PREFIX)}
    report.note_names("missing_masks", (f"{c}/fid_{fid}" for c, fid in bare - nulls))
    report.note_names("null_masks_not_shipped", (f"{c}/fid_{fid}" for c, fid in nulls))
    return {(c, fid): None if (c, fid) in nulls else folder_of[c] / f"fid_{fid}"
            for c, fid in sorted(objects - (bare - nulls))}  # fmt: skip


def _object_table(folders: Mapping[tuple[str, int], Path | None]) -> pd.DataFrame:
    return pd.DataFrame({
        "clip_id": pd.Series([clip_id for clip_id, _ in folders], dtype="str"),
        "fid": pd.Series([fid for _, fid in folders], dtype="int64"),
        "folder": pd.Series(list(folders.values()), dtype="object"),
    })


def _expression_table(columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    kinds = {name: "int64" if name == "fid" else "str" for name in EXPRESSION_COLUMNS}
    return pd.DataFrame({name: pd.Series(columns[name], dtype=kind) for name, kind in kinds.items()})


def _cues(path: Path, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Grade and dimension of each row, empty where unknown: from the file where there is one, else from the text."""
    if os.path.lexists(path):
        rows = read_rows(path, ("uid", "grade", "dimension"))
        by_uid = {composed(uid): (grade, dimension) for uid, grade, dimension in rows}
        found = [by_uid.get(composed(uid), ("", "")) for uid in table["uid"]]
    else:
        parsed = {text: parse(text) for text in set(table["text"])}
        cues = {text: (str(found.grade or ""), found.dimension or "") for text, found in parsed.items()}
        found = [cues[text] for text in table["text"]]
    return [grade for grade, _ in found], [dimension for _, dimension in found]


def _video_expressions(path: Path, clips: dict[str, Clip], report: MetadataReport) -> list[dict[str, Any]]:
    by_name = {composed(clip.video.name): name for name, clip in clips.items() if clip.video is not None}
    by_name.update({name: name for name in clips})
    rows: list[dict[str, Any]] = []
    empty: list[int] = []
    missing: set[str] = set()
    counts = dict.fromkeys(clips, 0)
    num_given = 0
    for number, (video, text) in enumerate(read_rows(path, ("video", "exp"))):
        num_given += 1
        clip_id = by_name.get(composed(video))
        if clip_id is None:
            missing.add(video)
        elif not text.strip():
            empty.append(number)
        else:
            uid = f"{clip_id}_expression_{counts[clip_id]}"
            counts[clip_id] += 1
            rows.append({
                "uid": uid, "vid": clip_id, "clip_id": clip_id, "fid": -1, "split": PREDICT_SPLIT, "text": text,
                "grade": "", "dimension": "",
            })
    report.counts.update(rows_total=num_given, rows_kept=len(rows))
    report.note_rows("empty_text", empty)
    report.note_names("missing_media", missing)
    if not rows:
        raise DatasetError(
            f"{path}: none of its {num_given} rows is an expression about a video of the folder; accepted: columns "
            f"video,exp where video is one of {', '.join(list(clips)[:3])}{', ...' if len(clips) > 3 else ''}."
        )
    return rows

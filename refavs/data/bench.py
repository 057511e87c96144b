"""Where the media, masks and expressions of a source lie: the Ref-AVS Bench layout, or a plain folder of videos."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError

from refavs.data.metadata import MetadataReport, plain_name, read_metadata, read_rows
from refavs.errors import DatasetError

__all__ = [
    "Clip", "MetadataReport", "Source", "read_benchmark", "read_mask", "read_metadata", "read_source", "read_videos",
]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
EXPRESSION_COLUMNS = ("uid", "vid", "clip_id", "fid", "split", "text", "grade", "dimension")
PREDICT_SPLIT = "predict"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Where one clip's media lies: frames and sound of the benchmark, or one video file."""

    id: str
    frames: Path | None = None
    audio: Path | None = None
    video: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that can be extracted from one place.

    Attributes:
        clips: sorted by id, each id once.
        objects: `clip_id, fid, folder`, a row for each object that has masks.
        expressions: `uid, vid, clip_id, fid, split, text, grade, dimension`. `fid` is -1 where there are no masks;
            otherwise (clip_id, fid) is a row of `objects`. Grade and dimension are empty where unknown.
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
    if (root / "metadata.csv").is_file():
        if expressions_csv is not None:
            raise DatasetError(
                f"{root} is a benchmark, its expressions are in metadata.csv; leave out the CSV {expressions_csv}."
            )
        return read_benchmark(root)
    return read_videos(root, expressions_csv)


def read_benchmark(root: str | os.PathLike[str]) -> Source:
    """Reads a folder in the benchmark's layout; a clip or mask folder that is missing is named in the report.

    An optional `expressions.csv` beside metadata.csv (`uid,grade,dimension`, more columns allowed) says what cues an
    expression needs.

    Raises:
        DatasetError: metadata.csv cannot be read, or none of its clips has media.
    """
    root = Path(root).absolute()
    table, report = read_metadata(root / "metadata.csv")
    present = _folders(root / "media")
    wanted = sorted(set(table["media_id"]))
    report.note_names("missing_media", (name for name in wanted if name not in present))
    clips = tuple(
        Clip(id=name, frames=root / "media" / name / "frames", audio=root / "media" / name / "audio.wav")
        for name in wanted if name in present
    )
    if not clips:
        raise DatasetError(
            f"{root}: none of the {len(wanted)} clips of metadata.csv has a folder under {root / 'media'}; expected "
            "media/<id>/frames/{0..9}.jpg and media/<id>/audio.wav. Unpack the benchmark's media there."
        )
    kept = table[table["media_id"].isin([clip.id for clip in clips])]
    objects = _objects(root / "gt_mask", kept, report)
    expressions = kept.rename(columns={"media_id": "clip_id"}).reset_index(drop=True)
    known = pd.MultiIndex.from_frame(objects[["clip_id", "fid"]])
    has_mask = pd.MultiIndex.from_frame(expressions[["clip_id", "fid"]]).isin(known)
    expressions["fid"] = expressions["fid"].where(has_mask, -1)
    expressions = _with_cues(expressions, root / "expressions.csv")
    return Source(kind="bench", root=root, clips=clips, objects=objects, expressions=expressions, report=report)


def read_videos(folder: str | os.PathLike[str], expressions_csv: str | os.PathLike[str] | None = None) -> Source:
    """Reads a folder of video files (not its subfolders); a clip's id is its file name without the suffix.

    Args:
        folder: holds files of the types in `VIDEO_SUFFIXES`; hidden files are passed over.
        expressions_csv: columns `video,exp`, where video is a file name with or without its suffix. Rows about videos
            that the folder lacks are left out and named in the report.

    Raises:
        DatasetError: no video in the folder, two videos of one id, or a CSV that names none of them.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise DatasetError(f"{root} is not a folder; accepted: {_ACCEPTED}.")
    clips: dict[str, Clip] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = plain_name(path.stem, str(path))
        if name in clips:
            raise DatasetError(f"{path} and {clips[name].video} have the same id {name!r}; rename one of them.")
        clips[name] = Clip(id=name, video=path)
    if not clips:
        raise DatasetError(f"{root} has neither a metadata.csv nor a video; accepted: {_ACCEPTED}.")
    report = MetadataReport(source=str(root))
    rows = [] if expressions_csv is None else _video_expressions(Path(expressions_csv), clips, report)
    return Source(
        kind="videos",
        root=root,
        clips=tuple(clips[name] for name in sorted(clips)),
        objects=_object_table([]),
        expressions=_expression_table(rows),
        report=report,
    )


def read_mask(
    folder: Path, t: int, size: tuple[int, int] | None = None, expected_size: tuple[int, int] | None = None
) -> Bool[np.ndarray, "h w"]:
    """Reads an object's mask in second `t`: True where the picture's gray value is above zero.

    Args:
        folder: the object's `fid_<fid>` folder.
        t: second, 0 to 9.
        size: height and width to return, by nearest neighbour; the file's own where None.
        expected_size: height and width the file must have, e.g. those of the frame it belongs to.

    Raises:
        DatasetError: the file is missing, is no picture, or has another size than `expected_size`.
    """
    path = Path(folder) / f"{t:05d}.png"
    try:
        with Image.open(path) as picture:
            plain = picture if picture.mode in ("1", "L", "I", "I;16") else picture.convert("L")
            mask = np.asarray(plain) > 0
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such mask; expected 00000.png to 00009.png, one for each second.") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as a PNG mask ({error}); unpack that file again.") from error
    if expected_size is not None and mask.shape != tuple(expected_size):
        raise DatasetError(
            f"{path} is a mask of {mask.shape[0]}x{mask.shape[1]} pixels (height x width), its frame has "
            f"{expected_size[0]}x{expected_size[1]}; accepted: a mask of its frame's size. Unpack or draw it again."
        )
    if size is None or mask.shape == tuple(size):
        return mask
    height, width = size
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)) > 0


_ACCEPTED = (
    "a benchmark folder (metadata.csv, media/<id>/frames/{0..9}.jpg, media/<id>/audio.wav, gt_mask/) or a folder of "
    f"videos (*{' *'.join(VIDEO_SUFFIXES)})"
)


def _folders(path: Path) -> set[str]:
    try:
        with os.scandir(path) as entries:
            return {entry.name for entry in entries if entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _objects(root: Path, kept: pd.DataFrame, report: MetadataReport) -> pd.DataFrame:
    found, missing = [], []
    for clip_id, rows in kept.groupby("media_id"):
        present = _folders(root / str(clip_id))
        for fid in sorted(set(rows["fid"])):
            if f"fid_{fid}" in present:
                found.append((str(clip_id), int(fid), root / str(clip_id) / f"fid_{fid}"))
            else:
                missing.append(f"{clip_id}/fid_{fid}")
    report.note_names("missing_masks", missing)
    return _object_table(found)


def _object_table(rows: list[tuple[str, int, Path]]) -> pd.DataFrame:
    return pd.DataFrame({
        "clip_id": pd.Series([row[0] for row in rows], dtype="str"),
        "fid": pd.Series([row[1] for row in rows], dtype="int64"),
        "folder": pd.Series([row[2] for row in rows], dtype="object"),
    })


def _expression_table(rows: Iterable[dict[str, str | int]]) -> pd.DataFrame:
    rows = list(rows)
    kinds = {name: "int64" if name == "fid" else "str" for name in EXPRESSION_COLUMNS}
    return pd.DataFrame({name: pd.Series([row[name] for row in rows], dtype=kinds[name]) for name in kinds})


def _with_cues(expressions: pd.DataFrame, path: Path) -> pd.DataFrame:
    cues = {row["uid"]: row for row in read_rows(path, ("uid", "grade", "dimension"))} if path.is_file() else {}
    for column in ("grade", "dimension"):
        values = [cues[uid][column] if uid in cues else "" for uid in expressions["uid"]]
        expressions[column] = pd.Series(values, index=expressions.index, dtype="str")
    return expressions[list(EXPRESSION_COLUMNS)]


def _video_expressions(
    path: Path, clips: dict[str, Clip], report: MetadataReport
) -> list[dict[str, str | int]]:
    by_name = {clip.video.name: name for name, clip in clips.items() if clip.video is not None}
    by_name.update({name: name for name in clips})
    rows: list[dict[str, str | int]] = []
    empty, missing = [], set()
    counts = dict.fromkeys(clips, 0)
    given = read_rows(path, ("video", "exp"))
    for number, row in enumerate(given):
        clip_id = by_name.get(row["video"])
        if clip_id is None:
            missing.add(row["video"])
        elif not row["exp"].strip():
            empty.append(number)
        else:
            uid = f"{clip_id}_expression_{counts[clip_id]}"
            counts[clip_id] += 1
            rows.append({
                "uid": uid, "vid": clip_id, "clip_id": clip_id, "fid": -1, "split": PREDICT_SPLIT, "text": row["exp"],
                "grade": "", "dimension": "",
            })
    report.counts.update(rows_total=len(given), rows_kept=len(rows))
    report.note_rows("empty_text", empty)
    report.note_names("missing_media", missing)
    if not rows:
        raise DatasetError(
            f"{path}: none of its {len(given)} rows is an expression about a video of the folder; accepted: columns "
            f"video,exp where video is one of {', '.join(list(clips)[:3])}{', ...' if len(clips) > 3 else ''}."
        )
    return rows

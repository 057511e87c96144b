"""What the layouts of OmniAVS, MeViS and Ref-YouTube-VOS share.

They have expressions about one or several objects of videos of any length, and masks as run lengths or palette images.
Objects that an expression names together are one object here, whose mask is their union.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool

from refavs.choices import Role
from refavs.data.layouts.protocol import Clip, Mask, Object, Source, expression_table
from refavs.data.layouts.report import SourceReport
from refavs.data.rle import PlainRunLengths, RunLengths, decoded
from refavs.errors import DatasetError
from refavs.files.plain_file import UnusableFileError
from refavs.files.source_files import MOST_PIXELS, PICTURE_ERRORS, open_file, open_picture, reason_of
from refavs.files.tables import composed, is_plain_path, plain_name
from refavs.files.typed_json import OddRecord, read_json, shaped

NUM_FRAMES = 10  # of a video without sound
VALIDATION_SHARE = 20  # one training video in this many, where the data set has no validation split with masks
TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One expression.

    Attributes:
        objects: the objects that it means, none if it refers to nothing; None if the data set keeps them back.
    """

    uid: str
    text: str
    objects: tuple[str, ...] | None
    split: str
    dimension: str = ""


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video.

    Attributes:
        masks: the masks, by step, of the union of some objects.
    """

    clip: Clip
    expressions: Sequence[Expression]
    masks: Callable[[tuple[str, ...]], Mapping[int, Mask]]


def video_source(
    root: Path, videos: Iterable[Video], splits: Mapping[str, Role], report: SourceReport | None = None
) -> Source:
    """The source of some videos; videos without a folder of frames are left out and named in the report.

    Raises:
        DatasetError: no video has one, or as for `masks` of a video.
    """
    report = report or SourceReport(source=str(root))
    listed = {video.clip.id: video for video in videos}
    present = {name: listed[name] for name in sorted(listed)
               if listed[name].clip.frames and listed[name].clip.frames[0].parent.is_dir()}  # fmt: skip
    if not present:
        raise DatasetError(f"{root}: none of its {len(listed)} videos has a folder of frames; unpack the frames there.")
    objects: list[Object] = []
    rows: list[dict[str, Any]] = []
    for name, video in present.items():
        meant = dict.fromkeys(one.objects for one in video.expressions if one.objects is not None)
        fids = {union: fid for fid, union in enumerate(meant)}
        objects += [
            Object(clip_id=name, fid=fid, masks=video.masks(union) if union else {}, null=not union, root=root)
            for union, fid in fids.items()
        ]
        rows += [
            {"uid": one.uid, "clip_id": name, "split": one.split, "text": one.text, "dimension": one.dimension,
             "fid": -1 if one.objects is None else fids[one.objects], "null": one.objects == ()}
            for one in video.expressions if one.text.strip()
        ]  # fmt: skip
    report.note_names("missing_media", listed.keys() - present)
    report.note_names("empty_text", (one.uid for video in present.values() for one in video.expressions
                                     if not one.text.strip()))  # fmt: skip
    report.counts.update(rows_total=sum(len(video.expressions) for video in listed.values()), rows_kept=len(rows))
    return Source(
        root=root, clips=tuple(video.clip for video in present.values()), objects=tuple(objects),
        expressions=expression_table(rows), splits=splits, report=report,
    )


def spread(num_frames: int) -> list[int]:
    """Numbers of the frames to read of a video without sound: the first frame of each tenth of it."""
    kept = min(num_frames, NUM_FRAMES)
    return [place * num_frames // kept for place in range(kept)]


def of_each_second(num_frames: int, duration_s: float) -> list[int]:
    """Numbers of the frames that begin a second, for a video with sound; at least the first frame."""
    seconds = max(1, int(duration_s))
    return [min(num_frames - 1, round(second * num_frames / duration_s)) for second in range(min(seconds, num_frames))]


def held_out(video: str) -> bool:
    """Whether a training video belongs to the split `val`, by the hash of its name."""
    return int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") % VALIDATION_SHARE == 0


def plain_names(names: Iterable[str], where: Path) -> list[str]:
    """The names in composed Unicode form, each of which must be safe as that of a file."""
    return [plain_name(composed(name), str(where)) for name in names]


def read_annotations(path: Path, kind: Any, root: Path) -> Any:
    """Reads a JSON file of a data set, or one with a record in each line (`.jsonl`).

    Args:
        kind: the shape that it must have; see `typed_json.shaped`.

    Raises:
        DatasetError: it is missing, no JSON, or has another shape.
    """
    with_lines = path.suffix == ".jsonl"
    try:
        with open_file(path, root) as file:
            value = [read_json(line) for line in file if line.strip()] if with_lines else read_json(file.read())
        return shaped(value, kind, path.name)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; unpack the annotations of the data set there.") from None
    except (OddRecord, UnusableFileError, OSError) as error:
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); unpack it again.") from error


class ListedExpression(TypedDict):
    """An expression in a `meta_expressions.json`; the objects are left out where the data set keeps them back."""

    exp: str
    obj_id: NotRequired[Any]
    anno_id: NotRequired[list[int | str]]


class ListedVideo(TypedDict):
    """A video in a `meta_expressions.json`."""

    frames: list[str]
    expressions: dict[str, ListedExpression]


class _Listing(TypedDict):
    videos: dict[str, ListedVideo]


def listed_videos(path: Path, root: Path) -> dict[str, ListedVideo]:
    """The videos of a `meta_expressions.json`, their frames in order.

    Raises:
        DatasetError: it cannot be read, or a name in it is no plain name.
    """
    listing: _Listing = read_annotations(path, _Listing, root)
    plain_names(listing["videos"], path)
    for video in listing["videos"].values():
        video["frames"] = sorted(plain_names(video["frames"], path))
    return listing["videos"]


def silent_clip(root: Path, split: str, name: str, video: ListedVideo) -> Clip:
    """The clip of a video without sound in `SPLIT/JPEGImages/VIDEO/`, with the id `SPLIT/VIDEO`."""
    folder, frames = root / split / "JPEGImages" / name, video["frames"]
    return Clip(id=f"{split}/{name}", root=root,
                frames=tuple(folder / f"{frames[number]}.jpg" for number in spread(len(frames))))  # fmt: skip


def find_silent_clip(root: Path, clip_id: str, listings: Mapping[str, Path]) -> Clip | None:
    """Finds the clip of an untrusted id.

    Args:
        listings: the `meta_expressions.json` of each split.
    """
    split, _, name = clip_id.partition("/")
    if split not in listings or not is_plain_path(clip_id) or not (root / split / "JPEGImages" / name).is_dir():
        return None
    video = listed_videos(listings[split], root).get(name)
    return None if video is None else silent_clip(root, split, name, video)


@dataclass(frozen=True, kw_only=True)
class RunLengthMask:
    """The union of several objects in one frame, from COCO's run lengths.

    Attributes:
        parts: of the objects that are in the frame; all of them may be absent.
        where: file and object, for messages.
    """

    parts: tuple[Any, ...]
    frame: Path
    where: str
    root: Path

    def __call__(self) -> Bool[np.ndarray, "h w"]:
        """Decodes the masks.

        Raises:
            DatasetError: a record is damaged, or two have different sizes.
        """
        try:
            if not self.parts:
                with open_picture(self.frame, self.root) as picture:
                    return np.zeros((picture.height, picture.width), np.bool_)
            masks = [_decoded(part) for part in self.parts]
            return np.logical_or.reduce(masks)
        except (*PICTURE_ERRORS, OddRecord) as error:
            raise DatasetError(f"{self}: {reason_of(error)}; unpack that file again.") from error

    def __str__(self) -> str:
        return f"the mask of {self.where} in frame {self.frame.name}"


def _decoded(part: Any) -> Bool[np.ndarray, "h w"]:
    lengths: RunLengths | PlainRunLengths = shaped(part, RunLengths | PlainRunLengths, "its run lengths")
    if len(lengths["size"]) != 2 or not 0 < lengths["size"][0] * lengths["size"][1] <= MOST_PIXELS:
        raise ValueError(f"its size is {lengths['size']}; accepted: height and width of up to {MOST_PIXELS:,} pixels")
    return decoded(lengths)


def run_length_masks(
    records: Mapping[str, Sequence[Any]], objects: Sequence[str], chosen: Sequence[int], clip: Clip, where: Path,
    root: Path,
) -> dict[int, Mask]:  # fmt: skip
    """The masks of a union of objects in the frames of a clip.

    Args:
        records: for each object, the run lengths in each frame of the video, null where it is absent.
        chosen: number in the video of each frame of the clip.

    Raises:
        DatasetError: an object has no record, or records end before the video.
    """
    lacking = [one for one in objects if len(records.get(one, ())) <= max(chosen)]
    if lacking:
        found = len(records.get(lacking[0], ()))
        raise DatasetError(f"{where}: object {lacking[0]!r} of video {clip.id!r} has {found} masks, and the video more "
                           f"than {max(chosen)} frames; unpack that file again.")
    return {
        step: RunLengthMask(
            parts=tuple(part for one in objects if (part := records[one][number]) is not None), root=root,
            frame=clip.frames[step], where=f"{where.name}, {' and '.join(objects)}",
        )
        for step, number in enumerate(chosen)
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PaletteMask:
    """One or several objects of a picture whose pixels have the numbers of objects, 0 for none."""

    path: Path
    numbers: tuple[int, ...]
    root: Path

    def __call__(self) -> Bool[np.ndarray, "h w"]:
        """Reads the picture.

        Raises:
            DatasetError: it is missing, damaged, or has colours instead of numbers.
        """
        try:
            with open_picture(self.path, self.root, lossless=True) as picture:
                if picture.mode not in ("P", "L"):
                    raise ValueError(f"its pixels are of kind {picture.mode}; accepted: a palette or grey values")
                return np.isin(np.asarray(picture), self.numbers)
        except FileNotFoundError:
            raise DatasetError(f"{self.path}: no such mask; unpack the annotations of the video again.") from None
        except PICTURE_ERRORS as error:
            raise DatasetError(f"{self.path} cannot be read as a mask ({reason_of(error)}); unpack that file "
                               "again.") from error  # fmt: skip

    def __str__(self) -> str:
        return str(self.path)

"""The layout of OmniAVS: videos with sound, expressions of words, and masks as run lengths.

One frame is read for each second. Expressions in which a sound or a picture stands in for words are left out, since a
text encoder cannot read them; those that are spoken are read as their words. `dimension` is the data set's `expr_type`.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import TypedDict

from refavs.choices import Role
from refavs.data.layouts.annotated_videos import (
    TEST,
    TRAIN,
    VAL,
    Video,
    VideoExpression,
    held_out,
    of_each_second,
    plain_names,
    read_annotations,
    run_length_masks,
    video_source,
)  # fmt: skip
from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.tables import is_plain_path

TEST_NULL = "test_null"
SPLITS: dict[str, Role] = {TRAIN: "train", VAL: "validation", TEST: "test", TEST_NULL: "null-test"}
VIDEOS = "video_dict.json"
OF_WORDS = ("text", "speech")


class _Video(TypedDict):
    file_name: list[str]
    duration: float
    mask_dict: dict[str, list]


class _Row(TypedDict):
    exp_id: int | str
    video_name: str
    expr: str
    obj_id: list[int | str]
    expr_type: str


class OmniAvs(Layout):
    """`images/VIDEO/FILE`, `audios/VIDEO.mp3`, `video_dict.json` and `meta_expressions_{train,test}.jsonl`.

    A twentieth of the training videos is the split `val`. Test expressions that refer to nothing are `test_null`.
    Differs: the authors' evaluation counts only the first object of several; here all of them are the object.
    """

    accepts = "OmniAVS (video_dict.json, meta_expressions_{train,test}.jsonl, images/<video>/, audios/<video>.mp3)"

    def detect(self, root: Path) -> bool:
        """Whether an entry called video_dict.json exists, of any type."""
        return os.path.lexists(root / VIDEOS)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the videos and the expressions.

        Raises:
            DatasetError: a file cannot be read, an expression is about an unknown video or object, or `expressions`
                are given.
        """
        if expressions is not None:
            raise DatasetError(f"{root} has expressions of its own; leave out the CSV {expressions}.")
        videos = read_annotations(root / VIDEOS, dict[str, _Video], root)
        plain_names(videos, root / VIDEOS)
        report = SourceReport(source=str(root))
        of_video: dict[str, list[VideoExpression]] = defaultdict(list)
        left_out = []
        for split in (TRAIN, TEST):
            path = root / f"meta_expressions_{split}.jsonl"
            for row in read_annotations(path, list[_Row], root):
                uid, name = f"{split}_{row['exp_id']}", row["video_name"]
                if name not in videos:
                    raise DatasetError(f"{path}: expression {row['exp_id']} is about {name!r}, which {VIDEOS} lacks.")
                if row["expr_type"] in OF_WORDS:
                    of_video[name].append(_expression(row, uid, split))
                else:
                    left_out.append(uid)
        report.note_names("other_modality", left_out)
        return video_source(root, (_video(root, name, videos[name], of_video[name]) for name in videos), SPLITS, report)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by the name of its video."""
        if "/" in clip_id or not is_plain_path(clip_id) or not (root / "images" / clip_id).is_dir():
            return None
        videos = read_annotations(root / VIDEOS, dict[str, _Video], root)
        return _video(root, clip_id, videos[clip_id], []).clip if clip_id in videos else None


def _expression(row: _Row, uid: str, split: str) -> VideoExpression:
    objects = tuple(sorted({str(one) for one in row["obj_id"]}))
    if split == TRAIN and held_out(row["video_name"]):
        split = VAL
    elif split == TEST and not objects:
        split = TEST_NULL
    return VideoExpression(uid=uid, text=row["expr"], objects=objects, split=split, dimension=row["expr_type"])


def _video(root: Path, name: str, facts: _Video, expressions: list[VideoExpression]) -> Video:
    files = plain_names(facts["file_name"], root / VIDEOS)
    if not files or facts["duration"] <= 0:
        raise DatasetError(f"{root / VIDEOS}: video {name!r} has no frames or no duration; unpack that file again.")
    chosen = of_each_second(len(files), facts["duration"])
    clip = Clip(id=name, frames=tuple(root / "images" / name / files[number] for number in chosen),
                audio=root / "audios" / f"{name}.mp3", root=root)  # fmt: skip
    return Video(
        clip=clip, expressions=expressions,
        masks=lambda objects: run_length_masks(facts["mask_dict"], objects, chosen, clip, root / VIDEOS, root),
    )  # fmt: skip

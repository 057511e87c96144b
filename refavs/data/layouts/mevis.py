"""The layout of MeViS: silent videos, expressions of motion about one or several objects, masks as run lengths.

Ten frames are read of each video, evenly spread, as an expression may be about any part of it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from refavs.choices import Role
from refavs.data.layouts.annotated_videos import (
    ListedExpression,
    Video,
    VideoExpression,
    find_silent_clip,
    listed_videos,
    read_annotations,
    run_length_masks,
    silent_clip,
    spread,
    video_source,
)  # fmt: skip
from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.errors import DatasetError

MASKS = "mask_dict.json"
SPLITS: dict[str, Role] = {"train": "train", "valid_u": "validation"}
WITHOUT_MASKS = "valid"  # the authors' server has them


class Mevis(Layout):
    """`{train,valid_u,valid}/` with `meta_expressions.json` and `JPEGImages/VIDEO/FRAME.jpg`, and `mask_dict.json`.

    Expressions of `valid` have no masks. Splits that are not there are left out.
    """

    accepts = "MeViS ({train,valid_u,valid}/ with meta_expressions.json, mask_dict.json, JPEGImages/<video>/)"

    def detect(self, root: Path) -> bool:
        """Whether a split has a file of expressions, of any type."""
        return bool(_listings(root))

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the expressions and masks of each split.

        Raises:
            DatasetError: a file cannot be read, masks are missing, or `expressions` are given.
        """
        if expressions is not None:
            raise DatasetError(f"{root} has expressions of its own; leave out the CSV {expressions}.")
        listings = _listings(root)
        return video_source(
            root, (video for split, path in listings.items() for video in _videos(root, split, path)),
            {split: role for split, role in SPLITS.items() if split in listings},
        )

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id, `SPLIT/VIDEO`."""
        return find_silent_clip(root, clip_id, _listings(root))


def _listings(root: Path) -> dict[str, Path]:
    """The file of expressions of each split that is there."""
    paths = {split: root / split / "meta_expressions.json" for split in (*SPLITS, WITHOUT_MASKS)}
    return {split: path for split, path in paths.items() if os.path.lexists(path)}


def _videos(root: Path, split: str, listing: Path) -> Iterator[Video]:
    path = root / split / MASKS
    records = {} if split == WITHOUT_MASKS else read_annotations(path, dict[str, list], root)
    for name, video in listed_videos(listing, root).items():
        clip, chosen = silent_clip(root, split, name, video), spread(len(video["frames"]))
        yield Video(
            clip=clip, expressions=[
                VideoExpression(uid=f"{clip.id}_{number}", text=row["exp"], split=split,
                           objects=None if split == WITHOUT_MASKS else _objects(row, f"{listing}: {name} {number}"))
                for number, row in video["expressions"].items()
            ],
            masks=lambda objects, clip=clip, chosen=chosen: run_length_masks(
                records, objects, chosen, clip, path, root),
        )  # fmt: skip


def _objects(row: ListedExpression, where: str) -> tuple[str, ...]:
    if "anno_id" not in row:
        raise DatasetError(f"{where} has no anno_id, the list of the masks that it means; unpack that file again.")
    return tuple(sorted({str(one) for one in row["anno_id"]}))

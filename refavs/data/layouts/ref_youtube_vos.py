"""The layout of Ref-YouTube-VOS: silent videos, expressions about one object, masks as palette images.

Ten frames are read of each video, evenly spread. Only training videos have masks: a twentieth of them is the split
`val`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from refavs.choices import Role
from refavs.data.layouts.annotated_videos import (
    TEST,
    TRAIN,
    VAL,
    ListedExpression,
    PaletteMask,
    Video,
    VideoExpression,
    find_silent_clip,
    held_out,
    listed_videos,
    silent_clip,
    video_source,
)  # fmt: skip
from refavs.data.layouts.protocol import Clip, Layout, Mask, Source
from refavs.errors import DatasetError

EXPRESSIONS = "meta_expressions"
SPLITS: dict[str, Role] = {TRAIN: "train", VAL: "validation"}
FOLDERS = (TRAIN, "valid", TEST)  # the authors' server has the masks of the last two


class RefYoutubeVos(Layout):
    """`meta_expressions/SPLIT/meta_expressions.json`, `SPLIT/JPEGImages/VIDEO/FRAME.jpg`, `train/Annotations/`."""

    accepts = ("Ref-YouTube-VOS (meta_expressions/{train,valid,test}/, {train,valid,test}/JPEGImages/<video>/, "
               "train/Annotations/<video>/)")  # fmt: skip

    def detect(self, root: Path) -> bool:
        """Whether an entry called meta_expressions exists, of any type."""
        return os.path.lexists(root / EXPRESSIONS)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the expressions of each split that is there.

        Raises:
            DatasetError: a file cannot be read, an object is no number, or `expressions` are given.
        """
        if expressions is not None:
            raise DatasetError(f"{root} has expressions of its own; leave out the CSV {expressions}.")
        listings = _listings(root)
        return video_source(
            root, (video for split, path in listings.items() for video in _videos(root, split, path)), SPLITS)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id, `SPLIT/VIDEO`."""
        return find_silent_clip(root, clip_id, _listings(root))


def _listings(root: Path) -> dict[str, Path]:
    """The file of expressions of each split that is there."""
    paths = {split: root / EXPRESSIONS / split / "meta_expressions.json" for split in FOLDERS}
    return {split: path for split, path in paths.items() if os.path.lexists(path)}


def _videos(root: Path, split: str, listing: Path) -> Iterator[Video]:
    for name, video in listed_videos(listing, root).items():
        own, clip = VAL if split == TRAIN and held_out(name) else split, silent_clip(root, split, name, video)
        yield Video(
            clip=clip, masks=lambda objects, name=name, clip=clip: _masks(root, name, clip, objects),
            expressions=[
                VideoExpression(uid=f"{clip.id}_{number}", text=row["exp"], split=own,
                           objects=_objects(row, f"{listing}: {name} {number}") if split == TRAIN else None)
                for number, row in video["expressions"].items()
            ],
        )  # fmt: skip


def _objects(row: ListedExpression, where: str) -> tuple[str, ...]:
    if not str(row.get("obj_id")).isdecimal():
        raise DatasetError(f"{where} has the object {row.get('obj_id')!r}; accepted: its number in the masks.")
    return (str(row["obj_id"]),)  # pyright: ignore[reportTypedDictNotRequiredAccess]


def _masks(root: Path, name: str, clip: Clip, objects: tuple[str, ...]) -> dict[int, Mask]:
    folder, numbers = root / TRAIN / "Annotations" / name, tuple(map(int, objects))
    return {step: PaletteMask(path=folder / f"{frame.stem}.png", numbers=numbers, root=root)
            for step, frame in enumerate(clip.frames)}  # fmt: skip

"""The protocol of dataset layouts. A layout recognises its folders and finds clips, masks, splits and expressions.

A package adds a layout as an entry point in the group `refavs.layouts`; its name is the value of `--layout`. Example:

    [project.entry-points."refavs.layouts"]
    kitchen = "my_package.kitchen:Kitchen"

`tests/plugin/refavs_example/layout.py` is such a class, of 30 lines, for folders with `FILM/frames/*.jpg`,
`FILM/sound.wav`, one object in `FILM/masks/<number>.png` for some frames, and a `list.csv` with the columns
`film,split,expression`. `refavs.data.layouts.contract.check_layout(Kitchen(), root)` tests it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool

from refavs.choices import Role
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.steps import Steps

# A PNG file, or a module-level function (it is pickled) that a worker process calls to get the pixels of the object.
Mask = Path | Callable[[], Bool[np.ndarray, "h w"]]
_DEFAULTS: dict[str, Any] = {"fid": -1, "grade": "", "dimension": "", "null": False}
EXPRESSION_COLUMNS = {
    "uid": "str", "vid": "str", "clip_id": "str", "fid": "int64", "split": "str", "text": "str", "grade": "str",
    "dimension": "str", "null": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The media files of a clip: evenly spaced pictures and an audio file, or a single video file.

    Attributes:
        id: its name in the store, unique in a source; may be a path such as `day1/cam2/a`.
        frames: the pictures, the first at 0 s.
        fps: pictures per second, and masks per second of its objects.
        root: folder that must contain the files after following symbolic links; None allows any place.
    """

    id: str
    frames: tuple[Path, ...] = ()
    fps: float = 1.0
    audio: Path | None = None
    video: Path | None = None
    root: Path | None = None

    def pictures(self, steps: Steps) -> tuple[Path, ...]:
        """The picture of each step, up to the last one in `frames`.

        Raises:
            DatasetError: there is none at the time of a step.
        """
        places = steps.places(self.fps) if self.frames else ()
        if None in places:
            raise DatasetError(f"clip {self.id!r} has {self.fps:g} pictures per second, not {steps.fps:g}; accepted: "
                               f"--fps {self.fps:g}, or that divided by a whole number")  # fmt: skip
        return tuple(self.frames[place] for place in places if place is not None and place < len(self.frames))


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a clip.

    Attributes:
        fid: its number within the clip, 0 or more.
        masks: its masks, numbered from 0 s on at the clip's `fps`; only labelled frames have one.
        null: the object does not exist, so its masks are empty in every frame; any given masks must be empty.
        root: as for `Clip`.
    """

    clip_id: str
    fid: int
    masks: Mapping[int, Mask]
    null: bool = False
    root: Path | None = None


def expression_table(rows: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Builds a table of expressions from rows with `uid, clip_id, split, text` and optionally

    - `fid`: the object of the clip; -1 if there are no masks;
    - `vid`: the video that the clip was cut from; by default the clip;
    - `grade`, `dimension`: its difficulty and the cues it needs, e.g. `spatial`; empty if unknown;
    - `null`: whether it refers to no object.
    """
    full = [{**_DEFAULTS, "vid": row["clip_id"], **row} for row in rows]
    return pd.DataFrame({
        name: pd.Series([row[name] for row in full], dtype=kind)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, kind in EXPRESSION_COLUMNS.items()
    })


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that can be extracted from one folder.

    Attributes:
        clips: sorted by id; ids are unique.
        objects: unique by (clip_id, fid).
        expressions: see `expression_table`; empty if the source has no expressions. A row with a `fid` refers to one
            of `objects`.
        splits: the role of each split whose expressions have masks.
        report: rows, clips and objects with a peculiarity, by kind.
        layout: name of the layout, set by `read_source`.
    """

    root: Path
    clips: tuple[Clip, ...]
    objects: tuple[Object, ...] = ()
    expressions: pd.DataFrame = field(default_factory=expression_table)
    splits: Mapping[str, Role] = field(default_factory=dict)
    report: SourceReport = field(default_factory=SourceReport)
    layout: str = ""


@runtime_checkable
class Layout(Protocol):
    """A way in which data sets are organised in folders.

    Attributes:
        accepts: noun phrase with an article that describes its folders, for messages.
    """

    accepts: str

    def detect(self, root: Path) -> bool:
        """Whether a folder has this layout. Looks at a few names only, so that a damaged folder is recognised too."""
        ...

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads a folder.

        Args:
            root: an absolute path.
            expressions: the CSV (`video,exp`) given as `--expressions`; only for layouts that contain no expressions.

        Raises:
            DatasetError: it cannot be read; the message says what was found, what is accepted and what to do.
        """
        ...

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip's media by id, if possible without reading the whole source.

        Args:
            clip_id: an id from a store, which is not trusted: no file outside of `root` may be read.
        """
        return next((clip for clip in self.read(root).clips if clip.id == clip_id), None)

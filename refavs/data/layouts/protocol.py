"""What a dataset layout is: it recognises its folders and says where clips, masks, splits and expressions lie in them.

A package adds one by the entry-point group `refavs.layouts`, whose names are those of `--layout`:

    [project.entry-points."refavs.layouts"]
    kitchen = "my_package.kitchen:Kitchen"

`tests/plugin/refavs_example/layout.py` is such a class, of 30 lines, for folders with `FILM/frames/*.jpg`,
`FILM/sound.wav`, one object in `FILM/masks/<second>.png` for some seconds, and a `list.csv` with the columns
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

# A PNG file, or a function of a module (it is pickled) that a worker process calls for the pixels of the object.
Mask = Path | Callable[[], Bool[np.ndarray, "h w"]]
_DEFAULTS: dict[str, Any] = {"fid": -1, "grade": "", "dimension": "", "null": False}
EXPRESSION_COLUMNS = {
    "uid": "str", "vid": "str", "clip_id": "str", "fid": "int64", "split": "str", "text": "str", "grade": "str",
    "dimension": "str", "null": "bool",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Where one clip's media lies: a picture for each second and a sound file, or one video file.

    Attributes:
        id: its name in the store, unique in a source; may have the parts of a path, as `day1/cam2/a`.
        frames: a picture for each second from the first on; as many as the clip has seconds.
        root: folder that none of the files may lie outside of, symbolic links followed; None where they may.
    """

    id: str
    frames: tuple[Path, ...] = ()
    audio: Path | None = None
    video: Path | None = None
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a clip.

    Attributes:
        fid: tells it from other objects of the clip; 0 or more.
        masks: where its pixels are, by the second; only labelled seconds have a mask.
        null: there is no such object. Its masks are empty in every second by definition; those given must be empty.
        root: as of `Clip`.
    """

    clip_id: str
    fid: int
    masks: Mapping[int, Mask]
    null: bool = False
    root: Path | None = None

    def labelled(self, num_seconds: int) -> Bool[np.ndarray, " t"]:
        """For which of the first seconds it is known where the object is."""
        return np.array([self.null or second in self.masks for second in range(num_seconds)])


def expression_table(rows: Iterable[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """A table of expressions: `uid, clip_id, split, text` of each, and where known

    - `fid`: the object of the clip, -1 where there are no masks;
    - `vid`: the film that the clip is from, by default the clip;
    - `grade`, `dimension`: how hard it is, and the cues it needs, as `spatial`; empty where unknown;
    - `null`: whether it refers to nothing.
    """
    full = [{**_DEFAULTS, "vid": row["clip_id"], **row} for row in rows]
    return pd.DataFrame({
        name: pd.Series([row[name] for row in full], dtype=kind)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, kind in EXPRESSION_COLUMNS.items()
    })


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that can be extracted from one place.

    Attributes:
        clips: sorted by id, each id once.
        objects: (clip_id, fid) is each there once.
        expressions: see `expression_table`; none where the source says nothing about expressions. A row with a `fid`
            speaks of one of `objects`.
        splits: for each split of expressions with masks, what it is for.
        report: every odd row, clip and object by kind.
        layout: its name, which `read_source` fills in.
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
    """A form in which folders hold data sets.

    Attributes:
        accepts: what its folders hold, for messages: a noun with an article.
    """

    accepts: str

    def detect(self, root: Path) -> bool:
        """Whether a folder has this layout, by a look at few names; a damaged one has it as well."""
        ...

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads a folder.

        Args:
            root: absolute.
            expressions: a CSV (`video,exp`) as given to `--expressions`; only for layouts without expressions of their
                own.

        Raises:
            DatasetError: it cannot be read; says what was found, what is accepted, and what to do.
        """
        ...

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip's media again, without reading the whole source where that can be avoided.

        Args:
            clip_id: as a store has it, so it may be anything: no file outside of `root` may be read for it.
        """
        return next((clip for clip in self.read(root).clips if clip.id == clip_id), None)

"""The table of names: which objects each clip is searched for.

A CSV file with the columns `vid,name`, and any of `fid,pivot,x0,y0,x1,y1`. A row is one object. Rows of one clip with
the same `fid` are the same object, with a pivot or a box in another scene.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from extract.annotate.records import Box, Request
from refavs.config import nearest
from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from refavs.files.tables import composed, header_of, read_rows

NEEDED = ("vid", "name")
CORNERS = ("x0", "y0", "x1", "y1")
OPTIONAL = ("fid", "pivot", *CORNERS)
NEW = 0  # fid of a row that gives none


@dataclass(frozen=True, kw_only=True)
class Names:
    """What a table asks for.

    Attributes:
        rows: of each clip, in the table's order; `NEW` stands for a fid that the table leaves open.
        problems: a line for each row that is left out.
        remarks: a line for each column that is not used.
    """

    rows: Mapping[str, Sequence[Request]]
    problems: Sequence[str]
    remarks: Sequence[str] = ()


def read_names(path: Path, clips: Sequence[Clip], seconds: int) -> Names:
    """Reads the table; `vid` is the id of a clip, or the path of a video below its folder.

    Raises:
        DatasetError: the file cannot be read, lacks a needed column, or has no row that can be used.
    """
    header = header_of(path)
    remarks = [f"{path.name}: column {name!r} is not used; {nearest(name, (*NEEDED, *OPTIONAL))}"
               for name in header if name not in (*NEEDED, *OPTIONAL)]  # fmt: skip
    problems: list[str] = []
    columns = [*NEEDED, *(name for name in OPTIONAL if name in header)]
    known = {composed(clip.id): clip.id for clip in clips}
    known |= {composed(clip.video.relative_to(clip.root).as_posix()): clip.id for clip in clips
              if clip.video is not None and clip.root is not None}  # fmt: skip
    rows: dict[str, list[Request]] = defaultdict(list)
    called: dict[tuple[str, int], str] = {}
    number = 0
    for number, values in enumerate(read_rows(path, columns), 1):
        told = {name: value.strip() for name, value in zip(columns, values, strict=True)}
        try:
            clip, row = _clip(told["vid"], known), _request(told, seconds)
            if row.fid and (other := called.setdefault((clip, row.fid), row.name)) != row.name:
                raise ValueError(f"fid {row.fid} of {clip!r} is called {other!r} in an earlier row, not {row.name!r}")
            rows[clip].append(row)
        except ValueError as error:
            problems.append(f"{path.name}, row {number}: {error}; the row is left out")
    if not rows:
        first = f" ({problems[0]})" if problems else ""
        raise DatasetError(f"{path}: none of its {number} rows names an object of a clip{first}; accepted: columns "
                           f"vid,name where vid is one of {', '.join(list(known)[:3])}")  # fmt: skip
    return Names(rows=rows, problems=problems, remarks=remarks)


def numbered(rows: Sequence[Request], earlier: Iterable[Request]) -> tuple[Request, ...]:
    """The rows with their fids: those of the table, those of earlier equal rows, or else the next free numbers."""
    left, found = list(earlier), []
    for row in rows:
        same = next((one for one in left if replace(one, fid=row.fid) == row and row.fid in (NEW, one.fid)), None)
        if same is not None:
            left.remove(same)
        found.append(same or row)
    taken = {row.fid for row in (*found, *left)}
    for place, row in enumerate(found):
        if not row.fid:
            fid = next(number for number in range(1, len(taken) + 2) if number not in taken)
            taken.add(fid)
            found[place] = replace(row, fid=fid)
    return tuple(found)


def _clip(vid: str, known: Mapping[str, str]) -> str:
    found = known.get(composed(vid))
    if found is None:
        raise ValueError(f"there is no clip {vid!r}; {nearest(vid, list(known)[:1000])}")
    return found


def _request(told: Mapping[str, str], seconds: int) -> Request:
    if not told["name"]:
        raise ValueError("it has no name")
    pivot = _whole("pivot", told.get("pivot", ""), range(seconds))
    fid = _whole("fid", told.get("fid", ""), range(1, 10_000))
    return Request(fid=fid or NEW, name=told["name"], pivot=pivot, box=_box(told, pivot))


def _whole(name: str, text: str, accepted: range) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) not in accepted:
        raise ValueError(f"{name} is {text!r}; accepted: {accepted.start} to {accepted.stop - 1}, or nothing")
    return int(text)


def _box(told: Mapping[str, str], pivot: int | None) -> Box | None:
    given = [told.get(name, "") for name in CORNERS]
    if not any(given):
        return None
    try:
        x0, y0, x1, y1 = (float(text) for text in given)
        if not -1e6 < x0 < x1 < 1e6 or not -1e6 < y0 < y1 < 1e6:
            raise ValueError
    except ValueError:
        raise ValueError(f"the box {','.join(given)} is none; accepted: x0 < x1 and y0 < y1, in pixels") from None
    if pivot is None:
        raise ValueError("it has a box without a pivot; accepted: a box with the second that it belongs to")
    return x0, y0, x1, y1

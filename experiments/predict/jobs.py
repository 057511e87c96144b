"""The videos to predict and the expressions about each, from the command line or from a table."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refavs.config import nearest
from refavs.data.layouts.videos import VIDEO_SUFFIXES, named_as_videos
from refavs.errors import ConfigError, DatasetError

COLUMNS = ("video", "expression")


@dataclass(frozen=True)
class Job:
    """One video.

    Attributes:
        name: of its folder among those of other videos.
    """

    video: Path
    expressions: tuple[str, ...]
    name: str


def jobs_of(words: Sequence[str], table: Path | None) -> list[Job]:
    """The videos, folders of videos and expressions of a command line, in this order, or those of a table.

    Raises:
        ConfigError: a video or an expression is missing or empty, or the table has other columns.
        DatasetError: a name is not a video's, or a folder holds none.
    """
    if table is not None:
        if words:
            raise ConfigError(f"{words[0]!r} and --csv: pass either videos and expressions, or a table of them")
        return _named(_of_table(table))
    places = [words[0], *_leading_videos(words[1:])]
    expressions = tuple(words[len(places) :])
    if not expressions:
        raise ConfigError("no EXPRESSION is given; write each sentence in quotes, for example \"the sounding object\"")
    if not all(text.strip() for text in expressions):
        raise ConfigError("an EXPRESSION is empty; write each sentence in quotes, for example \"the sounding object\"")
    found: dict[Path, tuple[str, ...]] = {}
    for place in map(Path, places):
        videos = list(named_as_videos(place)) if place.is_dir() else [place]
        if not videos:
            raise DatasetError(f"{place} holds no video (*{', *'.join(sorted(VIDEO_SUFFIXES))})")
        found |= dict.fromkeys(videos, expressions)
    return _named(found)


def _leading_videos(words: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        if Path(word).suffix.lower() not in VIDEO_SUFFIXES and not os.path.isdir(word):  # no error for a long sentence
            break
        found.append(word)
    return found


def _of_table(table: Path) -> dict[Path, tuple[str, ...]]:
    """The expressions about each video of a table, whose relative paths start at its folder."""
    found: dict[Path, tuple[str, ...]] = {}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not set(COLUMNS) <= set(rows.fieldnames or ()):
                header = f"the columns {', '.join(rows.fieldnames)}" if rows.fieldnames else "no header"
                raise ConfigError(f"{table} has {header}; needed: {', '.join(COLUMNS)}")
            for row in rows:
                video, text = ((row[name] or "").strip() for name in COLUMNS)
                if not video or not text:
                    raise ConfigError(f"{table}, line {rows.line_num}: the {COLUMNS[bool(video)]} is empty")
                path = table.parent / video
                found[path] = (*found.get(path, ()), text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--csv {table} cannot be read ({error}); accepted: a UTF-8 table with the columns "
                          f"{', '.join(COLUMNS)}") from error  # fmt: skip
    if not found:
        raise ConfigError(f"{table} has no rows; write one for each video and expression")
    return found


def _named(found: dict[Path, tuple[str, ...]]) -> list[Job]:
    jobs: dict[str, Job] = {}
    for video, expressions in found.items():
        if video.suffix.lower() not in VIDEO_SUFFIXES:
            raise DatasetError(
                f"{video} is not named like a video; {nearest(video.suffix, VIDEO_SUFFIXES)}, accepted: "
                f"{', '.join(sorted(VIDEO_SUFFIXES))}"
            )
        same = sum(job.video.stem == video.stem for job in jobs.values())
        name = f"{video.stem}-{same + 1}" if same else video.stem
        jobs[name] = Job(video, expressions, name)
    return list(jobs.values())

"""Facts about the objects of a clip: what people state, and what the masks show.

A table of facts is a CSV file with the columns `clip,fid` and any of `COLUMNS`. An empty field is unknown; `-` says
that there is none. Several words are separated by semicolons. Examples of one field each:

    class    old piano
    colour   red; white
    surface  wooden; old
    look     in a red t-shirt; wearing glasses
    verb     singing; holding:2         holding:2 is done to object 2
    place    near:2; behind:3
    sound    0-4@-20; 6-10@-20..-5      seconds@decibels, also rising or falling; `silent` for none
    rhythm   90..120                    beats per minute
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from extract.annotate.exchange.exports import by_file_id, picture
from extract.annotate.records import ClipFiles, Masks, ProjectFolder, Scenes, TrackedObject, read_record, write_record
from refavs.config import nearest
from refavs.errors import DatasetError
from refavs.expressions.footage import PLACES
from refavs.expressions.footage_objects import FootageObject, Sound
from refavs.expressions.situation import Objects, Situation
from refavs.files.tables import composed, header_of, read_rows

FACTS = "facts.json"
COLUMNS = ("class", "colour", "surface", "look", "verb", "place", "sound", "rhythm")
_NONE, _SILENT = "-", "silent"
_NUMBER = r"-?\d{1,6}(?:\.\d{1,9})?"
_SPAN = re.compile(rf"({_NUMBER})-({_NUMBER})(?:@({_NUMBER})(?:\.\.({_NUMBER}))?)?")
_RANGE = re.compile(rf"({_NUMBER})(?:\.\.({_NUMBER}))?")
Told = dict[str, str]  # by column; columns that are unknown are missing
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class StatedFacts:
    """What people stated about one object."""

    fid: int
    told: Told


@dataclass(frozen=True, kw_only=True)
class ClipFacts:
    """What people stated about a clip."""

    objects: tuple[StatedFacts, ...] = field(default=())

    @property
    def told(self) -> dict[int, Told]:
        """The facts by fid."""
        return {one.fid: one.told for one in self.objects}


def clip_facts(files: ClipFiles) -> ClipFacts:
    """What was stated about a clip so far."""
    path = files.folder / FACTS
    return read_record(path, ClipFacts) if path.exists() else ClipFacts()


def state(files: ClipFiles, told: dict[int, Told]) -> None:
    """Adds facts; a newer statement replaces an older one about the same thing."""
    known = clip_facts(files).told
    merged = {fid: known.get(fid, {}) | told.get(fid, {}) for fid in sorted({*known, *told})}
    write_record(files.folder / FACTS, ClipFacts(objects=tuple(
        StatedFacts(fid=fid, told=facts) for fid, facts in merged.items()
    )))  # fmt: skip


def categories(files: ClipFiles) -> dict[int, str]:
    """What each object is, by fid: as stated, else as it was proposed."""
    told = clip_facts(files).told
    return {one.fid: told.get(one.fid, {}).get("class", one.name) for one in files.masks().objects}


def read_facts(
    path: Path, project: ProjectFolder, clip_ids: Sequence[str]
) -> tuple[dict[str, dict[int, Told]], list[str]]:
    """Reads a table of facts.

    Returns:
        The facts by clip and fid, and a line for each row or field that cannot be used.

    Raises:
        DatasetError: the file cannot be read, or no row can be used.
    """
    used = [name for name in header_of(path) if name in COLUMNS]
    problems = [f"{path.name}: column {name!r} is not used; {nearest(name, ('clip', 'fid', *COLUMNS))}"
                for name in header_of(path) if name not in ("clip", "fid", *COLUMNS)]  # fmt: skip
    known = {composed(name): clip_id for name, clip_id in by_file_id(clip_ids).items()}
    known |= {composed(clip_id): clip_id for clip_id in clip_ids}
    fids: dict[str, set[int]] = {}
    found: dict[str, dict[int, Told]] = {}
    number = 0
    for number, (clip, fid, *fields) in enumerate(read_rows(path, ("clip", "fid", *used)), start=1):
        where = f"{path.name}, row {number}"
        clip_id = known.get(composed(clip.strip()))
        if clip_id is None:
            near = nearest(clip, list(known)[:999])
            problems.append(f"{where}: there is no clip {clip!r} with masks; left out. {near}")
            continue
        every = fids.setdefault(clip_id, {one.fid for one in project.clip(clip_id).masks().objects})
        if fid.strip() not in map(str, every):
            problems.append(f"{where}: clip {clip!r} has no object {fid!r}; left out. It has {sorted(every)}")
            continue
        told = {name: text.strip() for name, text in zip(used, fields, strict=True) if text.strip()}
        good, odd = checked(told, every)
        problems += [f"{where}: {line}" for line in odd]
        found.setdefault(clip_id, {}).setdefault(int(fid), {}).update(good)
    if not found:
        first = f" ({problems[0]})" if problems else ""
        raise DatasetError(f"{path}: none of its {number} rows states facts about an object{first}; accepted: columns "
                           f"clip,fid and any of {','.join(COLUMNS)}")  # fmt: skip
    return found, problems


def checked(told: Told, fids: set[int]) -> tuple[Told, list[str]]:
    """The facts that can be used, and a line for each of the others."""
    good, odd = {}, []
    for name, text in told.items():
        try:
            _PARSERS.get(name, words)(text)
            if name in ("verb", "place"):
                for _, target in pairs(text):
                    if target is not None and target not in fids:
                        raise ValueError(f"object {target} is not one of {sorted(fids)}")
            good[name] = text
        except ValueError as error:
            odd.append(f"{name} is {text[:60]!r}; {error}; left out")
    return good, odd


def words(text: str) -> tuple[str, ...]:
    """Words separated by semicolons."""
    found = [" ".join(part.split()) for part in text.split(";")]
    if any("[" in word or "]" in word for word in found):
        raise ValueError("accepted: words without brackets")
    return tuple(word for word in found if word and word != _NONE)


def pairs(text: str) -> tuple[tuple[str, int | None], ...]:
    """Verbs and the objects that they are done to."""
    found = []
    for word in words(text):
        name, _, fid = word.partition(":")
        if fid and not (fid.strip().isascii() and fid.strip().isdigit() and len(fid) < 7):
            raise ValueError("accepted: words, each with or without the fid of another object, such as holding:2")
        found.append((name.strip(), int(fid) if fid else None))
    return tuple(found)


def placed(text: str) -> tuple[tuple[str, int], ...]:
    """Relations to other objects."""
    found = []
    for name, target in pairs(text):
        if target is None or name not in PLACES:
            raise ValueError(f"accepted: {', '.join(PLACES)}, each with the fid of another object, such as near:2")
        found.append((name, target))
    return tuple(found)


def sound(text: str) -> Sound | None:
    """When and how loudly an object sounds; None for a silent one."""
    if text in (_NONE, _SILENT):
        return None
    spans, levels = [], []
    for part in text.replace(" ", "").split(";"):
        match = _SPAN.fullmatch(part)
        if match is None:
            raise ValueError("accepted: silent, or spans in seconds with levels in dB, such as 0-4@-20;6-10@-20..-5")
        start, end = float(match[1]), float(match[2])
        if not (0 <= start < end) or (spans and start < spans[-1][1]):
            raise ValueError("accepted: spans in the order of time, each with its start before its end")
        spans.append((start, end))
        levels += [float(level) for level in (match[3], match[4] or match[3]) if level]
    first, last = (levels[0], levels[-1]) if levels else (0.0, 0.0)
    return Sound(spans=tuple(spans), gain_from=10 ** (first / 20), gain_to=10 ** (last / 20))


def rhythm(text: str) -> tuple[float, float] | None:
    """Beats per minute at start and end."""
    if text == _NONE:
        return None
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None or min(found := (float(match[1]), float(match[2] or match[1]))) <= 0:
        raise ValueError("accepted: beats per minute, such as 90, or 90..120 where it changes")
    return found


_PARSERS: dict[str, Callable[[str], object]] = {"verb": pairs, "place": placed, "sound": sound, "rhythm": rhythm}


def shown(masks: Masks) -> list[TrackedObject]:
    """The objects that show at all."""
    return [one for one in masks.objects if any(each.rle is not None for each in one.seconds)]


def situation(masks: Masks, scenes: Scenes, facts: ClipFacts) -> Situation:
    """Everything known about the objects that show in a clip, in the order of its masks."""
    objects = shown(masks)
    number = {one.fid: index for index, one in enumerate(objects)}
    told = [checked(facts.told.get(one.fid, {}), set(number))[0] for one in objects]
    return Situation(
        size=1, times=tuple(map(float, range(scenes.seconds))),
        objects=tuple(_object(one, scenes, facts, number) for one, facts in zip(objects, told, strict=True)),
        schedules=tuple(map(_schedule, told)), unknown=dict(_unknown(told)),
    )  # fmt: skip


def _object(one: TrackedObject, scenes: Scenes, told: Told, number: dict[int, int]) -> FootageObject:
    def of(name: str, parse: Callable[[str], Parsed]) -> Parsed:
        return parse(told.get(name, _NONE))

    colours = of("colour", words)
    return FootageObject(
        category=told.get("class", one.name), colour=colours[0] if len(colours) == 1 else "",
        surfaces=(*colours, *of("surface", words)), looks=of("look", words),
        verbs=tuple((verb, None if fid is None else number[fid]) for verb, fid in of("verb", pairs)),
        places=tuple((word, number[fid]) for word, fid in of("place", placed)),
        centres=tuple(_centre(picture(each.rle, scenes.height, scenes.width)) for each in one.seconds),
    )  # fmt: skip


def _centre(mask: np.ndarray) -> tuple[float, float] | None:
    if not mask.any():
        return None
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    return (float(columns.mean()) + 0.5) / width, (float(rows.mean()) + 0.5) / height


def _schedule(told: Told) -> Sound | None:
    found = sound(told.get("sound", _SILENT))
    beats = rhythm(told.get("rhythm", _NONE))
    if found is None or beats is None:
        return found
    return Sound(spans=found.spans, gain_from=found.gain_from, gain_to=found.gain_to, rhythm_from=beats[0],
                 rhythm_to=beats[1])  # fmt: skip


def _unknown(told: Sequence[Told]) -> Iterator[tuple[str, Objects]]:
    """By kind of fact, the objects without it; kinds that were stated of no object are not in use."""
    for kind in COLUMNS[1:]:
        without = frozenset(index for index, facts in enumerate(told) if kind not in facts and not (
            kind == "rhythm" and facts.get("sound") in (_NONE, _SILENT)
        ))  # fmt: skip
        if 0 < len(without) < len(told):
            yield kind, without
    levels = {index: "@" in facts["sound"] for index, facts in enumerate(told)
              if facts.get("sound", _SILENT) not in (_NONE, _SILENT)}  # fmt: skip
    if len(set(levels.values())) > 1:
        yield "level", frozenset(index for index, given in levels.items() if not given)

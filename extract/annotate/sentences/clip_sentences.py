"""The sentences of a clip: the file `expressions.json`, and the table in which people decide about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from extract.annotate.exchange.exports import file_id
from extract.annotate.records import ClipFiles, ProjectFolder, read_record, write_record
from extract.annotate.sentences.facts import categories
from refavs.data.cues import parse
from refavs.files.atomic import write_atomically
from refavs.files.tables import csv_bytes, read_rows

EXPRESSIONS, REVIEW = "expressions.json", "review.csv"
COLUMNS = ("uid", "clip", "fid", "exp", "question", "answer")
Status = Literal["accepted", "queued", "rejected"]
Sounding = Literal["own", "muted", "crossed"]
_ANSWERS: dict[str, Status] = {"yes": "accepted", "y": "accepted", "no": "rejected", "n": "rejected"}


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A sentence about a clip.

    Attributes:
        uid: as in the benchmark's table; unique.
        fid: the object that it refers to; None where it refers to none.
        text: the sentence, as a person may have put it.
        made: the sentence as the template gave it, or as a person first wrote it.
        reason: why a person must decide, or what was decided.
        template: pattern that it was made from; empty for a free sentence.
        by: whether the program or a person decided.
        sound: the sound it is about: the clip's own, none, or another clip's.
        donor: id of the clip whose sound it is, for `crossed`.
    """

    uid: str
    fid: int | None
    text: str
    made: str
    dimension: str
    grade: int
    template: str
    status: Status
    reason: str = ""
    by: Literal["program", "person"] = "program"
    sound: Sounding = "own"
    donor: str = ""

    @property
    def key(self) -> tuple[int | None, str, str]:
        """What makes two sentences of a clip the same."""
        return self.fid, self.made, self.sound


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """All sentences of a clip."""

    sentences: tuple[Sentence, ...] = ()


def clip_sentences(files: ClipFiles) -> Sequence[Sentence]:
    """The sentences of a clip so far."""
    path = files.folder / EXPRESSIONS
    return read_record(path, Sentences).sentences if path.exists() else ()


def write_sentences(files: ClipFiles, sentences: Iterable[Sentence]) -> None:
    """Replaces the sentences of a clip."""
    write_record(files.folder / EXPRESSIONS, Sentences(sentences=tuple(sentences)))


def slug(name: str) -> str:
    """An object's name as part of a uid, e.g. `hair-dryer`."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.casefold()).split()) or "object"


def null_media_id(clip_id: str, sound: Sounding) -> str:
    """Id of the copy of a clip for sentences that refer to nothing."""
    return f"null_{ {'own': 's', 'muted': 'm', 'crossed': 'c'}[sound] }-{file_id(clip_id)}"


def numbered(
    clip_id: str, names: Mapping[int, str], sentences: Sequence[Sentence], earlier: Sequence[Sentence] = ()
) -> list[Sentence]:
    """The sentences with uids: their own, the one that the same sentence had earlier, or the next free number."""
    known = {one.key: one.uid for one in earlier}
    taken = {one.uid for one in sentences} | set(known.values())
    found = []
    for one in sentences:
        uid = one.uid or known.get(one.key, "")
        if not uid:
            media = null_media_id(clip_id, one.sound) if one.fid is None else file_id(clip_id)
            start = f"{media}_{'null' if one.fid is None else slug(names[one.fid])}"
            free = (f"{start}_{number}" for number in range(1, len(taken) + 2))
            uid = next(name for name in free if name not in taken)
            taken.add(uid)
        found.append(replace(one, uid=uid))
    return found


def has_answers(path: Path) -> bool:
    """Whether a table for people has answers."""
    return path.exists() and any(answer.strip() for (answer,) in read_rows(path, ("answer",)))


def write_review(project: ProjectFolder, clip_ids: Iterable[str]) -> int:
    """Writes the queued sentences as a table for people; returns how many there are."""
    rows = []
    for clip_id in clip_ids:
        rows += [(one.uid, clip_id, "" if one.fid is None else one.fid, one.text, one.reason, "")
                 for one in clip_sentences(project.clip(clip_id)) if one.status == "queued"]  # fmt: skip
    write_atomically(project.path / REVIEW, csv_bytes(COLUMNS, rows))
    return len(rows)


def take_review(project: ProjectFolder, path: Path, clip_ids: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Takes people's answers; a changed `exp` replaces the sentence, a row without uid adds a free one.

    Returns:
        The number of rows by answer, and a line for each row that cannot be used.

    Raises:
        DatasetError: the file is no such table.
    """
    problems: list[str] = []
    counts: dict[str, int] = {"accepted": 0, "rejected": 0, "queued": 0, "added": 0}
    sentences = {clip_id: list(clip_sentences(project.clip(clip_id))) for clip_id in clip_ids}
    places = {one.uid: (clip_id, place) for clip_id, own in sentences.items() for place, one in enumerate(own)}
    changed = set()
    for number, (uid, clip_id, fid, text, _, answer) in enumerate(read_rows(path, COLUMNS), start=1):
        where, text = f"{path.name}, row {number}", " ".join(text.split())
        try:
            if uid:
                if uid not in places:
                    raise ValueError(f"there is no sentence {uid!r}")
                clip_id, place = places[uid]
                found = _answered(sentences[clip_id][place], text, answer)
                sentences[clip_id][place] = found
                counts[found.status] += 1
            else:
                if clip_id not in sentences:
                    raise ValueError(f"there is no clip {clip_id!r} with masks")
                sentences[clip_id].append(_free(project.clip(clip_id), fid, text))
                counts["added"] += 1
            changed.add(clip_id)
        except ValueError as error:
            problems.append(f"{where}: {error}; left out")
    for clip_id in sorted(changed):
        files = project.clip(clip_id)
        write_sentences(files, numbered(clip_id, categories(files), sentences[clip_id]))
    return counts, problems


def _answered(one: Sentence, text: str, answer: str) -> Sentence:
    answer = answer.strip().casefold()
    if not answer:
        return one
    if answer not in _ANSWERS:
        raise ValueError(f"answer is {answer[:20]!r}; accepted: yes, no or nothing")
    return replace(one, status=_ANSWERS[answer], by="person", text=text or one.text)


def _free(files: ClipFiles, fid: str, text: str) -> Sentence:
    fids = [one.fid for one in files.masks().objects]
    if fid and fid not in map(str, fids):
        raise ValueError(f"the clip has no object {fid!r}; it has {', '.join(map(str, fids))}")
    if not text:
        raise ValueError("it has no sentence")
    cues = parse(text)
    return Sentence(
        uid="", fid=int(fid) if fid else None, text=text, made=text, dimension=cues.dimension or "",
        grade=cues.grade or 0, template="", status="accepted", by="person", reason="free sentence",
    )  # fmt: skip

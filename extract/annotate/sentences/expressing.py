"""How sentences are made: everything that may be said, a mix like the real benchmark's, and sentences about nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from extract.annotate.records import ProjectFolder
from extract.annotate.sentences.clip_sentences import (
    Sentence,
    Sounding,
    clip_sentences,
    numbered,
    write_sentences,
)
from extract.annotate.sentences.facts import COLUMNS, Told, checked, clip_facts, shown, situation, state
from refavs.config import nearest
from refavs.errors import ConfigError
from refavs.expressions.footage import FOOTAGE
from refavs.expressions.situation import Situation
from refavs.expressions.templates import Expression, Pattern, expressions, unknown_facts
from refavs.files.tables import read_rows
from refavs.terminal.printing import say

# Shares of the dimensions among the sentences of the real benchmark, as `refavs.data.cues` reads them.
SHARES = {"acoustic": 0.651, "acoustic+temporal": 0.155, "semantic": 0.130, "spatial": 0.060, "spatial+temporal": 0.004}
_NULLS_AT_ONCE = 2
_SUBJECTIVE = frozenset({
    "old", "young", "big", "small", "large", "little", "tall", "short", "beautiful", "pretty", "nice", "ugly", "cute",
    "bright", "dark",
})  # fmt: skip
Grades = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A clip and what is known of it.

    Attributes:
        fids: of its objects, in the order of the situation.
        has_sound: whether the clip has a sound track.
    """

    clip_id: str
    situation: Situation
    fids: tuple[int, ...]
    has_sound: bool

    @property
    def categories(self) -> frozenset[str]:
        """What it shows."""
        return frozenset(item.category for item in self.situation.objects)


def mix_lines(sentences: Sequence[Sentence]) -> list[str]:
    """The mix of dimensions beside the real benchmark's, for people."""
    about = [one for one in sentences if one.fid is not None and one.status != "rejected"]
    counts = Counter(one.dimension for one in about)
    total = max(1, len(about))
    lines = [f"{len(about)} sentences about objects, {sum(one.fid is None for one in sentences)} about nothing"]
    for dimension, share in SHARES.items():
        count = counts[dimension]
        lines.append(f"  {dimension:<18}{count:>6}{count / total:>8.1%}   (real benchmark {share:.1%})")
    return lines


def read_grades(path: Path) -> dict[str, int]:
    """Grades by pattern of a template.

    Raises:
        ConfigError: a template is unknown or a grade is not 1 to 5.
        DatasetError: the file cannot be read.
    """
    known = {template.pattern for template in FOOTAGE}
    found = {}
    for pattern, grade in read_rows(path, ("template", "grade")):
        if pattern not in known:
            raise ConfigError(f"{path}: there is no template {pattern!r}; {nearest(pattern, known)}")
        if grade not in ("1", "2", "3", "4", "5"):
            raise ConfigError(f"{path}: the grade of {pattern!r} is {grade!r}; accepted: 1 to 5")
        found[pattern] = int(grade)
    return found


def ask(project: ProjectFolder, clip_ids: Iterable[str], answer: Callable[[str], str] = input) -> None:
    """Asks for the facts that are missing of each object; what was answered is kept at once.

    Raises:
        ConfigError: nobody answers.
    """
    say("Enter: unknown. -: none. Several are separated by semicolons. Ctrl-C stops; answers given so far are kept.")
    for clip_id in clip_ids:
        files = project.clip(clip_id)
        masks = files.masks()
        fids = {one.fid for one in masks.objects}
        for one in masks.objects:
            told: Told = {}
            for column in COLUMNS:
                if column in clip_facts(files).told.get(one.fid, {}):
                    continue
                while True:
                    text = _reply(answer, f"{clip_id}, object {one.fid} ({one.name}), {column}: ")
                    good, odd = checked({column: text} if text else {}, fids)
                    if not odd:
                        break
                    say(f"  {odd[0]}")
                told |= good
                if good:
                    state(files, {one.fid: good})


def _reply(answer: Callable[[str], str], question: str) -> str:
    try:
        return answer(question).strip()
    except EOFError:
        raise ConfigError("--ask has nobody to answer: standard input has ended; run it on a terminal, or give "
                          "--facts; answers so far are kept") from None  # fmt: skip


def express(
    project: ProjectFolder, clip_ids: Sequence[str], per_clip: int, nulls: float, grades: Grades
) -> list[Sentence]:
    """Makes the sentences of some clips and writes them; those that people decided about stay.

    Returns:
        All sentences of these clips.
    """
    known = [_known(project, clip_id) for clip_id in clip_ids]
    decided = {clip_id: [one for one in clip_sentences(project.clip(clip_id)) if one.by == "person"]
               for clip_id in clip_ids}  # fmt: skip
    mix = Counter(one.dimension for own in decided.values() for one in own if one.fid is not None)
    made: dict[str, list[Expression]] = {}
    used: Counter[str] = Counter()
    for clip in known:
        wanted = per_clip - sum(one.fid is not None for one in decided[clip.clip_id])
        texts = {(one.fid, one.made) for one in decided[clip.clip_id]}
        offered = [one for one in _offered(clip) if (clip.fids[one.target], one.text) not in texts]
        made[clip.clip_id] = _mixed(offered, wanted, mix, used)
    about_nothing = _nulls(known, made, nulls, grades)
    every = []
    for clip in known:
        found = decided[clip.clip_id] + [_sentence(clip, one, grades) for one in made[clip.clip_id]]
        found += about_nothing.get(clip.clip_id, [])
        unique = {one.key: one for one in reversed(found)}
        names = {fid: item.category for fid, item in zip(clip.fids, clip.situation.objects, strict=True)}
        earlier = clip_sentences(project.clip(clip.clip_id))
        ordered = numbered(clip.clip_id, names, list(reversed(unique.values())), earlier)
        write_sentences(project.clip(clip.clip_id), ordered)
        every += ordered
    return every


def _known(project: ProjectFolder, clip_id: str) -> Known:
    files = project.clip(clip_id)
    masks = files.masks()
    return Known(clip_id=clip_id, situation=situation(masks, files.scenes(), clip_facts(files)),
                 fids=tuple(one.fid for one in shown(masks)), has_sound=files.sound.exists())  # fmt: skip


def _offered(clip: Known) -> list[Expression]:
    """Everything that may be said; a clip of one object has nothing to tell apart but its category."""
    if len(clip.situation.objects) != 1:
        return expressions(clip.situation, FOOTAGE)
    template = FOOTAGE[0]
    (filling,) = template.fillings(clip.situation)
    return [Expression(text=template.text(filling), template=template, filling=filling, target=0, without={})]


def _mixed(offered: Sequence[Expression], wanted: int, mix: Counter[str], used: Counter[str]) -> list[Expression]:
    """Picks sentences so that the dimensions come near the real benchmark's; sure ones first, rare templates first."""
    left, picked = list(offered), []
    while left and len(picked) < wanted:
        sure = [one for one in left if not doubts(one)] or left
        total = sum(mix.values()) + 1
        dimension = max({one.template.dimension for one in sure},
                        key=lambda name: (SHARES.get(name, 0) * total - mix[name], name))  # fmt: skip
        targets = Counter(one.target for one in picked)
        one = min((one for one in sure if one.template.dimension == dimension),
                  key=lambda one: (targets[one.target], used[one.template.pattern]))  # fmt: skip
        left.remove(one)
        picked.append(one)
        mix[dimension] += 1
        used[one.template.pattern] += 1
    return picked


def doubts(one: Expression) -> str:
    """Why a person must decide; empty if the program can."""
    reasons = [f"{kind} of some objects is unknown; does it fit only this one?" for kind in one.unsure]
    subjective = sorted(_SUBJECTIVE & set(one.text.casefold().rstrip(".").split()))
    reasons += [f"{word!r} is a matter of taste; is it clear?" for word in subjective]
    if not one.without:
        reasons.append("it is the only object of the clip; is there nothing else of its kind?")
    return " ".join(reasons)


def _sentence(clip: Known, one: Expression, grades: Grades) -> Sentence:
    reason = doubts(one)
    return Sentence(
        uid="", fid=clip.fids[one.target], text=one.text, made=one.text, dimension=one.template.dimension,
        grade=grades.get(one.template.pattern, one.template.grade), template=one.template.pattern,
        status="queued" if reason else "accepted", reason=reason,
    )  # fmt: skip


# Sentences that refer to nothing.


def _nulls(
    known: Sequence[Known], made: Mapping[str, Sequence[Expression]], share: float, grades: Grades
) -> dict[str, list[Sentence]]:
    """For some clips, sentences that nothing in them fits: by turns without sound, with another's, of another clip."""
    found: dict[str, list[Sentence]] = {}
    about = nothing = turn = 0
    for place, clip in enumerate(known):
        about += len(made[clip.clip_id])
        if nothing + 1 > share * (about + nothing + 1):
            continue
        others = [*known[place + 1 :], *known[:place]]
        kinds = (_muted, _crossed, _foreign)
        for step in range(len(kinds)):
            sentences = kinds[(turn + step) % len(kinds)](clip, others, made, grades)[:_NULLS_AT_ONCE]
            if sentences:
                found[clip.clip_id] = sentences
                nothing += len(sentences)
                turn += step + 1
                break
    return found


_Nulls = Callable[[Known, Sequence[Known], Mapping[str, Sequence[Expression]], Grades], list[Sentence]]


def _muted(
    clip: Known, others: Sequence[Known], made: Mapping[str, Sequence[Expression]], grades: Grades
) -> list[Sentence]:
    """What is true with the clip's sound, without it."""
    if not clip.has_sound:
        return []
    question = "the clip without its sound; does it refer to nothing?"
    return [_null(one.text, one.template, grades, question, sound="muted") for one in _heard(made[clip.clip_id])]


def _crossed(
    clip: Known, others: Sequence[Known], made: Mapping[str, Sequence[Expression]], grades: Grades
) -> list[Sentence]:
    """What is true with the clip's sound, with that of a clip that shows nothing of the same kind."""
    donor = next((one for one in others if one.has_sound and one.situation.sounding
                  and not one.categories & clip.categories), None)  # fmt: skip
    if donor is None:
        return []
    question = f"the clip with the sound of {donor.clip_id}; does it refer to nothing?"
    return [_null(one.text, one.template, grades, question, sound="crossed", donor=donor.clip_id)
            for one in _heard(made[clip.clip_id])]  # fmt: skip


def _foreign(
    clip: Known, others: Sequence[Known], made: Mapping[str, Sequence[Expression]], grades: Grades
) -> list[Sentence]:
    """Sentences of other clips that fit no object of this one."""
    question = "a sentence of another clip; does it refer to nothing here?"
    found = {}
    for other in others:
        for one in made[other.clip_id]:
            meaning = one.template.meaning(clip.situation, one.filling)
            facts_known = not unknown_facts(one.template, one.filling, clip.situation)
            if meaning is not None and not meaning.referents and facts_known and not doubts(one):
                found.setdefault(one.text, _null(one.text, one.template, grades, question))
        if len(found) >= _NULLS_AT_ONCE:
            break
    return list(found.values())


def _heard(sentences: Sequence[Expression]) -> list[Expression]:
    return [one for one in sentences if "acoustic" in one.template.dimension and not doubts(one)]


def _null(
    text: str, template: Pattern, grades: Grades, question: str, sound: Sounding = "own", donor: str = ""
) -> Sentence:
    return Sentence(
        uid="", fid=None, text=text, made=text, dimension=template.dimension, template=template.pattern,
        grade=grades.get(template.pattern, template.grade), status="queued", reason=question, sound=sound, donor=donor,
    )  # fmt: skip

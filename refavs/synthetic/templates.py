"""Expressions of the synthetic benchmark: the paper's templates, filled in so that each refers to exactly one object.

Templates, placeholders and grades: Ref-AVS (arXiv 2407.10957v1), supplement Fig. 4 and Table 1. Every sentence is
checked against the paper's three rules (uniqueness, necessity, clarity).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from refavs.synthetic.scene import COLOURS, DURATION_S, SceneObject
from refavs.synthetic.voices import Schedule

_MARGIN = 1 / 12  # of the frame's side: a gap this large is clearly left (right, ...), half of it clearly is not
_CLEAR_RATIO = 2.5  # smallest ratio of gains that is clearly louder
_CLEAR_S = 1.5  # smallest difference that is clearly before, or longer

Objects = frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is seen and heard in one clip; one schedule per object, None for a silent one."""

    size: int
    objects: tuple[SceneObject, ...]
    schedules: tuple[Schedule | None, ...]

    @property
    def everything(self) -> Objects:
        return frozenset(range(len(self.objects)))

    @property
    def sounding(self) -> Objects:
        return frozenset(index for index, schedule in enumerate(self.schedules) if schedule is not None)

    def where(self, holds: Callable[[SceneObject], bool]) -> Objects:
        """The objects for which a condition holds."""
        return frozenset(index for index, item in enumerate(self.objects) if holds(item))

    def heard(self, index: int) -> Schedule:
        """The schedule of a sounding object."""
        schedule = self.schedules[index]
        assert schedule is not None
        return schedule


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a sentence picks out in one situation.

    Attributes:
        referents: the objects it fits.
        without: for each of its cues, the objects it would fit without that cue.
    """

    referents: Objects
    without: dict[str, Objects]


Reading = Callable[[Situation, str, str], Meaning | None]  # (situation, word, noun); None if unclear
Relation = Callable[[Situation, int, int], bool | None]  # of the first to the second object; None if unclear


@dataclass(frozen=True)
class Template:
    """A sentence with placeholders.

    Attributes:
        pattern: the sentence; `[object]` is a category, and at most one other placeholder is one of `words`.
        grade: difficulty 1-5 (supplement, Fig. 4).
        dimension: the cues needed, in the terms of the supplement's Table 2.
        reading: what a filled-in sentence refers to.
    """

    pattern: str
    grade: int
    dimension: str
    reading: Reading
    words: tuple[str, ...] = ("",)

    def fill(self, word: str, noun: str) -> str:
        """The sentence for one word and one category."""
        text = self.pattern.replace("[object]", noun)
        start, end = text.find("["), text.find("]")
        return text if start < 0 else text[:start] + word + text[end + 1 :]

    def choices(self, categories: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Every (word, noun) that can fill the template in a clip with these categories."""
        nouns = categories if "[object]" in self.pattern else ("",)
        return ((word, noun) for word in self.words for noun in nouns)


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A sentence that refers to exactly one object of a clip (`target`) and needs each of its cues for that."""

    text: str
    template: Template
    target: int
    without: dict[str, Objects]


def expressions(situation: Situation) -> list[Expression]:
    """Every unique, necessary and clear expression about a clip, in a fixed order."""
    found = []
    categories = [item.category for item in situation.objects]
    for template in TEMPLATES:
        for word, noun in template.choices(categories):
            meaning = template.reading(situation, word, noun)
            if meaning is None or len(meaning.referents) != 1:
                continue
            if all(len(rest) > 1 for rest in meaning.without.values()):
                (target,) = meaning.referents
                found.append(
                    Expression(
                        text=template.fill(word, noun), template=template, target=target, without=meaning.without
                    )
                )
    return found


def sentences(template: Template, categories: Sequence[str]) -> list[str]:
    """Every sentence of a template that names these categories only, whether true or not."""
    return [template.fill(word, noun) for word, noun in template.choices(categories)]


# Relations between two objects.


def _towards(axis: int, sign: int) -> Relation:
    def relation(situation: Situation, first: int, second: int) -> bool | None:
        one, other = situation.objects[first], situation.objects[second]
        gaps = [sign * (other.centre(t)[axis] - one.centre(t)[axis]) for t in (0.0, DURATION_S)]  # paths are straight
        if min(gaps) >= _MARGIN * situation.size:
            return True
        return False if max(gaps) <= _MARGIN / 2 * situation.size else None

    return relation


SPATIAL: dict[str, Relation] = {
    "on the left of": _towards(0, 1),
    "on the right of": _towards(0, -1),
    "above": _towards(1, 1),
    "beneath": _towards(1, -1),
}


def _louder(situation: Situation, first: int, second: int) -> bool | None:
    one, other = situation.heard(first), situation.heard(second)
    if one.gain_from != one.gain_to or other.gain_from != other.gain_to:
        return None
    ratio = one.gain_from / other.gain_from
    return ratio > 1 if max(ratio, 1 / ratio) >= _CLEAR_RATIO else None


def _longer(situation: Situation, first: int, second: int) -> bool | None:
    return _clearly(situation.heard(first).duration_s - situation.heard(second).duration_s)


def _sounds_before(situation: Situation, first: int, second: int) -> bool | None:
    return _clearly(situation.heard(second).on_s - situation.heard(first).on_s)


def _appears_before(situation: Situation, first: int, second: int) -> bool | None:
    return _clearly(situation.objects[second].visible_from_s - situation.objects[first].visible_from_s)


def _clearly(difference_s: float) -> bool | None:
    return difference_s > 0 if abs(difference_s) >= _CLEAR_S or difference_s == 0 else None


def _reverse(relation: Relation) -> Relation:
    return lambda situation, first, second: relation(situation, second, first)


def _related(situation: Situation, relation: Relation, anchor: int, among: Objects) -> Objects | None:
    """The given objects that stand in a relation to the anchor; None if the relation is unclear for one of them."""
    answers = {index: relation(situation, index, anchor) for index in sorted(among - {anchor})}
    return None if None in answers.values() else frozenset(index for index, holds in answers.items() if holds)


# Readings: what the sentences of a template refer to.


def _noun(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(
        referents=situation.where(lambda item: item.category == noun), without={"category": situation.everything}
    )


def _colour(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(
        referents=situation.where(lambda item: item.colour == word), without={"colour": situation.everything}
    )


def _anchor(situation: Situation, noun: str) -> int:
    (index,) = situation.where(lambda item: item.category == noun)
    return index


def _spatial(situation: Situation, word: str, noun: str) -> Meaning | None:
    if any(not item.visible(0.0) for item in situation.objects):
        return None
    everything, anchor = situation.everything, _anchor(situation, noun)
    placed = {index: _related(situation, SPATIAL[word], index, everything) for index in sorted(everything)}
    referents = placed[anchor]
    if referents is None:
        return None
    anywhere = frozenset().union(*(found or () for found in placed.values()))
    return Meaning(referents=referents, without={"place": everything - {anchor}, "category": anywhere})


def _sounding(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(referents=situation.sounding, without={"sound": situation.everything})


def _always(situation: Situation, word: str, noun: str) -> Meaning | None:
    steady = [index for index in situation.sounding if situation.heard(index).duration_s == DURATION_S]
    return Meaning(
        referents=frozenset(steady), without={"time": situation.sounding, "sound": situation.everything}
    )


def _changing(situation: Situation, word: str, noun: str) -> Meaning | None:
    sign = 1 if word == "louder" else -1
    moving = {i: sign * (situation.heard(i).gain_to - situation.heard(i).gain_from) for i in situation.sounding}
    return Meaning(
        referents=frozenset(index for index, change in moving.items() if change > 0),
        without={"time": situation.sounding, "sound": situation.everything},
    )


def _extreme(relations: dict[str, Relation], heard: bool) -> Reading:
    """The one object that stands in a relation to all others (if `heard`: to all other sounding ones)."""

    def reading(situation: Situation, word: str, noun: str) -> Meaning | None:
        among = situation.sounding if heard else situation.everything
        beaten = {index: _related(situation, _reverse(relations[word]), index, among) for index in sorted(among)}
        if None in beaten.values():
            return None
        referents = frozenset(index for index, others in beaten.items() if others == among - {index})
        without = {"comparison": among} | ({"sound": situation.everything} if heard else {})
        return Meaning(referents=referents, without=without)

    return reading


def _compared(relations: dict[str, Relation], heard: bool) -> Reading:
    """The one object that stands in a relation to a named one, out of at least two: else sight and text suffice."""

    def reading(situation: Situation, word: str, noun: str) -> Meaning | None:
        among, anchor = situation.sounding if heard else situation.everything, _anchor(situation, noun)
        referents = _related(situation, relations[word], anchor, among) if anchor in among else None
        if referents is None:
            return None
        cue = "sound" if heard else "time"
        return Meaning(referents=referents, without={"comparison": among, cue: situation.everything - {anchor}})

    return reading


_VOLUME = {"louder": _louder, "lower": _reverse(_louder)}
_VOLUME_SUP = {"loudest": _louder, "lowest": _reverse(_louder)}
_DURATION = {"longer": _longer, "shorter": _reverse(_longer)}
_DURATION_SUP = {"longest": _longer, "shortest": _reverse(_longer)}
_SOUND_TIME = {"first": _sounds_before, "last": _reverse(_sounds_before)}
_SOUND_SEQUENCE = {"before": _sounds_before, "after": _reverse(_sounds_before)}
_SIGHT_TIME = {"first": _appears_before, "last": _reverse(_appears_before)}
_SIGHT_SEQUENCE = {"before": _appears_before, "after": _reverse(_appears_before)}


def _entire(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(referents=situation.where(lambda item: item.visible(0.0)), without={"time": situation.everything})


# Differs from Fig. 4: the subject is "object" wherever its category would identify it (categories do not repeat).
# "The object [spatial] the sounding object" is left out: if unique, it is always the outermost object.
TEMPLATES: tuple[Template, ...] = (
    Template("The [object].", 1, "semantic", _noun),
    Template("The [color] object.", 1, "semantic", _colour, tuple(COLOURS)),
    Template("The object [spatial] the [object].", 1, "spatial", _spatial, tuple(SPATIAL)),
    Template("The sounding object.", 2, "acoustic", _sounding),
    Template(
        "The object making the [volume sup] sound.", 4, "acoustic", _extreme(_VOLUME_SUP, True), tuple(_VOLUME_SUP)
    ),
    Template(
        "The object making [volume] sound than the [object].", 4, "acoustic", _compared(_VOLUME, True), tuple(_VOLUME)
    ),
    Template(
        "The object volume is [volume] over the time.", 5, "acoustic+temporal", _changing, ("louder", "lower")
    ),
    Template(
        "The [time] object to make a sound.", 5, "acoustic+temporal", _extreme(_SOUND_TIME, True), tuple(_SOUND_TIME)
    ),
    Template(
        "The object making a sound [sequence] the [object].", 5, "acoustic+temporal",
        _compared(_SOUND_SEQUENCE, True), tuple(_SOUND_SEQUENCE),
    ),
    Template("The object that keeps making sound at all times.", 5, "acoustic+temporal", _always),
    Template(
        "The object making [duration] sound duration than the [object].", 5, "acoustic+temporal",
        _compared(_DURATION, True), tuple(_DURATION),
    ),
    Template(
        "The object making the [duration sup] sound duration.", 5, "acoustic+temporal",
        _extreme(_DURATION_SUP, True), tuple(_DURATION_SUP),
    ),
    Template("The object appearing through the entire video.", 1, "spatial+temporal", _entire),
    Template(
        "The [time] object appearing in the video.", 1, "spatial+temporal",
        _extreme(_SIGHT_TIME, False), tuple(_SIGHT_TIME),
    ),
    Template(
        "The object appearing [sequence] the [object].", 2, "spatial+temporal",
        _compared(_SIGHT_SEQUENCE, False), tuple(_SIGHT_SEQUENCE),
    ),
)

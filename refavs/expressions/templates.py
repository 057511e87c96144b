"""The paper's templates about an "object" of any category, filled in so that each refers to exactly one object.

Templates, placeholders and grades: Ref-AVS (arXiv 2407.10957v1), supplement Fig. 4 and Table 1. Every sentence is
checked against the paper's three rules (uniqueness, necessity, clarity).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from refavs.expressions.situation import (
    SPATIAL,
    Objects,
    Relation,
    Situation,
    appears_before,
    change_of_level,
    foremost,
    longer,
    louder,
    related,
    reverse,
    sounds_before,
)

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")


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
Filling = tuple[str, ...]


@runtime_checkable
class Pattern(Protocol):
    """A kind of sentence.

    Attributes:
        pattern: the sentence with placeholders in brackets.
        grade: difficulty 1-5 (supplement, Fig. 4).
        dimension: the cues needed, in the terms of the supplement's Table 2.
    """

    pattern: str
    grade: int
    dimension: str

    def fillings(self, situation: Situation) -> Iterable[Filling]:
        """All words that may fill it in a situation."""
        ...

    def text(self, filling: Filling) -> str:
        """The sentence."""
        ...

    def meaning(self, situation: Situation, filling: Filling) -> Meaning | None:
        """What the sentence picks out; None if that is unclear."""
        ...

    def facts(self, filling: Filling) -> tuple[str, ...]:
        """Kinds of facts stated by people that decide what the sentence picks out, beside category and sound."""
        ...


@dataclass(frozen=True)
class Template(Pattern):
    """A sentence about "the object".

    Attributes:
        pattern: `[object]` is a category, and at most one other placeholder is one of `words`.
        reading: what a filled-in sentence refers to.
        stated: kinds of facts that it needs.
    """

    pattern: str
    grade: int
    dimension: str
    reading: Reading
    words: tuple[str, ...] = ("",)
    stated: tuple[str, ...] = ()

    def text(self, filling: Filling) -> str:
        """The sentence for one word and one category."""
        word, noun = filling
        text = self.pattern.replace("[object]", noun)
        start, end = text.find("["), text.find("]")
        return text if start < 0 else text[:start] + word + text[end + 1 :]

    def choices(self, categories: Iterable[str]) -> Iterator[Filling]:
        """Every (word, noun) that can fill the template in a clip with these categories."""
        nouns = categories if "[object]" in self.pattern else ("",)
        return ((word, noun) for word in self.words for noun in nouns)

    def fillings(self, situation: Situation) -> Iterator[Filling]:
        """Those with categories of the situation."""
        return self.choices(dict.fromkeys(item.category for item in situation.objects))

    def meaning(self, situation: Situation, filling: Filling) -> Meaning | None:
        """What the sentence picks out."""
        word, noun = filling
        return self.reading(situation, word, noun)

    def facts(self, filling: Filling) -> tuple[str, ...]:
        """The same for all words."""
        return self.stated


@dataclass(frozen=True, kw_only=True)
class Expression:
    """A sentence that refers to exactly one object of a clip (`target`) and needs each of its cues for that.

    Attributes:
        unsure: kinds of facts that are not known of every object, which the sentence might therefore fit as well.
    """

    text: str
    template: Pattern
    filling: Filling
    target: int
    without: dict[str, Objects]
    unsure: tuple[str, ...] = ()


def expressions(situation: Situation, templates: Sequence[Pattern] | None = None) -> list[Expression]:
    """Every unique, necessary and clear expression about a clip, in a fixed order."""
    found = []
    for template in TEMPLATES if templates is None else templates:
        for filling in template.fillings(situation):
            meaning = template.meaning(situation, filling)
            if meaning is None or len(meaning.referents) != 1:
                continue
            if all(len(rest) > 1 for rest in meaning.without.values()):
                (target,) = meaning.referents
                found.append(Expression(
                    text=template.text(filling), template=template, filling=filling, target=target,
                    without=meaning.without, unsure=unknown_facts(template, filling, situation),
                ))  # fmt: skip
    return found


def unknown_facts(template: Pattern, filling: Filling, situation: Situation) -> tuple[str, ...]:
    """Kinds of facts that a sentence needs and that are not known of every object."""
    facts = (*template.facts(filling), *(("sound",) if "acoustic" in template.dimension else ()))
    return tuple(kind for kind in facts if situation.unknown.get(kind))


def sentences(template: Template, categories: Sequence[str]) -> list[str]:
    """Every sentence of a template that names these categories only, whether true or not."""
    return [template.text(filling) for filling in template.choices(categories)]


# Readings: what the sentences of a template refer to.


def _noun(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(referents=situation.of(noun), without={"category": situation.everything})


def _colour(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(
        referents=situation.where(lambda item: item.colour == word), without={"colour": situation.everything}
    )


NOTHING = Meaning(referents=frozenset(), without={})


def _about(noun: str, reading: Callable[[Situation, int], Meaning | None], situation: Situation) -> Meaning | None:
    """A comparison with the only object of a category; unclear with several, and nothing fits without one."""
    anchors = sorted(situation.of(noun))
    if not anchors:
        return NOTHING
    return reading(situation, anchors[0]) if len(anchors) == 1 else None


def _spatial(situation: Situation, word: str, noun: str) -> Meaning | None:
    def reading(situation: Situation, anchor: int) -> Meaning | None:
        everything = situation.everything
        placed = {index: related(situation, SPATIAL[word], index, everything) for index in sorted(everything)}
        referents = placed[anchor]
        if referents is None:
            return None
        anywhere = frozenset().union(*(found or () for found in placed.values()))
        return Meaning(referents=referents, without={"place": everything - {anchor}, "category": anywhere})

    if any(not item.visible(0.0) for item in situation.objects):
        return None
    return _about(noun, reading, situation)


def _sounding(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(referents=situation.sounding, without={"sound": situation.everything})


def _always(situation: Situation, word: str, noun: str) -> Meaning | None:
    return Meaning(
        referents=frozenset(index for index in situation.sounding if situation.throughout(index)),
        without={"time": situation.sounding, "sound": situation.everything},
    )


def changing(change: Callable[[Situation, int], int | None]) -> Reading:
    """The one sounding object that something rises for, or falls for (`louder`, `faster` mean rising)."""

    def reading(situation: Situation, word: str, noun: str) -> Meaning | None:
        sign = 1 if word in ("louder", "faster") else -1
        moving = {index: change(situation, index) for index in situation.sounding}
        if None in moving.values():
            return None
        return Meaning(
            referents=frozenset(index for index, found in moving.items() if found == sign),
            without={"time": situation.sounding, "sound": situation.everything},
        )

    return reading


def extreme(relations: dict[str, Relation], heard: bool) -> Reading:
    """The one object that stands in a relation to all others (if `heard`: to all other sounding ones)."""

    def reading(situation: Situation, word: str, noun: str) -> Meaning | None:
        among = situation.sounding if heard else situation.everything
        referents = foremost(situation, relations[word], among)
        without = {"comparison": among} | ({"sound": situation.everything} if heard else {})
        return None if referents is None else Meaning(referents=referents, without=without)

    return reading


def compared(relations: dict[str, Relation], heard: bool) -> Reading:
    """The one object that stands in a relation to a named one, out of at least two: else sight and text suffice."""

    def reading(situation: Situation, word: str, noun: str) -> Meaning | None:
        def against(situation: Situation, anchor: int) -> Meaning | None:
            among = situation.sounding if heard else situation.everything
            if anchor not in among:
                return NOTHING
            referents = related(situation, relations[word], anchor, among)
            if referents is None:
                return None
            cue = "sound" if heard else "time"
            return Meaning(referents=referents, without={"comparison": among, cue: situation.everything - {anchor}})

        return _about(noun, against, situation)

    return reading


VOLUME = {"louder": louder, "lower": reverse(louder)}
VOLUME_SUP = {"loudest": louder, "lowest": reverse(louder)}
DURATION = {"longer": longer, "shorter": reverse(longer)}
DURATION_SUP = {"longest": longer, "shortest": reverse(longer)}
SOUND_TIME = {"first": sounds_before, "last": reverse(sounds_before)}
SOUND_SEQUENCE = {"before": sounds_before, "after": reverse(sounds_before)}
SIGHT_TIME = {"first": appears_before, "last": reverse(appears_before)}
SIGHT_SEQUENCE = {"before": appears_before, "after": reverse(appears_before)}


def _entire(situation: Situation, word: str, noun: str) -> Meaning | None:
    staying = frozenset(filter(situation.stays, situation.everything))
    return Meaning(referents=staying, without={"time": situation.everything})


# Differs from Fig. 4: the subject is "object" wherever its category would identify it (categories do not repeat).
# "The object [spatial] the sounding object" is left out: if unique, it is always the outermost object.
TEMPLATES: tuple[Template, ...] = (
    Template("The [object].", 1, "semantic", _noun),
    Template("The [color] object.", 1, "semantic", _colour, COLOURS, ("colour",)),
    Template("The object [spatial] the [object].", 1, "spatial", _spatial, tuple(SPATIAL)),
    Template("The sounding object.", 2, "acoustic", _sounding),
    Template(
        "The object making the [volume sup] sound.", 4, "acoustic", extreme(VOLUME_SUP, True), tuple(VOLUME_SUP),
        ("level",),
    ),
    Template(
        "The object making [volume] sound than the [object].", 4, "acoustic", compared(VOLUME, True), tuple(VOLUME),
        ("level",),
    ),
    Template(
        "The object volume is [volume] over the time.", 5, "acoustic+temporal",
        changing(lambda situation, index: change_of_level(situation.heard(index))), ("louder", "lower"),
        ("level",),
    ),
    Template(
        "The [time] object to make a sound.", 5, "acoustic+temporal", extreme(SOUND_TIME, True), tuple(SOUND_TIME)
    ),
    Template(
        "The object making a sound [sequence] the [object].", 5, "acoustic+temporal",
        compared(SOUND_SEQUENCE, True), tuple(SOUND_SEQUENCE),
    ),
    Template("The object that keeps making sound at all times.", 5, "acoustic+temporal", _always),
    Template(
        "The object making [duration] sound duration than the [object].", 5, "acoustic+temporal",
        compared(DURATION, True), tuple(DURATION),
    ),
    Template(
        "The object making the [duration sup] sound duration.", 5, "acoustic+temporal",
        extreme(DURATION_SUP, True), tuple(DURATION_SUP),
    ),
    Template("The object appearing through the entire video.", 1, "spatial+temporal", _entire),
    Template(
        "The [time] object appearing in the video.", 1, "spatial+temporal",
        extreme(SIGHT_TIME, False), tuple(SIGHT_TIME),
    ),
    Template(
        "The object appearing [sequence] the [object].", 2, "spatial+temporal",
        compared(SIGHT_SEQUENCE, False), tuple(SIGHT_SEQUENCE),
    ),
)

"""The paper's templates for real footage, whose objects may be of the same category.

A sentence names the category of its subject, and each further cue must narrow it down: "the sounding piano" needs a
second piano (supplement A.3). Facts that a program cannot see, such as verbs and looks, are stated by people.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from refavs.expressions.footage_objects import FootageObject, Sound
from refavs.expressions.situation import (
    SPATIAL,
    Objects,
    Relation,
    Situation,
    clearly_later,
    clearly_more,
    foremost,
    related,
    reverse,
)
from refavs.expressions.templates import (
    DURATION,
    SIGHT_SEQUENCE,
    SIGHT_TIME,
    SOUND_TIME,
    TEMPLATES,
    VOLUME,
    Filling,
    Meaning,
    Pattern,
    Template,
    changing,
    compared,
    extreme,
)

PERSONS = frozenset({"man", "woman", "boy", "girl", "baby", "child", "person", "toddler", "lady", "gentleman"})
_CLEAR_RHYTHM = 1.3  # smallest ratio of beats per minute that is clearly faster


def _footage(situation: Situation, index: int) -> FootageObject:
    found = situation.objects[index]
    assert isinstance(found, FootageObject)
    return found


def _sound(situation: Situation, index: int) -> Sound:
    found = situation.heard(index)
    assert isinstance(found, Sound)
    return found


# Relations that only footage has.


def _faster(situation: Situation, first: int, second: int) -> bool | None:
    one, other = (_sound(situation, index) for index in (first, second))
    if one.rhythm_from is None or other.rhythm_from is None or one.rhythm_from != one.rhythm_to:
        return None
    return None if other.rhythm_from != other.rhythm_to else clearly_more(one.rhythm_from / other.rhythm_from,
                                                                           _CLEAR_RHYTHM)  # fmt: skip


def _change_of_rhythm(situation: Situation, index: int) -> int | None:
    sound = _sound(situation, index)
    if sound.rhythm_from is None or sound.rhythm_to is None or sound.rhythm_from == sound.rhythm_to:
        return 0
    more = clearly_more(sound.rhythm_to / sound.rhythm_from, _CLEAR_RHYTHM)
    return None if more is None else 1 if more else -1


def _shows_longer(situation: Situation, first: int, second: int) -> bool | None:
    return clearly_later(_footage(situation, first).visible_s - _footage(situation, second).visible_s)


_RHYTHM = {"faster": _faster, "slower": reverse(_faster)}
_RHYTHM_SUP = {"fastest": _faster, "slowest": reverse(_faster)}
_SIGHT_DURATION = {"longer": _shows_longer, "shorter": reverse(_shows_longer)}


def _continuity(situation: Situation, word: str, noun: str) -> Meaning | None:
    pausing = {index: _sound(situation, index).intermittent for index in situation.sounding}
    return Meaning(
        referents=frozenset(index for index, pauses in pausing.items() if pauses == (word == "intermittent")),
        without={"continuity": situation.sounding, "sound": situation.everything},
    )


# Cues that narrow down the objects of a category. Words are given by placeholder.

Words = dict[str, str]


@dataclass(frozen=True)
class Cue:
    """A part of a sentence.

    Attributes:
        words: everything it may say about some of the subjects.
        holds: the subjects that it fits; None if unclear.
        facts: kinds of facts stated by people that it needs.
    """

    words: Callable[[Situation, Objects], Iterable[Words]]
    holds: Callable[[Situation, Objects, Words], Objects | None]
    facts: tuple[str, ...] = ()


def _stated(placeholder: str, kind: str, of: Callable[[FootageObject], Iterable[str]]) -> Cue:
    """A word that people stated about an object."""

    def words(situation: Situation, subjects: Objects) -> Iterator[Words]:
        stated = (word for index in sorted(subjects) for word in of(_footage(situation, index)))
        return ({placeholder: word} for word in dict.fromkeys(stated))

    def holds(situation: Situation, subjects: Objects, said: Words) -> Objects:
        return frozenset(index for index in subjects if said[placeholder] in of(_footage(situation, index)))

    return Cue(words, holds, (kind,))


def _does(item: FootageObject) -> list[str]:
    return [verb for verb, target in item.verbs if target is None]


def _upon(prefix: str = "", anchors: Callable[[str], bool] = lambda category: True) -> Cue:
    """A verb and the category of the object that it is done to."""

    def said_of(situation: Situation, index: int) -> Iterator[tuple[str, str]]:
        for verb, target in _footage(situation, index).verbs:
            if target is not None and verb.startswith(prefix) and anchors(situation.objects[target].category):
                yield verb, situation.objects[target].category

    def words(situation: Situation, subjects: Objects) -> Iterator[Words]:
        found = dict.fromkeys(pair for index in sorted(subjects) for pair in said_of(situation, index))
        return ({"verb": verb, "object.2": category} for verb, category in found)

    def holds(situation: Situation, subjects: Objects, said: Words) -> Objects:
        wanted = said["verb"], said["object.2"]
        return frozenset(index for index in subjects if wanted in said_of(situation, index))

    return Cue(words, holds, ("verb",))


def _compared(
    placeholder: str, relations: dict[str, Relation], heard: bool = False,
    anchors: Callable[[Situation, Objects], Objects] = lambda situation, found: found, facts: tuple[str, ...] = (),
) -> Cue:  # fmt: skip
    """A relation to the only object of a category, or of two subjects to each other."""

    def words(situation: Situation, subjects: Objects) -> Iterator[Words]:
        categories = dict.fromkeys(item.category for item in situation.objects)
        return ({placeholder: word, "object.2": category} for word in relations for category in categories)

    def holds(situation: Situation, subjects: Objects, said: Words) -> Objects | None:
        found = anchors(situation, situation.of(said["object.2"]))
        among = subjects
        if heard:
            found, among = found & situation.sounding, among & situation.sounding
        return _against(situation, relations[said[placeholder]], among, found)

    return Cue(words, holds, facts)


def _against(situation: Situation, relation: Relation, among: Objects, anchors: Objects) -> Objects | None:
    if len(anchors) == 1:
        (anchor,) = anchors
        return related(situation, relation, anchor, among)
    if len(anchors) == 2 and anchors == among:
        first, second = sorted(anchors)
        answers = {first: relation(situation, first, second), second: relation(situation, second, first)}
        return None if None in answers.values() else frozenset(i for i, holds in answers.items() if holds)
    return None if anchors else frozenset()


def _stated_place(word: str) -> Relation:
    return lambda situation, first, second: (word, second) in _footage(situation, first).places


_STATED = ("near", "far from", "in front of", "behind", "on", "under")
PLACES: dict[str, Relation] = {**SPATIAL, **{word: _stated_place(word) for word in _STATED}}


def _sounding_of(situation: Situation, found: Objects) -> Objects:
    """The sounding ones, if that says which of several is meant."""
    return found & situation.sounding if len(found) > 1 else frozenset()


def _timed(word: str) -> Callable[[Situation, Objects], Objects]:
    def among(situation: Situation, found: Objects) -> Objects:
        sounding = found & situation.sounding
        return (foremost(situation, SOUND_TIME[word], sounding) or frozenset()) if len(sounding) > 1 else frozenset()

    return among


def _placed_by_time() -> Cue:
    """A place beside the first or last of several sounding objects of a category."""
    cues = {word: _compared("spatial", PLACES, anchors=_timed(word), facts=("place",)) for word in SOUND_TIME}

    def words(situation: Situation, subjects: Objects) -> Iterator[Words]:
        return (said | {"time": word} for word, cue in cues.items() for said in cue.words(situation, subjects))

    return Cue(words, lambda situation, subjects, said: cues[said["time"]].holds(situation, subjects, said), ("place",))


def _first_seen() -> Cue:
    """The first or last of the subjects to show up."""

    def holds(situation: Situation, subjects: Objects, said: Words) -> Objects | None:
        return foremost(situation, SIGHT_TIME[said["time"]], subjects)

    return Cue(lambda situation, subjects: ({"time": word} for word in SIGHT_TIME), holds)


def _first_held() -> Cue:
    """The first or last to sound of the subjects that a person holds, where others are held by nobody or another."""
    held = _upon("held by", lambda category: category in PERSONS)

    def words(situation: Situation, subjects: Objects) -> Iterator[Words]:
        return (said | {"time": word} for said in held.words(situation, subjects) for word in SOUND_TIME)

    def holds(situation: Situation, subjects: Objects, said: Words) -> Objects | None:
        sounding = subjects & situation.sounding
        among = (held.holds(situation, subjects, said) or frozenset()) & sounding
        return foremost(situation, SOUND_TIME[said["time"]], among) if 1 < len(among) < len(sounding) else frozenset()

    return Cue(words, holds, held.facts)


def _plain(holds: Callable[[Situation, Objects], Objects]) -> Cue:
    return Cue(lambda situation, subjects: ({},), lambda situation, subjects, said: holds(situation, subjects))


_SURFACE = _stated("surface", "surface", lambda item: item.surfaces)
_LOOK = _stated("look", "look", lambda item: item.looks)
_VERB = _stated("verb", "verb", _does)
_VERB_UPON = _upon()
_SOUNDING = _plain(lambda situation, subjects: subjects & situation.sounding)
_ENTIRE = _plain(lambda situation, subjects: frozenset(filter(situation.stays, subjects)))
_PLACED = _compared("spatial", PLACES, facts=("place",))
_PLACED_BY_SOUNDING = _compared("spatial", PLACES, anchors=_sounding_of, facts=("place",))


@dataclass(frozen=True)
class ClassTemplate(Pattern):
    """A sentence about an object of a category, which `[object]` or `[person]` stands for."""

    pattern: str
    grade: int
    dimension: str
    cues: tuple[Cue, ...]

    def fillings(self, situation: Situation) -> Iterator[Filling]:
        """Everything the sentence may say in the situation."""
        for category in dict.fromkeys(item.category for item in situation.objects):
            if "[person]" in self.pattern and category not in PERSONS:
                continue
            said: list[Words] = [{}]
            for cue in self.cues:
                said = [one | more for one in said for more in cue.words(situation, situation.of(category))
                        if all(one.get(key, word) == word for key, word in more.items())]  # fmt: skip
            for words in said:
                yield (category, *(text for pair in sorted(words.items()) for text in pair))

    def text(self, filling: Filling) -> str:
        """The sentence."""
        category, *pairs = filling
        text = self.pattern.replace("[object]", category).replace("[person]", category)
        for placeholder, word in zip(pairs[::2], pairs[1::2], strict=True):
            text = text.replace(f"a [{placeholder}]", f"{'an' if word[:1] in 'aeiou' else 'a'} [{placeholder}]")
            text = text.replace(f"[{placeholder}]", word)
        return text

    def facts(self, filling: Filling) -> tuple[str, ...]:
        """Those of its cues; masks tell the places of `SPATIAL`."""
        seen = "place" if SPATIAL.keys() & set(filling) else ""
        return tuple(dict.fromkeys(kind for cue in self.cues for kind in cue.facts if kind != seen))

    def meaning(self, situation: Situation, filling: Filling) -> Meaning | None:
        """What the sentence picks out, and what it would without each cue."""
        category, *pairs = filling
        words = dict(zip(pairs[::2], pairs[1::2], strict=True))
        subjects = situation.of(category)
        fits = [cue.holds(situation, subjects, words) for cue in self.cues]
        known = [found for found in fits if found is not None]
        if len(known) < len(fits):
            return None
        without = {str(at): subjects.intersection(*known[:at], *known[at + 1 :]) for at in range(len(known))}
        return Meaning(referents=subjects.intersection(*known), without=without)


# Grades of the block "Audio-Visual" are shifted in the scan of Fig. 4; a table of grades can replace any of them.
FOOTAGE: tuple[Pattern, ...] = (
    *TEMPLATES,
    ClassTemplate("The [object] [spatial] the [object.2].", 1, "spatial", (_PLACED,)),
    ClassTemplate("The [object] [verb] a [object.2].", 2, "semantic", (_VERB_UPON,)),
    ClassTemplate("The [object] [verb].", 1, "semantic", (_VERB,)),
    ClassTemplate("The [surface] [object].", 1, "semantic", (_SURFACE,)),
    ClassTemplate("The [person] [look].", 1, "semantic", (_LOOK,)),
    ClassTemplate("The [person] [look] and [verb] the [object.2].", 2, "semantic", (_LOOK, _VERB_UPON)),
    ClassTemplate("The [object] appearing through the entire video.", 1, "spatial+temporal", (_ENTIRE,)),
    ClassTemplate("The [time] [object] appearing in the video.", 1, "spatial+temporal", (_first_seen(),)),
    ClassTemplate("The [object] appearing [sequence] the [object.2].", 2, "spatial+temporal",
                  (_compared("sequence", SIGHT_SEQUENCE),)),
    ClassTemplate("The [object] appearing [duration] than the [object.2].", 2, "spatial+temporal",
                  (_compared("duration", _SIGHT_DURATION),)),
    ClassTemplate("The sounding [object].", 1, "acoustic", (_SOUNDING,)),
    ClassTemplate("The [object] making a sound by [verb].", 4, "acoustic", (_SOUNDING, _VERB)),
    Template("The object rhythm is [rhythm] over the time.", 5, "acoustic+temporal", changing(_change_of_rhythm),
             ("faster", "slower"), ("rhythm",)),
    Template("The object making [rhythm] rhythm than the [object].", 5, "acoustic", compared(_RHYTHM, True),
             tuple(_RHYTHM), ("rhythm",)),
    Template("The object making the [rhythm sup] rhythm.", 5, "acoustic", extreme(_RHYTHM_SUP, True),
             tuple(_RHYTHM_SUP), ("rhythm",)),
    Template("The object making the [continuity] sound.", 5, "acoustic", _continuity, ("continuous", "intermittent")),
    ClassTemplate("The [time] sounding [object] [verb] a [object.2].", 3, "acoustic+temporal",
                  (_first_held(),)),
    ClassTemplate("The [object] [spatial] the [time] sounding [object.2].", 3, "acoustic+temporal",
                  (_placed_by_time(),)),
    ClassTemplate("The [surface] [object] that makes the sound with rhythm [rhythm] than the [object.2].", 5,
                  "acoustic", (_SURFACE, _compared("rhythm", _RHYTHM, heard=True, facts=("rhythm",)))),
    ClassTemplate("The [surface] [object] that makes [volume] sound than the [object.2].", 4, "acoustic",
                  (_SURFACE, _compared("volume", VOLUME, heard=True, facts=("level",)))),
    ClassTemplate("The [object] making [duration] sound duration than the [object.2].", 5, "acoustic+temporal",
                  (_compared("duration", DURATION, heard=True),)),
    ClassTemplate("The [object] [spatial] the sounding [object.2].", 5, "acoustic", (_PLACED_BY_SOUNDING,)),
    ClassTemplate("The sounding [object] [spatial] the [object.2].", 5, "acoustic", (_SOUNDING, _PLACED)),
    ClassTemplate("The [surface] and sounding [object].", 3, "acoustic", (_SURFACE, _SOUNDING)),
    ClassTemplate("The [surface] [object] [spatial] the sounding [object.2].", 3, "acoustic",
                  (_SURFACE, _PLACED_BY_SOUNDING)),
)  # fmt: skip

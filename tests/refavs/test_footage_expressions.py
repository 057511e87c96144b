"""Sentences about real footage against a reader that knows no cues: it asks of each object whether the words fit it."""

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from refavs.expressions.footage import FOOTAGE, ClassTemplate
from refavs.expressions.footage_objects import FootageObject, Sound
from refavs.expressions.situation import Situation
from refavs.expressions.templates import expressions, unknown_facts

NAMES = ("man", "guitar", "drum")
SURFACES = ("red", "wooden", "striped")
PLACES = {"on the left of": (0, -1), "on the right of": (0, 1), "above": (1, -1), "beneath": (1, 1)}
_SUBJECT = r"(?P<subject>man|guitar|drum)"
_PLACE = rf"(?P<place>{'|'.join(PLACES)}|near)"
_SURFACE = rf"(?P<surface>{'|'.join(SURFACES)})"
_OTHER = r"(?P<other>man|guitar|drum)"
SENTENCES = [
    rf"The {_SURFACE} {_SUBJECT}\.",
    rf"The {_SURFACE} and (?P<sounding>sounding) {_SUBJECT}\.",
    rf"The (?P<sounding>sounding) {_SUBJECT}\.",
    rf"The {_SUBJECT} (?P<verb>playing|holding) an? {_OTHER}\.",
    rf"The {_SUBJECT} (?P<alone>singing|falling)\.",
    rf"The {_SUBJECT} (?P<look>in a red hat)\.",
    rf"The {_SUBJECT} (?P<look>in a red hat) and (?P<verb>playing|holding) the {_OTHER}\.",
    rf"The {_SUBJECT} (?P<by>making a sound by) (?P<alone>singing|falling)\.",
    rf"The {_SUBJECT} {_PLACE} the {_OTHER}\.",
    rf"The (?P<sounding>sounding) {_SUBJECT} {_PLACE} the {_OTHER}\.",
    rf"The (?:{_SURFACE} )?{_SUBJECT} {_PLACE} the (?P<other_sounds>sounding) {_OTHER}\.",
    rf"The {_SUBJECT} {_PLACE} the (?P<other_turn>first|last) sounding {_OTHER}\.",
    rf"The {_SURFACE} {_SUBJECT} that makes (?P<level>louder|lower) sound than the {_OTHER}\.",
    rf"The {_SURFACE} {_SUBJECT} that makes the sound with rhythm (?P<beat>faster|slower) than the {_OTHER}\.",
    rf"The {_SUBJECT} making (?P<length>longer|shorter) sound duration than the {_OTHER}\.",
    rf"The (?P<turn>first|last) {_SUBJECT} appearing in the video\.",
    rf"The {_SUBJECT} appearing (?P<order>before|after) the {_OTHER}\.",
    rf"The {_SUBJECT} appearing (?P<stay>longer|shorter) than the {_OTHER}\.",
    rf"The {_SUBJECT} (?P<entire>appearing through the entire video)\.",
]


def world(rng: np.random.Generator) -> Situation:
    """Random facts about four to six objects."""
    count = int(rng.integers(4, 7))
    objects, sounds = [], []
    for index in range(count):
        x, y = rng.integers(0, 5, 2) / 5 + 0.1
        first = int(rng.choice([0, 0, 0, 3, 5]))
        centres = tuple((float(x), float(y)) if second >= first else None for second in range(10))
        others = [other for other in range(count) if other != index]
        verbs: list[tuple[str, int | None]] = []
        if rng.random() < 0.5:
            verbs.append((str(rng.choice(["playing", "holding"])), int(rng.choice(others))))
        if rng.random() < 0.5:
            verbs.append((str(rng.choice(["singing", "falling"])), None))
        objects.append(FootageObject(
            category=str(rng.choice(NAMES)), centres=centres, surfaces=tuple(s for s in SURFACES if rng.random() < 0.4),
            looks=("in a red hat",) if rng.random() < 0.6 else (), verbs=tuple(verbs),
            places=(("near", int(rng.choice(others))),) if rng.random() < 0.4 else (),
        ))  # fmt: skip
        gain, beat = (float(rng.choice(values)) for values in ((1, 0.3, 0.05), (60, 90, 140)))
        spans = ((float(rng.integers(0, 5)), float(rng.integers(6, 11))),)
        sounds.append(Sound(spans=spans, gain_from=gain, gain_to=gain, rhythm_from=beat, rhythm_to=beat)
                      if rng.random() < 0.7 else None)  # fmt: skip
    return Situation(size=1, objects=tuple(objects), schedules=tuple(sounds), times=tuple(map(float, range(10))))


class Reader:
    """Asks of each object whether the words of a sentence fit it."""

    def __init__(self, situation: Situation) -> None:
        self.objects: list[FootageObject] = list(situation.objects)  # type: ignore[arg-type]
        self.sounds: list[Sound | None] = list(situation.schedules)  # type: ignore[arg-type]

    def referents(self, text: str) -> set[int]:
        (said,) = {tuple(found.groupdict().items()) for each in SENTENCES if (found := re.fullmatch(each, text))}
        words = {name: word for name, word in said if word is not None}
        return {index for index in range(len(self.objects)) if self.fits(index, words)}

    def fits(self, index: int, words: dict[str, str]) -> bool:
        item, sound = self.objects[index], self.sounds[index]
        own: dict[str, Callable[[str], bool]] = {
            "subject": lambda word: item.category == word, "surface": lambda word: word in item.surfaces,
            "sounding": lambda word: sound is not None, "by": lambda word: sound is not None,
            "alone": lambda word: (word, None) in item.verbs, "look": lambda word: word in item.looks,
            "entire": lambda word: all(item.centres),
            "turn": lambda word: self.extreme(index, word, [i for i, one in enumerate(self.objects)
                                                            if one.category == item.category], self.start),
        }  # fmt: skip
        if not all(own[name](word) for name, word in words.items() if name in own):
            return False
        if "other" not in words:
            return True
        return any(self.beside(index, other, words) for other, one in enumerate(self.objects)
                   if one.category == words["other"] and other != index)  # fmt: skip

    def start(self, index: int) -> float:
        return self.objects[index].visible_from_s

    def extreme(self, index: int, word: str, among: list[int], value: Callable[[int], float]) -> bool:
        values = [value(other) for other in among if other != index]
        return bool(values) and (value(index) < min(values) if word == "first" else value(index) > max(values))

    def beside(self, index: int, other: int, words: dict[str, str]) -> bool:
        item, there, own, its = self.objects[index], self.objects[other], self.sounds[index], self.sounds[other]
        if "other_sounds" in words and its is None:
            return False
        if "other_turn" in words:
            heard = {i: s for i, s in enumerate(self.sounds) if s and self.objects[i].category == there.category}
            if other not in heard or not self.extreme(other, words["other_turn"], list(heard), lambda i: heard[i].on_s):
                return False
        if "verb" in words:
            return any(verb == words["verb"] and target is not None
                       and self.objects[target].category == words["other"] for verb, target in item.verbs)  # fmt: skip
        if words.get("place") == "near":
            return ("near", other) in item.places
        if "place" in words:
            axis, sign = PLACES[words["place"]]
            both = [(a, b) for a, b in zip(item.centres, there.centres, strict=True) if a and b]
            return all(sign * (a[axis] - b[axis]) > 1e-9 for a, b in both)
        more = {"longer": 1, "louder": 1, "faster": 1, "after": 1}
        compared: dict[str, Callable[[], float]] = {
            "order": lambda: item.visible_from_s - there.visible_from_s,
            "stay": lambda: sum(map(bool, item.centres)) - sum(map(bool, there.centres)),
            "level": lambda: own.gain_from - its.gain_from if own and its else 0,
            "beat": lambda: (own.rhythm_from or 0) - (its.rhythm_from or 0) if own and its else 0,
            "length": lambda: own.duration_s - its.duration_s if own and its else 0,
        }  # fmt: skip
        (name,) = words.keys() & compared.keys()
        return more.get(words[name], -1) * compared[name]() > 0


@pytest.mark.long
@pytest.mark.parametrize("num_situations", [120, pytest.param(400, marks=pytest.mark.slow)])
def test_class_sentences_fit_their_object_alone(num_situations: int) -> None:
    templates = [template for template in FOOTAGE if isinstance(template, ClassTemplate)]
    rng = np.random.default_rng(11)
    met, count = set(), 0
    for _ in range(num_situations):
        situation = world(rng)
        reader = Reader(situation)
        for one in expressions(situation, templates):
            assert reader.referents(one.text) == {one.target}, (one.text, situation)
            assert all(len(rest) > 1 and one.target in rest for rest in one.without.values())
            met.add(one.template.pattern)
            count += 1
    missing = {template.pattern for template in templates} - met
    assert missing == {"The [time] sounding [object] [verb] a [object.2]."}, "nothing here is held by a person"
    assert count > 2.5 * num_situations


def test_the_first_sounding_guitar_is_held_by_a_man() -> None:
    def guitar(holder: int) -> FootageObject:
        return FootageObject(category="guitar", centres=((0.5, 0.5),) * 10, verbs=(("held by", holder),))

    man = FootageObject(category="man", centres=((0.5, 0.5),) * 10)
    shelf = FootageObject(category="shelf", centres=((0.5, 0.5),) * 10)
    first, second, third = (Sound(spans=((start, 9.0),)) for start in (0.0, 3.0, 6.0))
    situation = Situation(size=1, objects=(guitar(4), guitar(3), guitar(3), man, shelf), times=(0.0, 9.0),
                          schedules=(first, second, third, None, None))  # fmt: skip
    found = {one.text: one.target for one in expressions(situation, FOOTAGE)}
    assert found["The first sounding guitar held by a man."] == 1
    assert found["The last sounding guitar held by a man."] == 2
    assert "The first sounding guitar held by a shelf." not in found
    held = replace(situation, objects=(guitar(3), guitar(3), guitar(3), man, shelf))
    needless = "The first sounding guitar held by a man."
    assert needless not in {one.text for one in expressions(held, FOOTAGE)}


def test_only_facts_that_a_sentence_needs_make_it_unsure() -> None:
    (placed,) = [template for template in FOOTAGE if template.pattern == "The [object] [spatial] the [object.2]."]
    objects = tuple(FootageObject(category="man", centres=((x, 0.5),) * 10) for x in (0.1, 0.8))
    situation = Situation(size=1, objects=objects, schedules=(None, None), times=(0.0, 9.0),
                          unknown={"place": frozenset({1})})  # fmt: skip
    left = ("man", "object.2", "man", "spatial", "on the left of")
    assert unknown_facts(placed, left, situation) == ()
    assert unknown_facts(placed, (*left[:-1], "near"), situation) == ("place",)
    (found,) = [one for one in expressions(situation, [placed]) if one.filling == left]
    assert (found.text, found.target, found.unsure) == ("The man on the left of the man.", 0, ())

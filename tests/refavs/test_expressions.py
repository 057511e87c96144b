"""Expressions against an oracle that knows only what is measured: each object's pixels and the level of its voice."""

import re
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from refavs.expressions.templates import TEMPLATES, Situation, expressions, sentences
from refavs.synthetic.plan import Clip, Settings, draw_clip
from refavs.synthetic.scene import COLOURS, SEEN_CATEGORIES, SceneObject, make_scene, render
from refavs.synthetic.voices import SAMPLE_RATE_HZ, Schedule, synthesise

SETTINGS = Settings(num_clips=50)
PATTERNS = {template.pattern for template in TEMPLATES}


class Oracle:
    """Answers sentences from rendered masks and from each object's own sound, second by second."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        moments = [render(clip.scene, float(second)) for second in range(10)]
        self.masks = np.stack([labels for _, labels in moments], 1)
        self.frames = np.stack([frame for frame, _ in moments])
        self.level = np.stack([self._level(index) for index in range(len(clip.categories))])

    def _level(self, index: int) -> np.ndarray:
        schedule = self.clip.schedules[index]
        sounding = [] if schedule is None else [(self.clip.categories[index], schedule)]
        samples = synthesise(sounding, np.random.default_rng(0)) / 32768
        return np.sqrt((samples.reshape(10, SAMPLE_RATE_HZ) ** 2).mean(1))

    def colour(self, index: int) -> str:
        rgb = self.frames[self.masks[index]].mean(0)
        pure = {name: np.array(value) / max(value) for name, value in COLOURS.items()}
        return min(pure, key=lambda name: np.abs(rgb / rgb.max() - pure[name]).sum())

    def value(self, kind: str, index: int) -> np.ndarray:
        """What a comparison compares: one value, or one per second; the smaller comes first."""
        if kind in ("x", "y"):
            return np.array([np.argwhere(mask).mean(0)[0 if kind == "y" else 1] for mask in self.masks[index]])
        seen, heard = self.masks[index].any((1, 2)), self.level[index] > 0.001
        measured = {
            "appears": seen.argmax(), "starts": heard.argmax(), "duration": heard.sum(),
            "level": self.level[index].mean(),
        }
        return np.array(measured[kind])

    def before(self, kind: str, sign: int, anchor: int, among: set[int]) -> set[int]:
        return {
            i for i in among - {anchor} if (sign * self.value(kind, i) < sign * self.value(kind, anchor) - 1e-9).all()
        }

    def first(self, kind: str, sign: int, among: set[int]) -> set[int]:
        return {i for i in among if self.before(kind, sign, i, among) == set()}

    def referents(self, text: str) -> set[int]:
        everything = set(range(len(self.clip.categories)))
        sounding = {i for i in everything if self.level[i].max() > 0.001}
        named = {name: i for i, name in enumerate(self.clip.categories)}
        sides = {
            "on the left of": ("x", 1), "on the right of": ("x", -1), "above": ("y", 1), "beneath": ("y", -1)
        }
        if found := re.fullmatch(r"The (\w+)\.", text):
            return {named[found[1]]}
        if found := re.fullmatch(r"The (\w+) object\.", text):
            return sounding if found[1] == "sounding" else {i for i in everything if self.colour(i) == found[1]}
        if found := re.fullmatch(r"The object (on the \w+ of|above|beneath) the (\w+)\.", text):
            return self.before(*sides[found[1]], named[found[2]], everything)
        if found := re.fullmatch(r"The object making the (\w+) sound( duration)?\.", text):
            kind, sign = {"loudest": ("level", -1), "lowest": ("level", 1), "longest": ("duration", -1),
                          "shortest": ("duration", 1)}[found[1]]
            return self.first(kind, sign, sounding)
        if found := re.fullmatch(r"The object making (\w+) sound (duration )?than the (\w+)\.", text):
            kind, sign = {"louder": ("level", -1), "lower": ("level", 1), "longer": ("duration", -1),
                          "shorter": ("duration", 1)}[found[1]]
            return self.before(kind, sign, named[found[3]], sounding)
        if found := re.fullmatch(r"The object volume is (\w+) over the time\.", text):
            sign = 1 if found[1] == "louder" else -1
            return {i for i in sounding if (sign * np.diff(self.level[i]) > 1e-4).all()}
        if found := re.fullmatch(r"The (first|last) object (to make a sound|appearing in the video)\.", text):
            heard = found[2].startswith("to")
            sign = 1 if found[1] == "first" else -1
            return self.first("starts" if heard else "appears", sign, sounding if heard else everything)
        if found := re.fullmatch(r"The object (making a sound|appearing) (before|after) the (\w+)\.", text):
            sign, anchor = 1 if found[2] == "before" else -1, named[found[3]]
            if found[1] == "appearing":
                return self.before("appears", sign, anchor, everything)
            return self.before("starts", sign, anchor, sounding)
        if text == "The object that keeps making sound at all times.":
            return {i for i in sounding if self.level[i].min() > 0.001}
        assert text == "The object appearing through the entire video.", text
        return {i for i in everything if self.masks[i].any((1, 2)).all()}


@pytest.mark.long
def test_expressions_refer_to_exactly_one_object() -> None:
    met = set()
    for index in range(SETTINGS.num_clips):
        clip = draw_clip(SETTINGS, index)
        oracle = Oracle(clip)
        for expression in expressions(clip.situation):
            assert oracle.referents(expression.text) == {expression.target}, (clip.id, expression.text)
            met.add(expression.template.pattern)
    assert met == PATTERNS


@pytest.mark.long
def test_expressions_refer_to_several_objects_without_any_one_cue() -> None:
    for index in range(100):
        clip = draw_clip(SETTINGS, index)
        for expression in expressions(clip.situation):
            assert expression.without
            for cue, rest in expression.without.items():
                assert len(rest) > 1 and rest <= clip.situation.everything, (clip.id, expression.text, cue)
                assert expression.target in rest


@pytest.mark.long
def test_acoustic_expressions_follow_the_sound_not_the_pixels() -> None:
    """Dealing the same sounds to other objects moves the referent with them, though no pixel changes."""
    checked = set()
    for index in range(24):
        situation = draw_clip(SETTINGS, index).situation
        deals: dict[tuple[int, ...], dict[str, int]] = {}
        for order in permutations(range(len(situation.objects))):
            dealt = replace(situation, schedules=tuple(situation.schedules[i] for i in order))
            deals[order] = {expression.text: expression.target for expression in expressions(dealt)}
        for expression in expressions(situation):
            template = expression.template
            if "acoustic" not in template.dimension:
                continue
            targets = {order: found[expression.text] for order, found in deals.items() if expression.text in found}
            assert len(set(targets.values())) > 1, expression.text
            if "[object]" not in template.pattern:
                assert targets == {order: order.index(expression.target) for order in deals}, expression.text
            checked.add(template.pattern)
    assert checked == {template.pattern for template in TEMPLATES if "acoustic" in template.dimension}


def test_other_expressions_do_not_depend_on_the_sound() -> None:
    for index in range(40):
        situation = draw_clip(SETTINGS, index).situation
        muted = replace(situation, schedules=(None,) * len(situation.objects))
        kept = [e.text for e in expressions(situation) if "acoustic" not in e.template.dimension]
        assert [e.text for e in expressions(muted)] == kept


@pytest.mark.long
def test_sounding_object_cannot_be_identified_visually() -> None:
    looks = {
        "largest": lambda objects: {max(range(len(objects)), key=lambda i: objects[i].radius_px)},
        "leftmost": lambda objects: {min(range(len(objects)), key=lambda i: objects[i].start_px[0])},
        "disc": lambda objects: {i for i, item in enumerate(objects) if item.category == "disc"},
        "red": lambda objects: {i for i, item in enumerate(objects) if item.colour == "red"},
    }
    surplus, variance = dict.fromkeys(looks, 0.0), dict.fromkeys(looks, 0.0)
    for index in range(800):
        clip = draw_clip(replace(SETTINGS, size=48), index)
        if clip.split == "test_u" or clip.scenario != "single":
            continue
        (target,) = clip.situation.sounding
        for name, chosen_by in looks.items():
            chosen = chosen_by(clip.scene.objects)
            chance = len(chosen) / len(clip.scene.objects)
            surplus[name] += (target in chosen) - chance
            variance[name] += chance * (1 - chance)
    for name in looks:
        assert abs(surplus[name]) < 2.5 * variance[name] ** 0.5, name


def situation_of(*schedules: Schedule | None) -> Situation:
    scene = make_scene(np.random.default_rng(3), 96, SEEN_CATEGORIES[: len(schedules)])
    return Situation(size=96, objects=scene.objects, schedules=schedules)


def texts(situation: Situation, dimension: str) -> list[str]:
    return [e.text for e in expressions(situation) if e.template.dimension == dimension]


def steady(gain: float) -> Schedule:
    return Schedule(gain_from=gain, gain_to=gain)


def test_expressions_leave_out_what_is_not_clear() -> None:
    assert texts(situation_of(steady(1.0), steady(0.2), None), "acoustic") == [
        "The object making the loudest sound.",
        "The object making the lowest sound.",
        "The object making louder sound than the square.",
        "The object making lower sound than the disc.",
    ]
    assert texts(situation_of(steady(1.0), steady(0.6), None), "acoustic") == []
    early, soon, late = (Schedule(on_s=on_s) for on_s in (0.0, 1.0, 3.0))
    assert "The first object to make a sound." in texts(situation_of(early, late, None), "acoustic+temporal")
    assert texts(situation_of(early, soon, None), "acoustic+temporal") == [
        "The object that keeps making sound at all times."
    ]


def test_expressions_of_two_objects_compare_with_none() -> None:
    """With two objects "than the square" names the other one; sight and text alone would do."""
    found = texts(situation_of(steady(1.0), steady(0.2)), "acoustic")
    assert found == ["The object making the loudest sound.", "The object making the lowest sound."]


@pytest.mark.parametrize(("offset", "expected"), [(30.0, True), (6.0, False), (-20.0, False)])
def test_spatial_expressions_need_a_clear_side(offset: float, expected: bool) -> None:
    def placed(category: str, x: float) -> SceneObject:
        return SceneObject(
            category=category, colour="red", rgb=(225.0, 45.0, 45.0), radius_px=12.0, angle_rad=0.0,
            start_px=(x, 48.0), velocity_px_s=(0.0, 0.0),
        )

    objects = (placed("disc", 40 - offset), placed("square", 40.0), placed("star", 80.0))
    situation = Situation(size=96, objects=objects, schedules=(None, None, None))
    assert ("The object on the left of the square." in texts(situation, "spatial")) == expected


def test_templates_carry_the_papers_grades_and_dimensions() -> None:
    table = {template.pattern: (template.grade, template.dimension) for template in TEMPLATES}
    assert len(table) == len(TEMPLATES)
    assert table["The [object]."] == (1, "semantic")
    assert table["The object [spatial] the [object]."] == (1, "spatial")
    assert table["The sounding object."] == (2, "acoustic")
    assert table["The object making [volume] sound than the [object]."] == (4, "acoustic")
    assert table["The [time] object to make a sound."] == (5, "acoustic+temporal")
    assert table["The object appearing [sequence] the [object]."] == (2, "spatial+temporal")


def test_sentences_are_every_filled_template() -> None:
    template = next(t for t in TEMPLATES if t.pattern == "The object making a sound [sequence] the [object].")
    assert sentences(template, ["disc", "star"]) == [
        "The object making a sound before the disc.",
        "The object making a sound before the star.",
        "The object making a sound after the disc.",
        "The object making a sound after the star.",
    ]

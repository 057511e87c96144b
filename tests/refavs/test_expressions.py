"""Expressions against an oracle that knows only what is measured: each object's pixels and the level of its voice."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from refavs.expressions import templates
from refavs.expressions.situation import Situation
from refavs.expressions.templates import TEMPLATES, expressions, sentences
from refavs.synthetic.plan import Settings, draw_clip
from refavs.synthetic.scene import COLOURS, SEEN_CATEGORIES, SceneObject, make_scene
from refavs.synthetic.voices import SoundSchedule
from tests.support.expression_oracle import Oracle

SETTINGS = Settings(num_clips=50)
PATTERNS = {template.pattern for template in TEMPLATES}


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


def situation_of(*schedules: SoundSchedule | None) -> Situation:
    scene = make_scene(np.random.default_rng(3), 96, SEEN_CATEGORIES[: len(schedules)])
    return Situation(size=96, objects=scene.objects, schedules=schedules)


def texts(situation: Situation, dimension: str) -> list[str]:
    return [e.text for e in expressions(situation) if e.template.dimension == dimension]


def steady(gain: float) -> SoundSchedule:
    return SoundSchedule(gain_from=gain, gain_to=gain)


def test_expressions_leave_out_what_is_not_clear() -> None:
    assert texts(situation_of(steady(1.0), steady(0.2), None), "acoustic") == [
        "The object making the loudest sound.",
        "The object making the lowest sound.",
        "The object making louder sound than the square.",
        "The object making lower sound than the disc.",
    ]
    assert texts(situation_of(steady(1.0), steady(0.6), None), "acoustic") == []
    early, soon, late = (SoundSchedule(on_s=on_s) for on_s in (0.0, 1.0, 3.0))
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


def test_templates_name_the_scenes_colours() -> None:
    assert tuple(COLOURS) == templates.COLOURS


def test_sentences_are_every_filled_template() -> None:
    template = next(t for t in TEMPLATES if t.pattern == "The object making a sound [sequence] the [object].")
    assert sentences(template, ["disc", "star"]) == [
        "The object making a sound before the disc.",
        "The object making a sound before the star.",
        "The object making a sound after the disc.",
        "The object making a sound after the star.",
    ]

from dataclasses import replace

import numpy as np
import pytest

from refavs.synthetic.scene import CATEGORIES, COLOURS, SEEN_CATEGORIES, UNSEEN_CATEGORIES, make_scene, render


def test_make_scene_is_decided_by_its_generator() -> None:
    one, same, other = (make_scene(np.random.default_rng(seed), 96, ["disc", "star"]) for seed in (1, 1, 2))
    assert one.objects == same.objects and np.array_equal(one.background, same.background)
    assert one.objects != other.objects
    assert [item.category for item in one.objects] == ["disc", "star"]


def test_categories_are_seen_or_unseen() -> None:
    assert set(SEEN_CATEGORIES).isdisjoint(UNSEEN_CATEGORIES)
    assert CATEGORIES == SEEN_CATEGORIES + UNSEEN_CATEGORIES


@pytest.mark.parametrize("size", [64, 96])
def test_objects_stay_inside_and_mostly_apart(size: int) -> None:
    covered = total = 0
    for seed in range(40):
        scene = make_scene(np.random.default_rng(seed), size, CATEGORIES[seed % 4 :][: 2 + seed % 3])
        for second in range(10):
            _, labels = render(scene, float(second))
            for index, item in enumerate(scene.objects):
                (x, y), radius = item.centre(float(second)), item.radius_px
                assert radius <= x <= size - radius and radius <= y <= size - radius
                alone = render(replace(scene, objects=(item,)), float(second))[1][0].sum()
                covered, total = covered + (labels[index].sum() < 0.8 * alone), total + 1
    assert covered / total < 0.02


def test_render_hides_occluded_objects() -> None:
    scene = make_scene(np.random.default_rng(0), 96, ["disc", "square"])
    disc, square = scene.objects
    scene = replace(scene, objects=(disc, replace(square, start_px=disc.start_px, velocity_px_s=disc.velocity_px_s)))
    _, labels = render(scene, 4.0)
    assert labels[1].any() and not (labels[0] & labels[1]).any()


def test_render_shows_an_object_from_when_it_appears() -> None:
    scene = make_scene(np.random.default_rng(0), 96, ["disc", "square"])
    late = replace(scene, objects=(scene.objects[0], replace(scene.objects[1], visible_from_s=3.0)))
    before, labels = render(late, 2.9)
    assert labels[0].any() and not labels[1].any()
    assert np.array_equal(before, render(replace(scene, objects=scene.objects[:1]), 2.9)[0])
    assert np.array_equal(render(late, 3.0)[0], render(scene, 3.0)[0])


@pytest.mark.parametrize("category", CATEGORIES)
def test_masks_are_where_the_colour_is(category: str) -> None:
    scene = make_scene(np.random.default_rng(7), 96, [category])
    frame, labels = render(scene, 5.0)
    painted = np.abs(frame.astype(float) - scene.background).sum(-1) > 0
    inside = np.abs(frame[labels[0]] - np.array(scene.objects[0].rgb)).max(-1)
    assert (painted >= labels[0]).mean() > 0.999
    assert (painted & ~labels[0]).sum() < 0.45 * labels[0].sum()  # the smooth edge
    assert np.median(inside) <= 1


def test_shapes_differ_in_outline() -> None:
    """Centred and of one size, no two shapes share more than 85 % of their pixels (intersection over union)."""
    masks = {}
    for category in CATEGORIES:
        scene = make_scene(np.random.default_rng(7), 96, [category])
        item = replace(
            scene.objects[0], radius_px=15.0, angle_rad=0.0, start_px=(48.0, 48.0), velocity_px_s=(0.0, 0.0)
        )
        masks[category] = render(replace(scene, objects=(item,)), 0.0)[1][0]
    for one in CATEGORIES:
        assert 150 < masks[one].sum() < 750
        for other in CATEGORIES:
            if one != other:
                assert (masks[one] & masks[other]).sum() < 0.85 * (masks[one] | masks[other]).sum(), (one, other)


def test_colours_are_named_by_their_hue() -> None:
    """Shades of a colour stay nearest to that colour, whatever their brightness."""
    pure = {name: np.array(value) / max(value) for name, value in COLOURS.items()}
    for seed in range(200):
        item = make_scene(np.random.default_rng(seed), 64, ["disc"]).objects[0]
        rgb = np.array(item.rgb) / max(item.rgb)
        assert min(pure, key=lambda name: np.abs(rgb - pure[name]).sum()) == item.colour

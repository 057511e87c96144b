"""Scenes of the synthetic benchmark: moving coloured shapes on a textured background, with their masks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

DURATION_S = 10.0
SEEN_CATEGORIES = ("disc", "square", "triangle", "star")
UNSEEN_CATEGORIES = ("ring", "diamond", "cross")
CATEGORIES = SEEN_CATEGORIES + UNSEEN_CATEGORIES
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (50, 185, 60),
    "blue": (50, 85, 230),
    "yellow": (235, 215, 45),
    "purple": (190, 60, 210),
    "cyan": (55, 215, 220),
}

_RADIUS = (1 / 8, 1 / 6)  # of the frame's side
_MAX_TRAVEL = 0.2  # of the frame's side, over the whole clip
_MAX_TURN_RAD = 0.25  # small, so that a square never looks like a diamond
_NUM_PLACES = 96  # candidate paths tried for one object
_SUPPORT = 1.1  # no shape reaches further than this many radii from its centre

Grid = Float[np.ndarray, "h w"]


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape: its look, its straight path and when it is in the video.

    Attributes:
        category: one of `CATEGORIES`.
        colour: one of `COLOURS`.
        rgb: the object's shade of that colour.
        radius_px: half its extent.
        angle_rad: its rotation.
        start_px: centre (x, y) at second 0.
        velocity_px_s: movement (x, y) per second.
        visible_from_s: it appears at this second and stays.
    """

    category: str
    colour: str
    rgb: tuple[float, float, float]
    radius_px: float
    angle_rad: float
    start_px: tuple[float, float]
    velocity_px_s: tuple[float, float]
    visible_from_s: float = 0.0

    def centre(self, time_s: float) -> tuple[float, float]:
        """Centre (x, y) in pixels."""
        (x, y), (vx, vy) = self.start_px, self.velocity_px_s
        return x + vx * time_s, y + vy * time_s

    def visible(self, time_s: float) -> bool:
        """Whether the object is in the video at that time."""
        return self.visible_from_s <= time_s


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The picture of a clip. Later objects lie in front of earlier ones."""

    size: int
    objects: tuple[SceneObject, ...]
    background: UInt8[np.ndarray, "h w 3"]


def make_scene(rng: np.random.Generator, size: int, categories: Sequence[str]) -> Scene:
    """Draws a scene with one object of each category, in that order, on paths that (mostly) keep apart.

    Args:
        rng: the only source of randomness.
        size: side of the square frame in pixels.
        categories: names from `CATEGORIES`; repeated names are allowed here.
    """
    background = _background(rng, size)
    objects: list[SceneObject] = []
    for category in categories:
        objects.append(_place(rng, size, category, objects))
    return Scene(size=size, objects=tuple(objects), background=background)


def render(scene: Scene, time_s: float) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "o h w"]]:
    """Draws one moment of a scene.

    Returns:
        The RGB frame, and for each object its visible pixels (none before it appears).
    """
    frame = scene.background.astype(np.float32)
    labels = np.zeros((len(scene.objects), scene.size, scene.size), bool)
    for index, item in enumerate(scene.objects):
        if not item.visible(time_s):
            continue
        (x, y), reach = item.centre(time_s), item.radius_px * _SUPPORT + 1
        left, right = max(0, math.floor(x - reach)), min(scene.size, math.ceil(x + reach) + 1)
        top, bottom = max(0, math.floor(y - reach)), min(scene.size, math.ceil(y + reach) + 1)
        window = np.s_[top:bottom, left:right]
        dx = np.arange(left, right, dtype=np.float32)[None, :] - x
        dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y
        cos, sin = math.cos(item.angle_rad), math.sin(item.angle_rad)
        distance = SHAPES[item.category](cos * dx + sin * dy, cos * dy - sin * dx, item.radius_px)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        frame[window] += cover * (np.asarray(item.rgb, np.float32) - frame[window])
        inside = distance <= 0
        labels[(slice(index), *window)] &= ~inside
        labels[(index, *window)] = inside
    return (frame + 0.5).astype(np.uint8), labels


def _disc(x: Grid, y: Grid, radius: float) -> Grid:
    return np.hypot(x, y) - 0.95 * radius


def _square(x: Grid, y: Grid, radius: float) -> Grid:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82 * radius


def _triangle(x: Grid, y: Grid, radius: float) -> Grid:
    y = y - 0.2 * radius
    return np.maximum(0.8944 * np.abs(x) - 0.4472 * (y + 1.25 * radius), y - 0.65 * radius)


def _star(x: Grid, y: Grid, radius: float) -> Grid:
    """Five points: one edge, mirrored into each half sector."""
    outer, inner, sector = 1.1 * radius, 0.45 * radius, 2 * math.pi / 5
    angle = np.arctan2(x, -y) % sector
    angle = np.minimum(angle, sector - angle)
    rho = np.hypot(x, y)
    tip, notch = (outer, 0.0), (inner * math.cos(sector / 2), inner * math.sin(sector / 2))
    along, across = notch[0] - tip[0], notch[1] - tip[1]
    return (across * (rho * np.cos(angle) - tip[0]) - along * rho * np.sin(angle)) / math.hypot(along, across)


def _ring(x: Grid, y: Grid, radius: float) -> Grid:
    return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius


def _diamond(x: Grid, y: Grid, radius: float) -> Grid:
    wide, tall = 0.6 * radius, 1.05 * radius
    return (np.abs(x) * tall + np.abs(y) * wide - wide * tall) / math.hypot(wide, tall)


def _cross(x: Grid, y: Grid, radius: float) -> Grid:
    far, near = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(far - radius, near - 0.3 * radius)


# Distance in pixels to each shape's edge (negative inside), in the shape's own axes, y downwards.
SHAPES: dict[str, Callable[[Grid, Grid, float], Grid]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "diamond": _diamond,
    "cross": _cross,
}


def _place(rng: np.random.Generator, size: int, category: str, others: Sequence[SceneObject]) -> SceneObject:
    """Draws a new object's look, and the first of many random paths that avoids the others, or else the best one."""
    radius = float(rng.uniform(*_RADIUS)) * size
    margin = radius * _SUPPORT + 1
    starts = rng.uniform(margin, size - margin, (_NUM_PLACES, 2))
    travel = rng.uniform(-_MAX_TRAVEL, _MAX_TRAVEL, (_NUM_PLACES, 2)) * size / math.sqrt(2)
    travel = np.clip(starts + travel, margin, size - margin) - starts
    clearance = np.full(_NUM_PLACES, np.inf)
    for time_s in np.linspace(0, DURATION_S, 11):
        at = starts + travel * (time_s / DURATION_S)
        for other in others:
            gap = np.hypot(*(at - other.centre(float(time_s))).T) - (radius + other.radius_px)
            clearance = np.minimum(clearance, gap)
    chosen = int(np.argmax(np.minimum(clearance, 1.0)))  # the first that is clear by a pixel, else the clearest
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    shade = rng.uniform(0.85, 1.05) * np.asarray(COLOURS[colour], float) + rng.uniform(-8, 8, 3)
    red, green, blue = np.clip(shade, 0, 255).tolist()
    return SceneObject(
        category=category,
        colour=colour,
        rgb=(red, green, blue),
        radius_px=radius,
        angle_rad=float(rng.uniform(-_MAX_TURN_RAD, _MAX_TURN_RAD)),
        start_px=(float(starts[chosen, 0]), float(starts[chosen, 1])),
        velocity_px_s=(float(travel[chosen, 0]) / DURATION_S, float(travel[chosen, 1]) / DURATION_S),
    )


def _background(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Grey-brown clouds under fine grain, too pale to match one of the colours."""
    knots = 7
    clouds = rng.uniform(-45, 45, (knots, knots, 1)) + rng.uniform(-14, 14, (knots, knots, 3))
    at = np.linspace(0, knots - 1.001, size)
    low, part = at.astype(int), at % 1
    rows = clouds[low] + (clouds[low + 1] - clouds[low]) * part[:, None, None]
    smooth = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * part[None, :, None]
    grain = rng.normal(0, 9, (size, size, 1))
    return np.clip(rng.uniform(80, 150) + smooth + grain, 0, 255).astype(np.uint8)

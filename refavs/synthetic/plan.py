"""Plans the clips, splits, expressions and null references of the synthetic benchmark before anything is drawn."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refavs.choices import DEFAULT_VIDEOS
from refavs.data.layouts.ref_avs_metadata import NULL_PREFIX, TEST_N, TEST_S, TEST_U, TRAIN, VAL
from refavs.errors import ConfigError
from refavs.expressions.situation import Situation
from refavs.expressions.templates import TEMPLATES, Expression, Pattern, Template, expressions, sentences
from refavs.synthetic.scene import DURATION_S, SEEN_CATEGORIES, UNSEEN_CATEGORIES, Scene, make_scene
from refavs.synthetic.voices import SoundSchedule, draw_scenario, draw_schedules

_RECIPE = 2  # increased whenever the same settings would give other files
_SMALLEST_PX = 48
# Clip i belongs to the split at i modulo 10, so that a larger benchmark contains the smaller ones' clips.
_SPLITS = (TRAIN, TRAIN, TEST_S, TRAIN, VAL, TRAIN, TEST_U, TRAIN, TRAIN, TRAIN)
_NUM_OBJECTS = ((2, 3, 4), (0.2, 0.6, 0.2))
_ENTRANCE_SHARE = 0.3  # share of clips in which some object appears later
_NULL_SHARE = 0.2  # share of a template's rows in train and val; near a half, training collapses to "always empty"
_NULLS_PER_CLIP = 4
_MOST_HARD = 4  # expressions of a clip that need sound or time, besides those by looks
_HEARD: tuple[Template, ...] = tuple(template for template in TEMPLATES if "acoustic" in template.dimension)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that decide every byte of a synthetic benchmark (of its videos: the content)."""

    num_clips: int
    seed: int = 0
    size: int = 96
    num_videos: int = DEFAULT_VIDEOS
    recipe: int = _RECIPE

    def __post_init__(self) -> None:
        if self.num_clips < 1:
            raise ConfigError(f"--clips is {self.num_clips}; give 1 or more (10 or more fill every split).")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}; give 0 or a positive whole number.")
        if self.size < _SMALLEST_PX or self.size % 2:
            raise ConfigError(f"--size is {self.size}; give an even number of pixels, {_SMALLEST_PX} or more, e.g. 96.")
        if self.num_videos < 0:
            raise ConfigError(f"--videos is {self.num_videos}; give a number of clips, all or none.")


@dataclass(frozen=True, kw_only=True)
class ExpressionRow:
    """One expression of the metadata; `fid` is the object's number in its clip (null: 0)."""

    vid: str
    uid: str
    split: str
    fid: int
    text: str
    template: Pattern


@dataclass(frozen=True, kw_only=True)
class Medium:
    """One folder under media/: its clip, and for a null copy whether it is muted ("m") or crossed ("c")."""

    id: str
    clip: int
    null: str = ""


@dataclass(frozen=True, kw_only=True)
class DrawnClip:
    """One clip, before it is rendered."""

    index: int
    split: str
    scenario: str
    scene: Scene
    schedules: tuple[SoundSchedule | None, ...]

    @property
    def id(self) -> str:
        return _clip_id(self.index)

    @property
    def situation(self) -> Situation:
        return Situation(size=self.scene.size, objects=self.scene.objects, schedules=self.schedules)

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(item.category for item in self.scene.objects)


def _clip_id(index: int) -> str:
    return f"syn{index:05d}_0_{round(DURATION_S * 1000)}"


def plan(settings: Settings) -> tuple[list[Medium], list[ExpressionRow]]:
    """Decides every clip and every expression."""
    media: list[Medium] = []
    rows: list[ExpressionRow] = []
    categories: dict[int, tuple[str, ...]] = {}
    for index in range(settings.num_clips):
        clip = draw_clip(settings, index)
        media.append(Medium(id=clip.id, clip=index))
        categories[index] = clip.categories
        for number, expression in enumerate(choose(clip, generator(settings, index, 1)), start=1):
            rows.append(
                ExpressionRow(
                    vid=clip.id, uid=f"{clip.id}_{clip.categories[expression.target]}_{number}", split=clip.split,
                    fid=expression.target, text=expression.text, template=expression.template,
                )
            )
    null_media, null_rows = _plan_nulls(settings, rows, categories)
    return media + null_media, rows + null_rows


def draw_clip(settings: Settings, index: int) -> DrawnClip:
    """Decides what clip number `index` shows and sounds like."""
    rng = generator(settings, index, 0)
    split = _SPLITS[index % len(_SPLITS)]
    num_objects = int(rng.choice(_NUM_OBJECTS[0], p=_NUM_OBJECTS[1]))
    if split == TEST_U:  # at least two unseen categories, so that being new does not give the object away
        num_unseen = min(int(rng.integers(2, len(UNSEEN_CATEGORIES) + 1)), num_objects)
        names = [*rng.permutation(UNSEEN_CATEGORIES)[:num_unseen].tolist()]
        names += rng.permutation(SEEN_CATEGORIES)[: num_objects - num_unseen].tolist()
    else:
        names = rng.permutation(SEEN_CATEGORIES)[:num_objects].tolist()
    scene = make_scene(rng, settings.size, rng.permutation(names).tolist())
    if rng.random() < _ENTRANCE_SHARE:
        scene = _with_entrances(scene, rng)
    scenario = draw_scenario(rng)
    schedules = draw_schedules(rng, scenario, num_objects)
    return DrawnClip(index=index, split=split, scenario=scenario, scene=scene, schedules=schedules)


def choose(clip: DrawnClip, rng: np.random.Generator) -> list[Expression]:
    """Picks about six of a clip's expressions: up to four that need sound or time, two by looks, two by place."""
    found = [
        expression
        for expression in expressions(clip.situation)
        if clip.split != TEST_U or clip.categories[expression.target] in UNSEEN_CATEGORIES
    ]
    by_dimension: dict[str, list[Expression]] = defaultdict(list)
    for expression in found:
        dimension = expression.template.dimension
        by_dimension[dimension if dimension in ("semantic", "spatial") else "hard"].append(expression)
    hard = _pick(by_dimension["hard"], _MOST_HARD, rng)
    spatial = _pick(by_dimension["spatial"], 2, rng)
    semantic = _pick(by_dimension["semantic"], 2, rng)
    return semantic + spatial + hard


def _pick(found: Sequence[Expression], count: int, rng: np.random.Generator) -> list[Expression]:
    """Picks up to `count` expressions; each time the template is drawn first, so that rare templates occur too."""
    left, picked = list(found), []
    while left and len(picked) < count:
        patterns = list(dict.fromkeys(expression.template.pattern for expression in left))
        pattern = patterns[int(rng.integers(len(patterns)))]
        same = [expression for expression in left if expression.template.pattern == pattern]
        picked.append(same[int(rng.integers(len(same)))])
        left.remove(picked[-1])
    return picked


def _with_entrances(scene: Scene, rng: np.random.Generator) -> Scene:
    """Lets one object appear at second 2 to 4, or in clips of three or more two objects one after the other."""
    times = [2.0, 4.0] if len(scene.objects) > 2 and rng.random() < 0.5 else [float(rng.integers(2, 5))]
    late = dict(zip(rng.permutation(len(scene.objects)).tolist(), times, strict=False))
    objects = tuple(
        replace(item, visible_from_s=late.get(index, 0.0)) for index, item in enumerate(scene.objects)
    )
    return replace(scene, objects=objects)


def _plan_nulls(
    settings: Settings, rows: Sequence[ExpressionRow], categories: Mapping[int, tuple[str, ...]]
) -> tuple[list[Medium], list[ExpressionRow]]:
    """Copies some clips with a sound that no object in them makes, and adds sentences that then refer to nothing.

    Each sentence refers to an object elsewhere in train; nulls are at most `_NULL_SHARE` of each template's rows.
    """
    media: list[Medium] = []
    nulls: list[ExpressionRow] = []
    positive = Counter((row.split, row.template.pattern) for row in rows)
    left = {key: int(count * _NULL_SHARE / (1 - _NULL_SHARE)) for key, count in positive.items()}
    known = Counter(row.text for row in rows if row.split == TRAIN)
    rng = generator(settings, settings.num_clips, 2)
    for index in rng.permutation(settings.num_clips).tolist():
        split = _SPLITS[index % len(_SPLITS)]
        if split == TEST_U:
            continue
        base = _clip_id(index)
        crossed = len(media) % 2 == 0 and len(categories[index]) < len(SEEN_CATEGORIES)
        medium = Medium(id=f"{NULL_PREFIX}{'c' if crossed else 'm'}-{base}", clip=index, null="c" if crossed else "m")
        texts = _null_sentences(split, categories[index], known, left, rng)
        for number, (template, text) in enumerate(texts, start=1):
            nulls.append(
                ExpressionRow(
                    vid=base, uid=f"{medium.id}_null_{number}", split=TEST_N if split == TEST_S else split,
                    fid=0, text=text, template=template,
                )
            )
        if texts:
            media.append(medium)
    return sorted(media, key=lambda medium: medium.id), sorted(nulls, key=lambda row: row.uid)


def _null_sentences(
    split: str,
    categories: Sequence[str],
    known: Counter[str],
    left: dict[tuple[str, str], int],
    rng: np.random.Generator,
) -> list[tuple[Template, str]]:
    """Sentences for one null clip, each from a different template, drawn as often as in train.

    `known` counts the sentences of train that have a referent, `left` the nulls that each template may still get.
    """
    options: dict[Template, list[str]] = {}
    for template in _HEARD:
        texts = [text for text in sentences(template, categories) if text in known]
        if texts and (split == TEST_S or left.get((split, template.pattern), 0) > 0):
            options[template] = texts
    if not options:
        return []
    weights = np.array([sum(known[text] for text in texts) for texts in options.values()], float)
    count = min(_NULLS_PER_CLIP, len(options))
    chosen = []
    for number in rng.choice(len(options), count, replace=False, p=weights / weights.sum()).tolist():
        template = list(options)[number]
        left[split, template.pattern] = left.get((split, template.pattern), 0) - 1
        chosen.append((template, options[template][int(rng.integers(len(options[template])))]))
    return chosen


def generator(settings: Settings, index: int, purpose: int) -> np.random.Generator:
    """An independent generator for each clip and purpose, so that no clip depends on another."""
    return np.random.default_rng([settings.seed, index, purpose])

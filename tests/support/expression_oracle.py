"""Answers synthetic sentences from what is measured alone: each object's pixels and the level of its voice."""

import re
from collections.abc import Sequence

import numpy as np

from refavs.synthetic.plan import DrawnClip
from refavs.synthetic.scene import COLOURS, render
from refavs.synthetic.voices import SAMPLE_RATE_HZ, synthesise


class Oracle:
    """Knows the masks and each object's own sound, second by second.

    Args:
        moments: frame and masks of each second, where they are not those of the clip's scene.
    """

    def __init__(self, clip: DrawnClip, moments: Sequence[tuple[np.ndarray, np.ndarray]] = ()) -> None:
        self.clip = clip
        moments = moments or [render(clip.scene, float(second)) for second in range(10)]
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
        """The objects that a sentence fits."""
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

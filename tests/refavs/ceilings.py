"""Upper bounds for the cached memory on the synthetic benchmark: accuracy of observers with perfect perception."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

from refavs.synthetic.plan import DrawnClip, Settings, choose, draw_clip, generator

SECONDS = (4, 7, 9)  # all that decides has happened by then
# The clip, the dimension, the sentence without its noun, the target, and what is named.
Question = tuple[DrawnClip, str, str, int, int | None]
Look = Callable[[DrawnClip, int, int], Hashable]  # clip, object, second -> what is known of that object


def level(clip: DrawnClip, index: int, second: int) -> float:
    """Gain in the middle of a second, 0 for silence."""
    schedule = clip.schedules[index]
    if schedule is None or not schedule.on_s <= second < schedule.off_s:
        return 0.0
    rise = math.log(schedule.gain_to / schedule.gain_from)
    return schedule.gain_from * math.exp(rise * (second + 0.5) / 10)


def now(clip: DrawnClip, index: int, second: int) -> Hashable:
    """Whether the object is seen, whether it is heard, and how many are louder."""
    own = level(clip, index, second)
    louder = sum(level(clip, other, second) > own for other in range(len(clip.categories)))
    return clip.scene.objects[index].visible(float(second)), own > 0, louder if own else 0


def and_before(clip: DrawnClip, index: int, second: int) -> Hashable:
    """The same, and what the mean of the earlier seconds tells: for how long it was seen and heard, and how loudly."""
    own, past = level(clip, index, second), [level(clip, index, earlier) for earlier in range(second)]
    seen = sum(clip.scene.objects[index].visible(float(earlier)) for earlier in range(second))
    change = 0 if not past or not own else round(4 * math.log2(own / max(sum(past) / len(past), 1e-3)))
    return now(clip, index, second), second - seen, second - sum(gain > 0 for gain in past), max(-4, min(4, change))


def ask(num_clips: int) -> list[Question]:
    """Of all clips but those of test_u, whose objects are not known."""
    settings, found = Settings(num_clips=num_clips), []
    for index in range(num_clips):
        clip = draw_clip(settings, index)
        if clip.split == "test_u":
            continue
        for expression in choose(clip, generator(settings, index, 1)):
            named = [place for place, name in enumerate(clip.categories) if f" {name}." in expression.text]
            text = expression.text.replace(clip.categories[named[0]], "X") if named else expression.text
            found.append((clip, expression.template.dimension, text, expression.target, named[0] if named else None))
    return found


def accuracy(questions: list[Question], dimension: str, look: Look) -> float:
    """Of the best answer to what is looked at, in seconds in which the target is seen.

    Objects that look alike are guessed among. What is looked at occurs many times, so that the best answer is known.
    """
    votes: dict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    for clip, found, text, target, named in questions:
        for second in SECONDS if found == dimension else ():
            if clip.scene.objects[target].visible(float(second)):
                looks = [(look(clip, index, second), index == named) for index in range(len(clip.categories))]
                alike = Counter(looks)
                situation = (text, tuple(sorted(alike.items())))
                votes[situation][looks[target]] += 1
    right = total = 0.0
    for (_, alike), answers in votes.items():  # type: ignore[misc]
        right += max(count / dict(alike)[answer] for answer, count in answers.items())
        total += sum(answers.values())
    return right / total

"""Grade, dimension and length of an expression, derived from its words, because metadata.csv does not have them.

The rules follow Ref-AVS (arXiv 2407.10957v1), supplement Fig. 4 (templates and grades), Table 1 (placeholders) and
Table 2 (dimensions, length bins). They only look for cue words. `python -m refavs.data.cues metadata.csv` prints their
coverage of a file.

Dimension: the kinds of cues in an expression:
    `acoustic`    it mentions sound, whatever else it says (Fig. 4 "Acoustic" and "Audio-Visual");
    `spatial`     it says where (left, near, on the ...) and does not mention sound;
    `semantic`    neither: category, appearance or action; singing and speaking are actions unless sound is mentioned;
    `+temporal`   order, duration or change over time. Table 1 lists `continuous` and `intermittent` under acoustic, and
                  section 3.3 does so for rhythm, so these alone are not temporal. Without sound it is always
                  `spatial+temporal`.

Grade, as in Fig. 4; a sentence that matches no template gets the grade of the template with the same cues:
    1  category, appearance, place, or an action without another object; appearing first, last, throughout; "the
       sounding [category]"
    2  an action upon another object, or two visible cues; appearing before, after or longer; "the sounding object"
    3  an appearance or action and "sounding"; "the first sounding object" with a place or holder
    4  volume; making a sound by an action
    5  rhythm, continuity, and every temporal cue of sound; "sounding" and a place

None if unknown. There is no grade for negated sound ("made no sound") or visible actions in time ("the person singing
after the woman"), for which there is no template, or for "the [surface] [object] that makes [volume] sound than", which
Fig. 4 grades 1 although it grades the same without the surface 4 and 5. Neither value is known for placeholders
("NO."), error messages, other languages and sentences without a known cue word.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from refavs.data.layouts.ref_avs_metadata import is_placeholder, read_metadata
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say

ACOUSTIC_TEMPORAL = "acoustic+temporal"
DIMENSIONS = ("semantic", "spatial", "acoustic", "spatial+temporal", ACOUSTIC_TEMPORAL)
LENGTH_BINS = ("<=4", "5-8", "9-12", ">12")
_MAX_WORDS = 64  # the longest real expression has 22; longer texts are not parsed


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """Properties of a sentence; None if unknown.

    Attributes:
        grade: difficulty, 1 (easy) to 5 (hard).
        dimension: one of `DIMENSIONS`.
        length: number of words separated by white space.
    """

    grade: int | None
    dimension: str | None
    length: int


# "The sounding [object] [spatial] the [object]", a sixth of the real rows, has grade 5 in our copy of Fig. 4. With 3
# the shares of grades 1-2, 3-4 and 5 would be 24, 53 and 21 %; with 5 they are 24, 37 and 37 %. Section 3.3 says 20, 60
# and 20 %, so the 5 may be a misprint.
_PLACED_SOUNDING = 5


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Cue words by class. The misspellings occur in the real benchmark.
_SOUNDING = _set("sounding soundning resonating resounding noisy audible")  # attributes of an object
_SOUND = _set(
    "sound sounds sounded noise noises audio tone tones music melody resounded reverberated echoed acoustic volume "
    "valume decibel loud loudly rhythm rhythms tempo tempos pitch voice vocal"
)
_CRY = _set("roar roars bleat bleats howl howls cry cries laughter bark barks grunts calls siren")  # is emitted
_VOLUME = _set(
    "volume valume decibel pitch louder loudest lower lowest quieter quietest softer softest deeper deepest highest "
    "intense powerful strongest weakest loud most"
)
_RHYTHM = _set("rhythm rhythms tempo tempos faster fastest slower slowest swiftest quickest")
_CONTINUITY = _set(
    "continuous continuously continual continually intermittent intermittently noncontinuous discontinuous "
    "uninterrupted"
)
_ORDER = _set("first last initial initially final finally earliest latest inaugural ultimate beginning")
_IN_SPACE = _set("from row role line")
_SEQUENCE = _set("before after following preceding prior subsequent subsequently succeeding later earlier")
_DURATION = _set("duration longer shorter longest shortest lengthiest briefest briefer brief length")
_LASTING = _set(
    "perpetual perpetually persistent persistently persists consistent consistently constant constantly always keeps "
    "keeping incessant incessantly throughout entire whole"
)
_CHANGE = _set(
    "increase increases increasing decrease decreases decreasing accelerates decelerates slows gradual gradually "
    "progressively"
)
_APPEAR = _set("appear appears appearing appeared appearance visible screen video")
_SPATIAL = _set(
    "left right leftmost rightmost middle center centre front behind near nearby nearest beside under beneath next "
    "underneath above below between adjacent distant far farthest farther close closest atop upon corner around ahead "
    "opposite inside among back"
)
_SIDES = _set("left right")
_LIMBS = _set("hand hands leg legs arm arms foot feet")
_DENIED = _set("silent soundless mute muted quiet")
_NOT = _set("no not didnt doesnt dont never without any")
_MAKING = _set(
    "making make makes made emitting emit emits emitted emanates producing produce produces produced generating "
    "creating creates delivering setting maintaining releasing giving initiating introducing"
)
_MEANS = _set("by through via when while")
_WORN = _set("wearing wears wear dressed with without in having has have adorned clad possessing than other another")
_FINITE = _set(
    "sing sings sang play plays played used held hold holds sat sit sits sitten beat beats speak speaks talk talks "
    "walk walks stand stands remains moves look looks uses eats roars barks howls runs run vocalizes wags jumps flies "
    "dances sails"
)
_NO_ACTION = _set(
    "wearing having being string strings ring king wing ceiling building clothing earring earrings during thing "
    "something anything everything nothing morning evening painting appearing following preceding beginning lasting"
)
_NO_TARGET = _set("a the song songs opera and or not together happily loudly slowly quickly alone around")
_ARTICLES = _set("the a an")
_OWN = _set("its his her their")  # "wagging its tail" involves no other object
_GENERIC = _set("object obiect objects item entity thing source emitter presence")
_COMPOUNDS = {"hair": ["dryer"], "vacuum": ["cleaner"], "emergency": ["car"]}  # one category in two words
_FILLER = _set(
    "the a an of to in at is are was were being that which who by it its his her and positioned located situated "
    "placed set stood rested directly very slightly waves on"
)
_NO_PARTICIPLE = _FILLER | _SPATIAL | _MAKING | _SOUND | _SOUNDING | _NO_ACTION
_SAID_ELSEWHERE = _FILLER | _SOUNDING | _SOUND | _MAKING | _VOLUME | _ORDER


def parse(text: str) -> Parsed:
    """Parses one expression. Any string is accepted; the time is linear in its length."""
    length = len(text.split())
    if length > _MAX_WORDS or is_placeholder(text):
        return Parsed(grade=None, dimension=None, length=length)
    words = _words(text)
    if not any(len(word) > 1 and word.isascii() and word.isalpha() for word in words) or words[0] == "error":
        return Parsed(grade=None, dimension=None, length=length)
    grade, dimension = _heard(words) if _has_sound(words) else _seen(words)
    return Parsed(grade=grade, dimension=dimension, length=length)


def length_bin(num_words: int) -> str:
    """The bin of `LENGTH_BINS`, from Table 2 of the supplement."""
    return LENGTH_BINS[(num_words > 4) + (num_words > 8) + (num_words > 12)]


def _words(text: str) -> list[str]:
    """Splits into lower-case words at everything but letters, digits and apostrophes, which are dropped (didnt)."""
    joined = text.casefold().replace("'", "").replace("\u2019", "")
    return "".join(letter if letter.isalnum() else " " for letter in joined).split()


def _any(words: Sequence[str], cues: frozenset[str]) -> bool:
    return not cues.isdisjoint(words)


def _follows(words: Sequence[str], first: frozenset[str], then: frozenset[str], within: int) -> bool:
    """Whether a word in `then` follows a word in `first` within `within` words."""
    return any(_any(words[place + 1 : place + 1 + within], then) for place, word in enumerate(words) if word in first)


# Sentences that mention sound.


def _has_sound(words: Sequence[str]) -> bool:
    return _any(words, _SOUNDING | _SOUND | _DENIED) or _emits_cry(words)


def _emits_cry(words: Sequence[str]) -> bool:
    return _any(words, _MAKING) and _any(words, _CRY)


def _heard(words: list[str]) -> tuple[int | None, str]:
    attributive = not _any(words, _SOUND) and not _emits_cry(words)  # "sounding" is an attribute, "sound" an action
    means = next((i for i, word in enumerate(words) if word in _MEANS and _any(words[:i], _SOUND)), len(words))
    what = words[:means]  # the rest says who makes the sound and how
    places = _places(what)
    first = what[: places[0]] if places else what
    actions = _actions(words)
    temporal = _is_timed_sounding(words) if attributive else _is_temporal(what)
    dimension = ACOUSTIC_TEMPORAL if temporal else "acoustic"
    if not _any(words, _SOUNDING) and (_any(words, _DENIED) or _follows(words, _NOT, _SOUND, 3)):
        return None, dimension
    if attributive and temporal and (places or actions):
        return 3, dimension
    if temporal or _any(first, _RHYTHM | _CONTINUITY):
        return 5, dimension
    if _any(first, _VOLUME):
        return (None if "that" in first and _is_modified(first) else 4), dimension
    if not attributive and (means < len(words) or actions or _emits_cry(words)):
        return 4, dimension
    if places:
        return (3 if _is_modified(first) else _PLACED_SOUNDING), dimension
    if actions or _is_modified(words):
        return 3, dimension
    return (2 if _any(words, _GENERIC) else 1), dimension


def _is_timed_sounding(words: Sequence[str]) -> bool:
    """Whether "sounding" has a temporal cue, as in "the first sounding object" or "perpetually sounding"."""
    timed = _LASTING | _CHANGE | {"before", "after", "beginning"}
    return _any(words, timed) or _follows(words, _ORDER, _SOUNDING, 2)


def _is_temporal(words: Sequence[str]) -> bool:
    timed = _SEQUENCE | _DURATION | _LASTING | _CHANGE
    return _any(words, timed) or _is_ordered(words) or _follows(words, _set("over all"), _set("time times"), 2)


def _is_ordered(words: Sequence[str]) -> bool:
    """Whether something is first or last in time. "First from the left" and "first row" are spatial."""
    return any(word in _ORDER and not _any(words[i + 1 : i + 5], _IN_SPACE) for i, word in enumerate(words))


# Sentences that do not mention sound.


def _seen(words: list[str]) -> tuple[int | None, str | None]:
    places, actions = _places(words), _actions(words)
    if _any(words, _APPEAR) and _is_temporal(words):
        return (2 if _any(words, _SEQUENCE | _DURATION) else 1), "spatial+temporal"
    if _is_ordered(words) or "after" in words or ("before" in words and actions):
        return None, "spatial+temporal"  # no template has an action with a temporal cue
    first = words[: places[0]] if places else words
    own = [place for place in actions if place < len(first)]
    is_upon = any(_has_target(words, place) for place in own)
    num_cues = bool(places) + bool(own) + _is_modified(first[: own[0]] if own else first)
    grade = 2 if is_upon or num_cues > 1 else 1
    if places or "before" in words:
        return grade, "spatial"
    if actions or _any(words, _WORN) or len(words) <= (5 if words[0] in _ARTICLES else 2):
        return grade, "semantic"
    return None, None


# Parts of a sentence.


def _places(words: Sequence[str]) -> list[int]:
    """Positions of the words that express a place. "Sat on by" and "with a cup on it" express none."""
    found = []
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if word in _SIDES and following in _LIMBS:
            continue
        if word in _SPATIAL or (word == "on" and following not in ("", "by", "it", "them")):
            found.append(place)
    return found


def _actions(words: Sequence[str]) -> list[int]:
    """Positions of the verbs that say what an object does or what is done to it."""
    return [place for place, word in enumerate(words) if word in _FINITE or _is_participle(words, place)]


def _is_participle(words: Sequence[str], place: int) -> bool:
    word, before = words[place], words[place - 1] if place else ""
    if word in _NO_PARTICIPLE:
        return False
    done_by = words[place + 1 : place + 2] == ["by"] and before not in _ARTICLES
    return done_by or before == "being" or (word.endswith("ing") and len(word) > 4)


def _has_target(words: Sequence[str], place: int) -> bool:
    """Whether the verb at `place` involves another object. Before its noun ("the standing man") it does not."""
    if place and words[place - 1] in _ARTICLES:
        return False
    others = _NO_TARGET | _SPATIAL
    if words[place + 1 : place + 2] and words[place + 1] in _OWN:
        return False
    return any(word not in others and not word.endswith("ing") for word in words[place + 1 :])


def _is_modified(words: Sequence[str]) -> bool:
    """Whether the noun phrase at the start of a sentence says more than a category."""
    plain = [
        word for place, word in enumerate(words)
        if word not in _SAID_ELSEWHERE and words[place + 1 : place + 2] != _COMPOUNDS.get(word)
    ]  # fmt: skip
    return len([word for word in plain if word not in _GENERIC]) > (0 if _any(plain, _GENERIC) else 1)


# The command.


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `python -m refavs.data.cues`; returns the exit status."""
    return run_command("refavs.data.cues", lambda: _run(argv))


def coverage(texts: Sequence[str], num_examples: int = 8) -> str:
    """Text report: how many rows `parse` assigns to each value, and the most common expressions it cannot parse."""
    parsed = {text: parse(text) for text in texts}
    total = max(len(texts), 1)
    lines = [f"{len(texts):,} expressions, {len(parsed):,} distinct"]
    names = {"grade": ("1", "2", "3", "4", "5", ""), "dimension": (*DIMENSIONS, ""), "length": LENGTH_BINS}
    for cue, classes in names.items():
        said = {text: length_bin(found.length) if cue == "length" else str(getattr(found, cue) or "")
                for text, found in parsed.items()}  # fmt: skip
        rows, distinct = Counter(said[text] for text in texts), Counter(said.values())
        lines += ["", f"{cue:<18}{'rows':>8}{'share':>9}{'distinct':>10}"]
        for name in classes:
            count = rows[name]
            lines.append(f"{name or 'not said':<18}{count:>8,}{count / total:>9.2%}{distinct[name]:>10,}")
        silent = Counter(text for text in texts if not said[text]).most_common(num_examples)
        lines += [f"    {count:>6,}  {text[:80]!r}" for text, count in silent]
    return "\n".join(lines)


def _run(argv: Sequence[str] | None) -> int:
    parser = CommandParser(
        prog="python -m refavs.data.cues",
        description="Prints how many expressions of a metadata.csv have each grade, dimension and length.",
    )
    parser.add_argument("csv", metavar="CSV", help="the benchmark's metadata.csv")
    table, _ = read_metadata(parser.parse_args(argv).csv)
    for line in coverage(table["text"].tolist()).splitlines():
        say(line)
    return Exit.COMPLETE


if __name__ == "__main__":
    sys.exit(main())

"""What is odd about a clip that was read all the same: a fixed vocabulary, kept in the store and counted at the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# Facts of their own, which older stores have as well.
SILENT, REPEATED = "silent", "repeated_from_s"
NOTES = {
    "picture_late": "the picture begins in a later second; its first one is shown until then",
    "picture_held": "no picture begins in some second; the one before it is shown",
    "sound_late": "the sound begins later; silence until then",
    "sound_gap": "sound is missing in between; silence instead",
    "sound_short": "the sound ends before the last second; silence from then on",
    "sound_varies": "the sound changes its layout, rate or sample format",
    "size_varies": "the picture changes its size",
    "time_joined": "time stamps restart or jump; the clock continues",
    "time_guessed": "pictures have no time stamps; their rate gives the time",
    "length_false": "the file declares another length than it has; what is there was read",
    "damage_skipped": "pieces that cannot be decoded were left out at the start of a transport stream",
    "track_guessed": "no mark says which of several tracks is the film's; the best was taken",
}


def oddities(facts: Mapping[str, Any]) -> list[str]:
    """What is odd about a clip by its facts in the store, those of older stores included."""
    flags = [SILENT] if facts.get(SILENT) else []
    repeated = facts.get(REPEATED)
    flags += [REPEATED] if repeated is not None and repeated == repeated else []  # NaN in a table: none
    return flags + [note for note in NOTES if note in str(facts.get("notes")).split(",")]


def counted(facts_of_clips: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many clips are odd in which way."""
    return Counter(name for facts in facts_of_clips for name in oddities(facts))

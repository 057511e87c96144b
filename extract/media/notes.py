"""Oddities of clips that were read nevertheless: a fixed vocabulary, kept in the store and counted at the end."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# Stored as facts of their own, as in older stores.
SILENT, REPEATED = "silent", "repeated_from_s"
NOTES = {
    "picture_late": "the picture begins late; its first one is shown until then",
    "picture_held": "no picture begins in some step; the one before it is shown",
    "sound_late": "the sound begins later; silence until then",
    "sound_gap": "the sound has a gap; silence instead",
    "sound_short": "the sound ends before the last second; silence from then on",
    "sound_varies": "the sound changes its layout, rate or sample format",
    "size_varies": "the picture changes its size",
    "picture_hdr": "the picture is HDR (PQ or HLG); it is not tone-mapped, so that its colours are pale",
    "time_joined": "time stamps restart or jump; the clock continues",
    "time_guessed": "pictures have no time stamps; their rate gives the time",
    "length_false": "the file declares a false length; its actual content was read",
    "damage_skipped": "undecodable pieces at the start of a transport stream were skipped",
    "track_guessed": "no mark tells which of several tracks is the film's; the best was taken",
}


def oddities(facts: Mapping[str, Any]) -> list[str]:
    """A clip's oddities, from its facts in a store, new or old."""
    flags = [SILENT] if facts.get(SILENT) else []
    repeated = facts.get(REPEATED)
    flags += [REPEATED] if repeated is not None and repeated == repeated else []  # NaN in a table: none
    return flags + [note for note in NOTES if note in str(facts.get("notes")).split(",")]


def counted(facts_of_clips: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Number of clips with each oddity."""
    return Counter(name for facts in facts_of_clips for name in oddities(facts))

"""One clock for a file's picture and sound: seconds of the container, counted as a reference decoder does.

Second 0 begins with the earlier of the two tracks, by the container's time stamps and edit lists. Until a track begins,
its first picture, or silence, stands in. If time stamps restart or jump, as in recordings joined byte by byte, the
clock continues.
"""

from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.stream import Stream

# A jump of the time stamps by more than this is a break. The clock of a transport stream may be reset at any time; in
# other files a long still is more likely.
_LEAP_S = {"mpegts": Fraction(10)}
_OTHER_LEAP_S = Fraction(30 * 3600)
# Time stamps may go back this far within one recording, since sound is spliced with some overlap.
_BACK_S = Fraction(1, 2)
_ASSUMED_RATE = Fraction(25)


@dataclass
class _Place:
    """Position of a track: the breaks it has passed, its first and last time, and when its next packet is expected."""

    num_breaks: int = 0
    first_s: Fraction = Fraction(0)
    last_s: Fraction | None = None
    expected_s: Fraction = Fraction(0)


class Clock:
    """Turns packets' time stamps into seconds from the start of the file; the picture is the first of the tracks.

    All tracks share each break, although they reach it some packets apart. All take the same correction, so that
    picture and sound stay in sync.
    """

    def __init__(self, container: InputContainer, tracks: tuple[Stream, ...]) -> None:
        self._leap_s = _LEAP_S.get(container.format.name, _OTHER_LEAP_S)
        starts = [track.start_time * track.time_base for track in tracks
                  if track.start_time is not None and track.time_base is not None]  # fmt: skip
        self._shifts_s = [-min(starts)] if starts else []
        self._places = {track.index: _Place() for track in tracks}

    @property
    def joined(self) -> bool:
        """Whether time stamps restarted or jumped."""
        return len(self._shifts_s) > 1

    def set(self, packet: av.Packet) -> Fraction | None:
        """Shifts a packet's time stamps, and so those of its frames, to the clock; returns its end in seconds.

        None for packets without a time stamp, and for packets hidden by an edit list.
        """
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or packet.time_base is None:
            return None
        place, at_s = self._places[packet.stream.index], stamp * packet.time_base
        if not self._shifts_s:
            self._shifts_s.append(-at_s)
        # Hidden packets go back to an earlier key frame, and presentation times are not in order: neither is a break.
        counts = packet.dts is not None and not packet.is_discard
        if counts and place.last_s is not None and self._breaks(place, at_s):
            self._enter(place, at_s)
        shift_s = self._shifts_s[place.num_breaks]
        duration_s = (packet.duration or 0) * packet.time_base
        if counts:
            if place.last_s is None:
                place.first_s = at_s + shift_s
            place.last_s, place.expected_s = at_s + shift_s, at_s + shift_s + duration_s
        ticks = round(shift_s / packet.time_base)
        if packet.dts is not None:
            packet.dts += ticks
        if packet.pts is not None:
            packet.pts += ticks
        if packet.is_discard:
            return None
        return (packet.pts if packet.pts is not None else stamp + ticks) * packet.time_base + duration_s

    def _breaks(self, place: _Place, at_s: Fraction) -> bool:
        now_s = at_s + self._shifts_s[place.num_breaks]
        assert place.last_s is not None
        return now_s > place.expected_s + self._leap_s or now_s < place.last_s - _BACK_S

    def _enter(self, place: _Place, at_s: Fraction) -> None:
        """Moves a track past a break that another track has already passed, or past a new one."""
        for number in range(place.num_breaks + 1, len(self._shifts_s)):
            late_s = at_s + self._shifts_s[number] - place.expected_s
            if abs(late_s) <= _LEAP_S["mpegts"]:
                place.num_breaks = number
                if late_s < -_BACK_S:  # the part before the break is longer in this track
                    self._shifts_s[number:] = [shift_s - late_s for shift_s in self._shifts_s[number:]]
                return
        picture = next(iter(self._places.values()))
        expected_s = picture.expected_s + place.first_s - picture.first_s
        if picture.last_s is None or abs(expected_s - place.expected_s) > _BACK_S:
            expected_s = place.expected_s
        self._shifts_s.append(expected_s - at_s)
        place.num_breaks = len(self._shifts_s) - 1


class PictureTimes:
    """The time at which each decoded picture is shown.

    Some containers store one of the two time stamps in the wrong order. The one that went backwards less often so far
    is used.
    """

    def __init__(self, track: av.VideoStream) -> None:
        rate = track.average_rate or track.guessed_rate or _ASSUMED_RATE
        self._step_s = 1 / rate if rate > 0 else 1 / _ASSUMED_RATE
        self._last: dict[str, Fraction] = {}
        self._faults = {"pts": 0, "dts": 0}
        self._next_s = Fraction(0)
        self.num_guessed = 0

    def of(self, frame: av.VideoFrame) -> Fraction:
        """Seconds on the file's clock; without a time stamp, one step after the last picture."""
        stamps: dict[str, Fraction] = {}
        for name, ticks in (("pts", frame.pts), ("dts", frame.dts)):
            if ticks is not None and frame.time_base is not None:
                stamps[name] = ticks * frame.time_base
                self._faults[name] += name in self._last and stamps[name] <= self._last[name]
                self._last[name] = stamps[name]
        if not stamps:
            self.num_guessed += 1
            time_s = self._next_s
        elif "pts" in stamps and ("dts" not in stamps or self._faults["pts"] <= self._faults["dts"]):
            time_s = stamps["pts"]
        else:
            time_s = stamps.get("dts", self._next_s)
        self._next_s = max(self._next_s, time_s + self._step_s)
        return time_s

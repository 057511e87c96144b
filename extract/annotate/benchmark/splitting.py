"""Splits of a benchmark by video: no video is in two of them, and each keeps the split that it first got."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from extract.annotate.records import ProjectFolder, read_record, write_record
from refavs.config import nearest
from refavs.data.layouts.ref_avs_metadata import TEST_S, TEST_U, TRAIN, VAL
from refavs.errors import ConfigError

SPLITS = "splits.json"
_PART = re.compile(r"_\d+_\d+$")  # start and end of a clip within its video, as in Ref-AVS


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How videos are split.

    Attributes:
        shares: of train, val and test_s.
        unseen: categories held out of training.
    """

    shares: Mapping[str, float]
    unseen: frozenset[str]

    @classmethod
    def of(cls, shares: str, unseen: str | None) -> "Splitting":
        """From the command line.

        Raises:
            ConfigError: the shares are not three positive numbers.
        """
        try:
            numbers = [float(part) for part in shares.split("/")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or min(numbers) < 0 or not 0 < sum(numbers) < float("inf"):
            raise ConfigError(f"--splits is {shares!r}; accepted: shares of train, val and test_s, such as 70/10/20")
        parts = {name: number / sum(numbers) for name, number in zip((TRAIN, VAL, TEST_S), numbers, strict=True)}
        return cls(shares=parts, unseen=frozenset(name.strip() for name in (unseen or "").split(",") if name.strip()))


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """The splits of a project.

    Attributes:
        videos: split of each video.
        unseen: categories held out when they were assigned.
    """

    videos: dict[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


def video_of(clip_id: str) -> str:
    """The video that a clip was cut from."""
    return _PART.sub("", clip_id)


def assign(project: ProjectFolder, shown: Mapping[str, set[str]], splitting: Splitting) -> dict[str, str]:
    """The split of each clip, and keeps it for later.

    Args:
        shown: categories of the objects of each clip.

    Raises:
        ConfigError: no clip shows an unseen category, or others were held out before.
    """
    categories = set().union(*shown.values())
    if absent := sorted(splitting.unseen - categories):
        raise ConfigError(f"--unseen: no clip shows {absent[0]!r}; {nearest(absent[0], categories)}")
    path = project.path / SPLITS
    record = read_record(path, SplitRecord) if path.exists() else SplitRecord(unseen=tuple(sorted(splitting.unseen)))
    if set(record.unseen) != splitting.unseen:
        before, now = (",".join(sorted(names)) or "nothing" for names in (record.unseen, splitting.unseen))
        raise ConfigError(f"{path} was made with {before} held out, --unseen asks for {now}; give the same, or remove "
                          "the file to split the videos again")  # fmt: skip
    videos = dict(record.videos)
    held_out = {video_of(clip_id) for clip_id, names in shown.items() if names & splitting.unseen}
    for video in sorted({video_of(clip_id) for clip_id in shown} - videos.keys(), key=_shuffled):
        counts = Counter(split for split in videos.values() if split != TEST_U)
        total = sum(counts.values()) + 1
        wanted = {name: share * total - counts[name] for name, share in splitting.shares.items()}
        videos[video] = TEST_U if video in held_out else max(wanted, key=lambda name: wanted[name])
    if moved := sorted(video for video in held_out if videos[video] != TEST_U):
        raise ConfigError(f"video {moved[0]!r} shows an unseen category and is in {videos[moved[0]]}; remove {path} to "
                          "split the videos again")  # fmt: skip
    write_record(path, SplitRecord(videos=videos, unseen=record.unseen))
    return {clip_id: videos[video_of(clip_id)] for clip_id in shown}


def _shuffled(video: str) -> str:
    """Orders videos at random, the same way each time."""
    return hashlib.sha256(video.encode()).hexdigest()

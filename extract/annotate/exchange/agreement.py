"""refavs-annotate agreement: how alike two annotators drew, as J between their masks."""

import argparse
from dataclasses import dataclass
from statistics import mean, median

from extract.annotate.exchange.exports import clips_with_masks, imported, masks_in, picture
from extract.annotate.records import ProjectFolder
from refavs.errors import DatasetError
from refavs.terminal.command import CommandParser, Exit
from refavs.terminal.printing import say

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two annotators' masks of an object in one second; at least one of them is not empty.

    Attributes:
        jaccard: intersection over union.
        presence_differs: whether only one of them says that the object shows.
    """

    clip: str
    fid: int
    second: int
    jaccard: float
    presence_differs: bool


def add_arguments(parser: CommandParser) -> None:
    """Adds the arguments of the step."""
    parser.add_argument("first", metavar="ANNOTATOR", help="name given to import --annotator")
    parser.add_argument("second", metavar="ANNOTATOR", help="name of the other one")


def run(args: argparse.Namespace) -> int:
    """Prints the agreement; returns the exit status."""
    pairs = compare(ProjectFolder(args.project), args.first, args.second)
    values = [pair.jaccard for pair in pairs]
    say(f"J between {args.first} and {args.second}: mean {100 * mean(values):.2f}, median {100 * median(values):.2f}, "
        f"over {len(values):,} masks of {len({pair.clip for pair in pairs}):,} clips")  # fmt: skip
    say(f"{values.count(1.0):,} identical, {sum(pair.presence_differs for pair in pairs):,} where only one of them "
        "sees the object")  # fmt: skip
    for pair in sorted(pairs, key=lambda pair: pair.jaccard)[:_SHOWN]:
        if pair.jaccard < 1:
            say(f"  {100 * pair.jaccard:6.2f}  clip {pair.clip}, object {pair.fid}, second {pair.second}")
    return Exit.COMPLETE


def compare(project: ProjectFolder, first: str, second: str) -> list[Pair]:
    """All masks that both annotators returned.

    Raises:
        DatasetError: there are none.
    """
    project.settings()
    folders = [imported(project, name) for name in (first, second)]
    pairs = []
    common = set(clips_with_masks(folders[0])) & set(clips_with_masks(folders[1]))
    for clip_id in sorted(common):
        scenes = project.clip(clip_id).scenes()
        one, other = (
            {(each.fid, at.second): at.rle for each in masks_in(folder.clip(clip_id)).objects for at in each.seconds}
            for folder in folders
        )
        for fid, at in sorted(one.keys() & other.keys()):
            left, right = (picture(rles[fid, at], scenes.height, scenes.width) for rles in (one, other))
            if (left | right).any():
                pairs.append(Pair(
                    clip=clip_id, fid=fid, second=at, jaccard=float((left & right).sum() / (left | right).sum()),
                    presence_differs=bool(left.any() != right.any()),
                ))  # fmt: skip
    if not pairs:
        raise DatasetError(f"{project.path}: {first} and {second} have no mask in common; import the same export of "
                           "both by refavs-annotate import --annotator NAME")  # fmt: skip
    return pairs

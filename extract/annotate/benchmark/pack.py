"""refavs-annotate pack: the benchmark of a project, in the layout of Ref-AVS Bench.

    OUT/metadata.csv                            vid,uid,split,fid,exp
    OUT/expressions.csv                         uid,grade,dimension,template
    OUT/annotations.json                        where every mask and sentence comes from
    OUT/media/<id>/{frames/{0..9}.jpg,audio.wav}
    OUT/gt_mask/<id>/fid_<fid>/0000{0..9}.png

Each accepted sentence makes a row. A sentence about nothing belongs to a copy of its clip: `null_m-<id>` (muted),
`null_c-<id>` (with another clip's sound) or `null_s-<id>` (with its own sound).
"""

from argparse import Namespace
from collections import Counter
from pathlib import Path

from extract.annotate.problems import ended
from extract.annotate.records import ProjectFolder
from refavs.errors import ConfigError
from refavs.files.whole_folder import refuse_full
from refavs.terminal.command import CommandParser
from refavs.terminal.printing import say

NAME = "refavs-annotate pack"


def add_arguments(parser: CommandParser) -> None:
    """The options of the step."""
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="new folder for the benchmark")
    add("--splits", default="70/10/20", metavar="A/B/C", help="shares of train, val and test_s, by video; a video "
        "keeps the split that it first got")  # fmt: skip
    add("--unseen", metavar="NAME,...", help="categories held out of training: clips that show one are in test_u")
    add("--clips", metavar="ID,...", help="these clips only")


def run(args: Namespace) -> int:
    """Packs; returns the exit status."""
    from extract.annotate.benchmark.checks import checks
    from extract.annotate.benchmark.packing import collect, pack
    from extract.annotate.benchmark.splitting import Splitting
    from extract.annotate.exchange.exports import chosen_clips
    from refavs.data.layouts.ref_avs_bench import SECONDS

    project = ProjectFolder(args.project)
    out = args.out.resolve()
    refuse_full(out)
    seconds = project.settings().seconds
    if seconds != len(SECONDS):
        raise ConfigError(f"{project.path} has clips of {seconds} seconds; the layout of Ref-AVS has {len(SECONDS)}. "
                          f"Make a new project by refavs-annotate propose --seconds {len(SECONDS)}")  # fmt: skip
    splitting = Splitting.of(args.splits, args.unseen)
    clip_ids, damaged = chosen_clips(project, args.clips)
    clips, problems = collect(project, clip_ids, splitting)
    pack(project, out, clips)
    counts = Counter(split for clip in clips for _, split in clip.rows())
    say(f"{args.out}: {len(clips)} clips, {sum(counts.values())} sentences ("
        + ", ".join(f"{split} {count}" for split, count in sorted(counts.items())) + ")")  # fmt: skip
    odd = sum(len(checks(clip.masks, clip.scenes)) for clip in clips)
    say(f"{odd} odd masks to look at, under checks in {args.out / 'annotations.json'}")
    return ended(NAME, [*damaged, *problems])

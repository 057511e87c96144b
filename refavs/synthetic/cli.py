"""refavs-synth: writes the synthetic benchmark."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from refavs.choices import DEFAULT_VIDEOS
from refavs.errors import ConfigError
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-synth; returns the exit status."""
    return run_command("refavs-synth", lambda: _run(build_parser().parse_args(argv)))


def build_parser() -> CommandParser:
    """The command line of refavs-synth."""
    parser = CommandParser(
        prog="refavs-synth",
        description="Writes a synthetic benchmark in the layout of Ref-AVS Bench: clips of moving, sounding shapes, "
        "expressions that each need the cues they name, masks, and some clips as .mp4 with sound.",
        epilog="example: refavs-synth data/synth --clips 240 --seed 0",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist yet, or be empty")
    parser.add_argument(
        "--clips", type=int, default=100, metavar="N", help="clips; null references add about a quarter as many copies"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="decides every byte except those of videos")
    parser.add_argument("--size", type=int, default=96, metavar="PX", help="side of the square frames in pixels")
    videos = parser.add_mutually_exclusive_group()
    videos.add_argument(
        "--videos", default=str(DEFAULT_VIDEOS), metavar="K",
        help="also write the first K clips as .mp4: all, none or K",
    )
    videos.add_argument(
        "--no-videos", dest="videos", action="store_const", const="none", default=argparse.SUPPRESS,
        help="same as --videos none",
    )
    videos.add_argument(
        "--cut-films", action="store_true",
        help="write films with a cut instead, their objects and their true masks, to try refavs-annotate on",
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    from refavs.synthetic.cut_films import write_cut_films
    from refavs.synthetic.write import write_benchmark

    started = time.monotonic()
    if args.cut_films:
        write_cut_films(args.out, args.clips, seed=args.seed, size=args.size)
        say(f"{args.out}: {args.clips} films with a cut, names.csv, facts.csv and truth.json in "
            f"{time.monotonic() - started:.1f} s")  # fmt: skip
        return Exit.COMPLETE
    summary = write_benchmark(
        args.out, args.clips, seed=args.seed, size=args.size, videos=_num_videos(args.videos, args.clips)
    )
    if summary is None:
        say(f"{args.out}: already complete, nothing to do")
        return Exit.COMPLETE
    splits = ", ".join(f"{split} {count}" for split, count in summary.expressions.items())
    say(
        f"{args.out}: {summary.num_clips} clips and {summary.num_nulls} null copies, {summary.num_videos} videos, "
        f"{sum(summary.expressions.values())} expressions ({splits}) in {time.monotonic() - started:.1f} s"
    )
    return Exit.COMPLETE


def _num_videos(text: str, num_clips: int) -> int:
    named = {"all": num_clips, "none": 0}
    if text in named:
        return named[text]
    if not text.isdecimal():
        raise ConfigError(f"--videos is {text!r}; give all, none or a number of clips, e.g. --videos {DEFAULT_VIDEOS}.")
    return int(text)

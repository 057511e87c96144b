"""refavs-predict: segments the objects that expressions refer to in videos of any length, with a trained run."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refavs.errors import ConfigError, DatasetError
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from experiments.predict.jobs import Job
    from experiments.predict.segmenter import Segmenter
    from experiments.predict.stored_features import StoredFeatures

NAME = "refavs-predict"
EPILOG = """examples:
  refavs-predict guitar.mp4 "the object making a sound before the man" --run runs/smoke/trials/0123456789abcdef
  refavs-predict films/ "the louder instrument" --run models:/eemc@best --tracking-uri http://localhost:5000 --fps 2

writes OUT/1/0.png, 1.png, ... (255 where the object is, at the size of the video), OUT/1/masks.jsonl (the same as COCO
run lengths), OUT/1/overlay.mp4 and OUT/prediction.json; for several videos a folder OUT/NAME for each. The same command
again keeps the videos that are finished.
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{NAME} VIDEO|FOLDER... EXPRESSION... --run RUN [options]\n       {NAME} --csv TABLE --run RUN",
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="VIDEO|FOLDER... EXPRESSION", help="videos (.mp4, .m4v, .mkv, .webm, .mov, .avi, "
        ".ts, .m2ts, .mts) or folders of them, then one or more sentences in quotes")  # fmt: skip
    add("--csv", type=Path, metavar="TABLE", help="a table with the columns video and expression instead; its paths "
        "start at its folder")  # fmt: skip
    add("--run", required=True, help="a trial's folder, SWEEP/trials/KEY, or with --tracking-uri an MLflow run's id or "
        "a registered model, models:/NAME@alias")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="where to write (default: the name of the VIDEO without its ending, or "
        "predictions)")  # fmt: skip
    add("--fps", type=float, metavar="N", help="frames per second to segment (default: those of the run's store)")
    add("--start", type=float, default=0.0, metavar="S", help="second of the video to start at (default: 0)")
    add("--end", type=float, metavar="S", help="second of the video to end at (default: its end)")
    add("--memory", type=_memory, default="all", metavar="all|N", help="seconds that a head with a memory "
        "looks back on: all earlier ones, or the last N (default: all)")  # fmt: skip
    add("--store", help="a store whose features of the first seconds of a video are used where it has the video")
    add("--add-to-store", action="store_true", help="first add each video that the --store lacks")
    add("--no-overlay", action="store_true", help="write no overlay videos")
    add("--tracking-uri", help="the MLflow server or database that has the run; default: "
        "MLFLOW_TRACKING_URI")  # fmt: skip
    add("--weights-dir", type=Path, metavar="DIR", help="the encoders' weights, as for refavs-extract")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where encoders and head run; auto takes a GPU if there is one (default: auto)")  # fmt: skip
    return parser


def _memory(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor a number of seconds from 1 on")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-predict; returns the exit status."""
    parser = build_parser()
    args = parser.parse_intermixed_args(argv)
    if not args.words and args.csv is None:
        parser.error("name a VIDEO and an EXPRESSION, or a --csv")
    return run_command(NAME, lambda: _predict(args))


def _predict(args: argparse.Namespace) -> int:
    share_processors()
    from experiments.predict.jobs import jobs_of
    from experiments.predict.outputs import is_ours
    from experiments.predict.segmenter import load, refuse_unusable
    from experiments.predict.stored_features import StoredFeatures

    jobs = jobs_of(args.words, args.csv)
    if args.add_to_store and args.store is None:
        raise ConfigError("--add-to-store needs a store; name one by --store")
    refuse_unusable(jobs[0].expressions, 1.0 if args.fps is None else args.fps, args.memory)
    if not 0 <= args.start < (args.start + 1 if args.end is None else args.end):
        raise ConfigError(f"--start {args.start:g} --end {args.end}; accepted: a start from 0 on, before the end")
    single = len(jobs) == 1 and (args.csv is not None or not Path(args.words[0]).is_dir())
    root = args.out or Path(jobs[0].video.stem if single else "predictions")
    outs = [root if single else root / job.name for job in jobs]
    for out in outs:
        if not is_ours(out):
            raise ConfigError(f"{out} holds other files; name a new folder by --out")
    segmenter = load(args.run, tracking_uri=args.tracking_uri, weights_dir=args.weights_dir, device=args.device)
    stored = None if args.store is None else StoredFeatures(args.store, segmenter.run)
    failed = 0
    for job, out in zip(jobs, outs, strict=True):
        try:
            if stored is not None and args.add_to_store and stored.of(job.video) is None:
                stored.add(job.video)
            _predict_video(args, segmenter, stored, job, out)
        except DatasetError as error:
            if single:
                raise
            warn(f"{NAME}: {' '.join(str(error).split())}")
            failed += 1
    if segmenter.run.random_features:
        warn("RANDOM FEATURES: at least one encoder of this run has random weights; the result says nothing about the "
             "method")  # fmt: skip
    return Exit.FAILURES if failed else Exit.COMPLETE


def _predict_video(
    args: argparse.Namespace, segmenter: "Segmenter", stored: "StoredFeatures | None", job: "Job", out: Path
) -> None:
    from experiments.predict.outputs import finished, write_predictions
    from extract.media.film_stream import FilmStream, Span
    from refavs.terminal.console import ProgressBar

    fps = segmenter.fps if args.fps is None else args.fps
    film = FilmStream(job.video.absolute(), Span(start_s=args.start, end_s=args.end, rate=fps))
    status = job.video.stat()
    request = {
        "video": str(job.video.absolute()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns,
        "run": args.run, "checkpoint": segmenter.run.digest, "expressions": list(job.expressions), "fps": fps,
        "start_s": args.start, "end_s": args.end, "memory": args.memory, "overlays": not args.no_overlay,
    }  # fmt: skip
    told = finished(out, request)
    if told is not None:
        say(f"{job.video}: finished before, kept")
    else:
        passes = len(job.expressions) * (1 if args.no_overlay else 2)
        with ProgressBar(job.video.name, film.num_steps * passes, "masks") as bar:
            told = write_predictions(
                out, segmenter, film, job.expressions, request, bar.advance, overlays=not args.no_overlay, stored=stored
            )
    _show(told, out)


def _show(told: Mapping[str, Any], out: Path) -> None:
    """Prints for each expression how many of the masks show the object, and what was odd about the video."""
    from extract.media.notes import NOTES

    for number, one in enumerate(told["predictions"], start=1):
        shown, area_px = sum(area > 0 for area in one["areas_px"]), told["size"][0] * told["size"][1]
        share = 100 * max(one["areas_px"]) / area_px
        found = f"in {shown} of {told['num_frames']} pictures, up to {share:.1f} % of the frame"
        if one["absent"]:
            found = "nothing in the video; all masks are empty"
        cut = "; too long, its end was not read" * one["truncated"]
        say(f"{number}  {json.dumps(one['expression'], ensure_ascii=False)}: {found}{cut}")
    if told["silent"]:
        say("the video has no sound track and counts as silent")
    for note in told["notes"]:
        say(f"noted: {NOTES[note]}")
    say(f"masks{' and overlay videos' * told['request']['overlays']}: {out}")

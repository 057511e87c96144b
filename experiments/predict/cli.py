"""refavs-predict: segments the object that an expression refers to in a video, with a trained run."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refavs.errors import ConfigError
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.predict.trained_run import TrainedRun
    from extract.media.clip import Media

NAME = "refavs-predict"
SEAL, OVERLAY = "prediction.json", "overlay.mp4"
EPILOG = """example:
  refavs-predict guitar.mp4 "the object making a sound before the man" --run runs/smoke/trials/0123456789abcdef

writes OUT/1/0.png .. 9.png (255 where the object is, at the size of the video), OUT/1/overlay.mp4, OUT/prediction.json
"""


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME, description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="a video (.mp4, .m4v, .mkv, .webm, .mov, .avi, .ts, .m2ts, .mts); "
        "only its first 10 s are used")  # fmt: skip
    add("expressions", nargs="+", metavar="EXPRESSION", help="one or more sentences in quotes")
    add("--run", required=True, help="a trial's folder, SWEEP/trials/KEY, or an MLflow run's id with --tracking-uri")
    add("--out", type=Path, metavar="DIR", help="where to write (default: VIDEO's name without its ending)")
    add("--tracking-uri", help="the MLflow server or database that has the run")
    add("--weights-dir", type=Path, metavar="DIR", help="the encoders' weights, as for refavs-extract")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where encoders and head run; auto takes a GPU if there is one (default: auto)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-predict; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: _predict(args))


def _predict(args: argparse.Namespace) -> int:
    share_processors()
    from experiments.predict.segmenter import VideoPass
    from experiments.predict.trained_run import TrainedRun, checkpoint_of
    from refavs.files.staged import is_half_written
    from refavs.machine.accelerator import local_gpus_seen

    seen = local_gpus_seen(args.device, lambda line: warn(f"{NAME}: {line}"))
    device = "cuda" if seen and args.device != "cpu" else "cpu"
    if not all(text.strip() for text in args.expressions):
        raise ConfigError("an EXPRESSION is empty; write each sentence in quotes, for example \"the sounding object\"")
    out = args.out or Path(args.video.stem)
    ours = (out / SEAL).is_file() or is_half_written(out)
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} holds other files; name a new folder by --out")
    run = TrainedRun(checkpoint_of(args.run, args.tracking_uri), args.weights_dir, device)
    media = _read(run, args.video)
    predictions = VideoPass(run, args.expressions).next(media, run.streams.seconds)
    found = _write(out, args.video, args.run, media, predictions)
    _show(found, media, out)
    if run.random_features:
        warn("RANDOM FEATURES: at least one encoder of this run has random weights; the result says nothing about the "
             "method")  # fmt: skip
    return Exit.COMPLETE


def _read(run: "TrainedRun", video: Path) -> "Media":
    """Reads the frames and the audio that the encoders need from a video."""
    from experiments.predict.overlay_video import SOUND_HZ
    from extract.media.clip import read_media
    from refavs.config import nearest
    from refavs.data.layouts import Clip
    from refavs.data.layouts.videos import VIDEO_SUFFIXES
    from refavs.errors import DatasetError

    if video.suffix.lower() not in VIDEO_SUFFIXES:
        raise DatasetError(
            f"{video} is not named like a video; {nearest(video.suffix, VIDEO_SUFFIXES)}, accepted: "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}"
        )
    clip, (frames, rates_hz) = Clip(id=video.stem, video=video.absolute()), run.streams.inputs()
    return read_media(clip, run.streams.seconds, frames, {*rates_hz, SOUND_HZ})


def _write(
    out: Path, video: Path, run: str, media: "Media", predictions: "Iterable[tuple[str, Tensor]]"
) -> list[dict[str, Any]]:
    """Writes the predictions, all or none; returns their entries in prediction.json."""
    from PIL import Image

    from experiments.predict.overlay_video import SOUND_HZ, frame_size, write_overlay_video
    from experiments.predict.segmenter import masks_of
    from experiments.records.record_types import write_json
    from refavs.files.staged import staged

    height, width = frame_size(video)
    found: list[dict[str, Any]] = []
    with staged(out, SEAL, _names_of) as folder:
        for number, (text, probs) in enumerate(predictions, start=1):
            (folder / str(number)).mkdir()
            masks, shares = masks_of(probs, height, width), (probs > 0.5).float().mean(dim=(1, 2)).tolist()
            for second, mask in enumerate(masks):
                Image.fromarray(mask).convert("L").save(folder / str(number) / f"{second}.png")
            write_overlay_video(folder / str(number) / OVERLAY, video, masks, media.sound[SOUND_HZ])
            found.append({"expression": text, "folder": str(number), "shares": shares})
        write_json(folder / SEAL, {
            "video": str(video), "run": run, "silent": media.silent, "repeated_from_s": media.repeated_from_s,
            "notes": list(media.notes), "predictions": found,
        })  # fmt: skip
    return found


def _names_of(seal: Path) -> Iterator[str]:
    """The files that a prediction.json lists; none if it is not one of ours."""
    try:
        predictions = json.loads(seal.read_text("utf-8"))["predictions"]
        places = [(str(int(one["folder"])), len(one["shares"])) for one in predictions]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for folder, num_seconds in places:
        yield from (f"{folder}/{name}" for name in (OVERLAY, *(f"{second}.png" for second in range(num_seconds))))


def _show(predictions: Sequence[Mapping[str, Any]], media: "Media", out: Path) -> None:
    """Prints for each expression the mask's share of each second's frame, in percent."""
    from extract.media.notes import NOTES

    for number, prediction in enumerate(predictions, start=1):
        shares = [f"{100 * share:.1f}" if share else "-" for share in prediction["shares"]]
        found = f"{' '.join(shares)} % of the frame, by second" if any(prediction["shares"]) else "nothing in the video"
        say(f"{number}  {json.dumps(prediction['expression'], ensure_ascii=False)}: {found}")
    if media.silent:
        say("the video has no sound track and counts as silent")
    if media.repeated_from_s is not None:
        say(f"the picture ends early: its last frame is repeated from second {media.repeated_from_s} on")
    for note in media.notes:
        say(f"noted: {NOTES[note]}")
    say(f"masks and overlay videos: {out}")

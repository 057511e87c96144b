"""refavs-annotate propose: the media and scenes of each clip, and candidate masks of the objects in a table."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.annotate.choices import (
    DETECTOR,
    DETECTORS,
    STAND_IN_HELP,
    TRACKER,
    TRACKERS,
    add_machine_arguments,
    chosen_resources,
    chosen_setup,
    detector_named,
    tracker_named,
)
from extract.annotate.records import CANDIDATES, ClipFiles, Project, ProjectFolder, Request
from refavs.choices import LAYOUTS
from refavs.errors import ConfigError, DatasetError
from refavs.files.path_text import path_text
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, Exit
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from extract.annotate.models import Detector, Tracker
    from extract.annotate.names import Names
    from extract.encoders.protocol import EncoderSetup
    from refavs.data.layouts import Source

NAME = "refavs-annotate propose"
CUTS = ("auto", "pyscenedetect", "transnetv2", "colour", "none")
SECONDS = 10


def add_arguments(parser: CommandParser) -> None:
    """The options of the step."""
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a folder of videos, a benchmark, or another layout")
    add("--names", type=Path, metavar="CSV", required=True, help="the objects: columns vid,name; by choice fid (the "
        "object's number in its clip), pivot (the second in which it is clearest) and its box there x0,y0,x1,y1")
    add("--layout", metavar="NAME", help=f"how SOURCE is laid out: {', '.join(LAYOUTS)} or that of an installed "
        "package; default: the one that recognises it")  # fmt: skip
    add("--seconds", type=int, metavar="N", help=f"seconds of a clip; default: PROJECT's, and {SECONDS} for a new one")
    add("--detector", metavar="NAME", default=DETECTOR, help=f"{', '.join(DETECTORS)}, {STAND_IN_HELP}")
    add("--threshold", type=float, metavar="P", default=0.25, help="least score of a box")
    add("--text-threshold", type=float, metavar="P", default=0.25, help="least score of a word of a label")
    add("--tracker", metavar="NAME", default=TRACKER, help=f"makes the masks: {', '.join(TRACKERS)}, "
        f"{STAND_IN_HELP}")  # fmt: skip
    add("--cuts", choices=CUTS, default="auto", help="how scenes are found: PySceneDetect or TransNetV2 (packages of "
        "their own), the change of colour, or not at all; auto: PySceneDetect if it is installed, else colour")
    add("--cut-threshold", type=float, metavar="X", help="of the method; default: 27 for changes of colour, 0.5 for "
        "TransNetV2; lower finds more cuts")  # fmt: skip
    add_machine_arguments(parser)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is known of a clip before it is proposed."""

    clip: Any
    requests: tuple[Request, ...]


def run(args: Namespace) -> int:
    """Proposes what is missing; returns the exit status."""
    share_processors()
    from extract.annotate.clip_jobs import ClipJob, run_clips
    from extract.annotate.names import read_names
    from extract.annotate.proposing import ProposeStep
    from extract.annotate.scenes import cuts_named
    from refavs.data.layouts import read_source

    folder = ProjectFolder(args.project)
    known = folder.settings() if folder.exists else None
    seconds = args.seconds or (known.seconds if known else SECONDS)
    for option, value in (("--seconds", seconds), ("--threshold", args.threshold)):
        if value <= 0:
            raise ConfigError(f"{option} is {value}; accepted: above 0")
    resources = chosen_resources(args, NAME)
    setup = chosen_setup(args, resources)

    def models(setup: "EncoderSetup") -> "tuple[Detector, Tracker]":
        detector = detector_named(args.detector, setup, args.threshold, args.text_threshold)
        return detector, tracker_named(args.tracker, setup)

    detector, tracker = models(setup)
    cuts = cuts_named(args.cuts, args.cut_threshold)
    source = read_source(args.source, layout=args.layout)
    names = read_names(args.names, source.clips, seconds)
    _report(source, names)
    jobs = [ClipJob(clip=clip.id, work=Work(clip=clip, requests=requests))
            for clip, requests in _wanted(folder, source, names)]  # fmt: skip
    if args.dry_run:
        from extract.annotate.dry_run import dry_run

        return dry_run([job.work.requests for job in jobs], len(names.rows), seconds, models, setup, resources,
                       ("frame",))  # fmt: skip
    settings = Project(
        source=path_text(source.root), layout=source.layout, seconds=seconds,
        models={"detector": {"name": args.detector, "revision": detector.revision()},
                "tracker": {"name": args.tracker, "revision": tracker.revision()}},
        options={"threshold": args.threshold, "text_threshold": args.text_threshold, "cuts": cuts.method,
                 "cut_threshold": cuts.threshold},
    )  # fmt: skip
    settle(folder, known, settings)
    if not jobs:
        say(f"nothing to do: all {len(names.rows)} clips of {args.names} are proposed in {folder.path}")
        return Exit.FAILURES if names.problems else Exit.COMPLETE
    step = ProposeStep(project=folder.path, seconds=seconds, detector=detector, tracker=tracker, cuts=cuts.method,
                   cut_threshold=args.cut_threshold)  # fmt: skip
    status = run_clips(step, jobs, resources, NAME)
    return status or (Exit.FAILURES if names.problems else Exit.COMPLETE)


def _report(source: "Source", names: "Names") -> None:
    for line in (*names.remarks, *names.problems):
        warn(f"{NAME}: {line}")
    unnamed = [clip.id for clip in source.clips if clip.id not in names.rows]
    if unnamed:
        more = ", ..." if len(unnamed) > 3 else ""
        say(f"{len(unnamed)} clips of {source.root} are not in the table and are left out: "
            f"{', '.join(unnamed[:3])}{more}")  # fmt: skip


def _wanted(folder: ProjectFolder, source: "Source", names: "Names") -> list[tuple[Any, tuple[Request, ...]]]:
    """The clips that lack something, with the objects that the table asks for."""
    from extract.annotate.names import numbered

    found = []
    for clip in source.clips:
        rows = names.rows.get(clip.id)
        if rows is None:
            continue
        earlier = answered(folder.clip(clip.id))
        requests = numbered(rows, earlier or ())
        if requests != earlier:
            found.append((clip, requests))
    return found


def answered(files: ClipFiles) -> tuple[Request, ...] | None:
    """The requests that a clip's candidates answer; None if there are none that can be read."""
    try:
        return files.candidates().requests if (files.folder / CANDIDATES).exists() else None
    except DatasetError:  # the step meets it again and lists the clip
        return None


def settle(folder: ProjectFolder, known: Project | None, wanted: Project) -> None:
    """Writes the settings of a new project, or refuses to mix two kinds of candidates in one.

    Raises:
        ConfigError: the project was made with other models, thresholds or from another source.
    """
    if known is None:
        folder.write(wanted)
        return
    told = {name: _shown(known, name) for name in _KEPT}
    other = {name: _shown(wanted, name) for name in _KEPT if _shown(wanted, name) != told[name]}
    if other:
        name, value = next(iter(other.items()))
        raise ConfigError(f"{folder.path} was made with {name} {told[name]}, this run has {value}; give the same, or "
                          "name a new PROJECT")  # fmt: skip


_KEPT = ("source", "layout", "seconds", "detector", "threshold", "text_threshold", "cuts", "cut_threshold")


def _shown(settings: Project, name: str) -> Any:
    if name in ("source", "layout", "seconds"):
        return getattr(settings, name)
    if name in settings.options:
        return settings.options[name]
    model: Mapping[str, str] = settings.models.get(name, {})
    return " ".join(model.values())[:60]

"""refavs-annotate track: masks of every second, from the chosen candidates and the frames that people corrected."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

from extract.annotate.choices import (
    STAND_IN_HELP,
    TRACKERS,
    add_machine_arguments,
    chosen_resources,
    chosen_setup,
    tracker_named,
)
from extract.annotate.records import CANDIDATES, Project, ProjectFolder
from refavs.errors import ConfigError, DatasetError, WeightsError
from refavs.files.path_text import path_of
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser
from refavs.terminal.printing import say

NAME = "refavs-annotate track"


def add_arguments(parser: CommandParser) -> None:
    """The options of the step."""
    add = parser.add_argument
    add("--tracker", metavar="NAME", help=f"{', '.join(TRACKERS)}, {STAND_IN_HELP}; default: the one that made the "
        "candidates")  # fmt: skip
    add("--store", metavar="STORE", help="a store with a stream of the tracker's encoder: its features are read there "
        "instead of being computed")  # fmt: skip
    add_machine_arguments(parser)


def run(args: Namespace) -> int:
    """Tracks the clips whose candidates or corrected frames have changed; returns the exit status."""
    share_processors()
    from extract.annotate.clip_jobs import ClipJob, run_clips
    from extract.annotate.tracking import TrackStep

    folder = ProjectFolder(args.project)
    settings = folder.settings()
    resources = chosen_resources(args, NAME)
    setup = chosen_setup(args, resources)
    name = args.tracker or settings.models.get("tracker", {}).get("name", "")
    tracker = tracker_named(name, setup)
    clips = [clip for clip in folder.clips() if (folder.clip(clip).folder / CANDIDATES).exists()]
    if not clips:
        raise DatasetError(f"{folder.path} has no candidates yet; run refavs-annotate propose first")
    revision = _revision(tracker, args.dry_run)
    step = TrackStep(
        project=folder.path, tracker=tracker, revision=revision, source=path_of(settings.source),
        layout=settings.layout, store=None if args.dry_run else _store(args.store, tracker),
    )  # fmt: skip
    jobs = [ClipJob(clip=clip) for clip in clips if not step.is_done(clip)]
    if args.dry_run:
        from extract.annotate.dry_run import dry_run

        requests = [folder.clip(job.clip).candidates().requests for job in jobs]
        return dry_run(requests, len(clips), settings.seconds, lambda setup: [tracker_named(name, setup)], setup,
                       resources, ("frame", "object") if args.store is None else ("object",))  # fmt: skip
    _note(folder, settings, name, revision)
    if not jobs:
        say(f"nothing to do: all {len(clips)} clips of {folder.path} are tracked")
        return 0
    return run_clips(step, jobs, resources, NAME)


def _revision(tracker: Any, dry: bool) -> str:
    """The stamp of the weights; a dry run does without, and then takes all clips for undone."""
    try:
        return tracker.revision()
    except WeightsError:
        if not dry:
            raise
        return "not on this machine"


def _store(location: str | None, tracker: Any) -> Any:
    """The features in a store."""
    if location is None:
        return None
    from extract.annotate.sam2_masks import MAPS, SAM2_LEVELS, Sam2Masks
    from extract.annotate.store_maps import StoredMaps

    if not isinstance(tracker, Sam2Masks):
        raise ConfigError(f"--store needs a tracker with an encoder, one of {', '.join(TRACKERS)}; leave it out")
    return StoredMaps.open(location, tracker.encoder, SAM2_LEVELS, MAPS)


def _note(folder: ProjectFolder, settings: Project, name: str, revision: str) -> None:
    """Records the tracker among the project's models."""
    known = {"name": name, "revision": revision}
    if settings.models.get("masks") != known:
        folder.write(replace(settings, models={**settings.models, "masks": known}))

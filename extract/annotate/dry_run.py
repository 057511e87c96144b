"""--dry-run of a step: what it would do and how long that takes; writes and downloads nothing, loads no weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

from extract.annotate.models import Model
from extract.annotate.records import Request
from extract.encoders.protocol import EncoderSetup
from extract.encoders.weights import NotFetched
from extract.pipeline.ray_pool import PoolResources
from refavs.errors import WeightsError
from refavs.terminal.command import Exit
from refavs.terminal.printing import say


def dry_run(
    clips: Sequence[Sequence[Request]], num_clips: int, seconds: int, make: Callable[[EncoderSetup], Sequence[Model]],
    setup: EncoderSetup, resources: PoolResources, computes: Sequence[str] = ("frame", "object"),
) -> int:  # fmt: skip
    """Prints counts, weights and hours; the exit status says whether a run would find its weights.

    Args:
        clips: the objects of each clip that a run would do.
        num_clips: of the table or the project.
        make: the models of a run, from the source of their weights.
        computes: what a run computes, as `Model.rehearse` names it.
    """
    fids = [{row.fid for row in rows} for rows in clips]
    num_objects = sum(map(len, fids))
    say(f"{len(clips)} of {num_clips} clips to do, with {num_objects} objects and {len(clips) * seconds} frames "
        "(nothing was written)")  # fmt: skip
    lacking = _weights(make(setup))
    if clips:
        blank = replace(setup, weights=replace(setup.weights, kind="random", seed=None))
        told = list(chain.from_iterable(model.rehearse(computes).items() for model in make(blank)))
        each = {name: sum(value for other, value in told if other == name) for name in computes}
        clip_s = seconds * (each.get("frame", 0.0) + each.get("object", 0.0) * num_objects / len(clips))
        workers = resources.num_workers or 1
        if told:
            parts = ", ".join(f"{value:.2f} s {'an object and frame' if name == 'object' else 'a frame'}"
                              for name, value in each.items())  # fmt: skip
            say(f"about {clip_s:.0f} s a clip, {clip_s * len(clips) / workers / 3600:.2f} hours with {workers} workers "
                f"on this machine's {setup.device} (measured now: {parts})")  # fmt: skip
    return Exit.USAGE if lacking else Exit.COMPLETE


def _weights(models: Sequence[Model]) -> bool:
    """Prints what is missing; returns whether a run ends for it."""
    lacking = False
    for part in chain.from_iterable(model.weight_parts() for model in models):
        try:
            part.find()
        except NotFetched as error:
            say(f"not on this machine, a run downloads it: {part.name}, {error}")
        except WeightsError as error:
            say(f"missing, a run ends here: {part.name}: {error}")
            lacking = True
    return lacking

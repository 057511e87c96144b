"""refavs-extract: frozen features of a benchmark or a folder of videos, into a store."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.choices import LEVELS, PRESETS
from refavs.choices import DEVICES, LAYOUTS, MASK_RULES, PRECISIONS, MaskRule, Precision
from refavs.errors import ConfigError
from refavs.machine.processors import share_processors
from refavs.terminal.command import CommandParser, run_command
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from extract.pipeline.extraction import Run
    from refavs.store.backends.base import Folder
    from refavs.store.format.schema import StoreSchema

NAME = "refavs-extract"


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME, description="Extracts the frozen features of a source into a store; only what is missing there.",
        formatter_class=_Formatter,
        epilog="example:\n  refavs-extract videos/ features.zarr --preset tiny --expressions questions.csv\n\n"
        "exit status: 0 complete, 2 bad input, 3 finished but some clips failed (listed), 130 interrupted",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", nargs="?",
        help="folder of one of the layouts: benchmark root (with metadata.csv), a folder of videos, a plug-in's")
    add("store", metavar="STORE", nargs="?",
        help="folder of the store, or a URL (s3://bucket/name); made where there is none, else completed")  # fmt: skip
    presets = "; ".join(f"{name}, {what}" for name, what in PRESETS.items())
    add("--preset", default="base", metavar="NAME", help=f"the encoders: {presets}")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="weights of the encoders")
    add("--seed", type=int, default=0, help="of random weights")
    add("--weights-dir", type=Path, metavar="DIR",
        help="pretrained weights: mask2former/ (preset imagenet: swin/), roberta-base/ (preset released: "
        "distilroberta-base/) as on the hub, vggish.pth; or visual.safetensors for preset tiny; otherwise the hub's "
        "cache or a download")  # fmt: skip
    add("--levels", metavar="LEVELS",
        help=f"visual maps to store: {','.join(LEVELS)} or one of them; those that the store has are kept; default: "
        "the preset's, backbone for imagenet and released, else pixel_decoder")  # fmt: skip
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="of Swin, pixel decoder and VGGish; auto: "
        "that of STORE, and fp32 for a new one, so that features are the same on every machine")  # fmt: skip
    add("--mask-rule", choices=MASK_RULES[1:], help="what of a mask's PNG is the object: nonzero, every colour but "
        "black; alpha, what is not transparent; index, every palette index, grey value or id but 0; default: that of "
        "STORE, and for a new one what all of them agree on")  # fmt: skip
    add("--expressions", type=Path, metavar="CSV", help="columns video,exp: expressions about a folder of videos")
    add("--layout", metavar="NAME", help=f"how SOURCE is laid out: {', '.join(LAYOUTS)} or that of an installed "
        "package; default: the one that recognises it")  # fmt: skip
    add("--device", choices=DEVICES, default="auto",
        help="where the encoders run; auto takes GPUs where there are any, on this machine or the cluster")  # fmt: skip
    add("--workers", type=int, metavar="N", help="worker processes; default: one per processor, or per GPU")
    add("--gpus-per-worker", type=float, metavar="G", help="share of a GPU for each worker; default: 1 on a GPU")
    add("--batch-clips", type=int, metavar="N",
        help="clips in one pass through the visual encoder; default: 4 on a GPU, 1 on a processor")  # fmt: skip
    add("--log", type=Path, metavar="FILE", help="append JSON lines about the run: speed, stages, failures; default: "
        "no log on a terminal, else STORE.extract.jsonl beside a local store")  # fmt: skip
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")
    add("--check-weights", type=Path, metavar="DIR",
        help="only say which pretrained weights of the preset DIR has, and what to fetch; without SOURCE and STORE")
    add("--dry-run", action="store_true", help="only say what would be done: clips, shards, bytes, time and cost")
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and the example as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-extract; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.check_weights is not None:
        return run_command(NAME, lambda: _check_weights(args))
    if args.store is None:
        parser.error("SOURCE and STORE are required, save with --check-weights DIR")
    if args.dry_run:  # the only run that computes in this process
        share_processors()
    return run_command(NAME, lambda: extract(args))


def _check_weights(args: argparse.Namespace) -> int:
    from extract.encoders.check_weights import check_weights
    from extract.encoders.presets import preset_named

    return check_weights(preset_named(args.preset), args.check_weights)


def extract(args: argparse.Namespace) -> int:
    """Extracts what is missing; returns the exit status."""
    from extract.pipeline.dry_run import dry_run
    from extract.pipeline.extraction import complete
    from extract.pipeline.input_check import check_films, check_masks
    from extract.pipeline.plan import wanted_items
    from refavs.store.columns import EXPRESSIONS_RECORD
    from refavs.store.lease import Lease
    from refavs.store.writer import StoreWriter

    run = prepared(args)
    check_films(run.folder, run.source)
    check_masks(run.folder, wanted_items(run.source, run.mask_rule)["objects"], run.preset.num_frames)
    if args.dry_run:
        return dry_run(run)
    description = run.description()  # reads weights, so that nothing is made where there are none
    with Lease(run.folder, NAME) as lease:
        writer = StoreWriter.open(args.store, **description)
        _warn_of_slow_bf16(run)
        # A source that says nothing about expressions leaves those of the store alone.
        keeps = not len(run.source.expressions) and writer.folder.exists(EXPRESSIONS_RECORD)
        return complete(run, writer, lease, keeps)


def prepared(args: argparse.Namespace) -> "Run":
    """Checks the arguments against each other, the source and the store; changes nothing."""
    from extract.encoders.presets import build_encoders, preset_named
    from extract.encoders.visual import levels_of
    from extract.encoders.weights import WeightSource
    from extract.pipeline.extraction import Run
    from extract.pipeline.input_check import film_rules, has_films
    from extract.pipeline.local_ray import chosen_gpus
    from extract.pipeline.ray_pool import Resources
    from refavs.data.layouts import read_source
    from refavs.store.backends.base import open_folder
    from refavs.store.format.schema import refuse_foreign
    from refavs.store.writer import StoreWriter

    preset = preset_named(args.preset)
    gpus = chosen_gpus(args.device, args.gpus_per_worker, args.address, "--gpus-per-worker", _warn)
    resources = Resources(
        address=args.address, num_workers=args.workers, gpus_per_worker=gpus,
        batch_clips=args.batch_clips,
    )
    weights = WeightSource(kind=args.weights, seed=args.seed, folder=args.weights_dir, fetch=not args.dry_run)
    named = preset.levels if args.levels is None else args.levels.split(",")
    asked = tuple(dict.fromkeys(level.strip() for level in named if level.strip()))
    folder = open_folder(args.store)
    refuse_foreign(folder)
    kept = StoreWriter.attach(args.store).schema if folder.exists("zarr.json") else None
    precision = _precision(args.precision, kept)
    encoders = build_encoders(preset, weights, asked, precision, resources.device)
    has = () if kept is None else levels_of(kept.specs)
    if not set(has) <= set(asked):
        levels = tuple(level for level in LEVELS if level in (*has, *asked))
        encoders = build_encoders(preset, weights, levels, precision, resources.device)
        say(f"{folder.location} has level {' and '.join(has)}; this run keeps it complete as well: "
              f"{', '.join(levels)}")  # fmt: skip
    log = args.log or _log_beside(folder)
    if log is not None and not log.absolute().parent.is_dir() and log.absolute().parent != Path(args.store).absolute():
        raise ConfigError(f"--log {log} cannot be written: there is no folder {log.absolute().parent}; make it first")
    source = read_source(args.source, args.expressions, args.layout)
    films = {"film_rules": film_rules(folder, source)} if has_films(source) else {}
    extraction = {
        "source": str(args.source.absolute()), "layout": source.layout,
        "preset": args.preset, "weights": args.weights, "seed": args.seed,
        "levels": ",".join(level for level in LEVELS if level in encoders.visual.levels),
        "precision": encoders.visual.precision,
        "expressions": None if args.expressions is None else str(args.expressions.absolute()),
        "batch_clips": resources.clips_per_pass, **films,
    }  # fmt: skip
    return Run(folder=folder, source=source, preset=preset, encoders=encoders, resources=resources, log=log,
               mask_rule=_mask_rule(args.mask_rule, kept), extraction=extraction)  # fmt: skip


def _mask_rule(asked: MaskRule | None, store: "StoreSchema | None") -> MaskRule:
    """The rule by which to read masks: as asked; else that of the store."""
    known = "auto" if store is None or store.mask_rule is None else store.mask_rule
    return MASK_RULES[MASK_RULES.index(asked or known)]


def _precision(asked: str, store: "StoreSchema | None") -> Precision:
    """The precision to compute in: as asked; else that of the store; else fp32."""
    known = "fp32" if store is None else store.extraction.get("precision", "fp32")
    wanted = known if asked == "auto" else asked
    if wanted not in PRECISIONS:
        raise ConfigError(f"the store says that it was made with precision {wanted!r}; give one of "
                          f"{', '.join(PRECISIONS)} by --precision")
    return PRECISIONS[PRECISIONS.index(wanted)]


def _warn_of_slow_bf16(run: "Run") -> None:
    from refavs.machine.accelerator import slow_bf16

    if run.encoders.visual.precision == "bf16" and (factor := slow_bf16(run.resources.device)) is not None:
        _warn(f"bf16 takes {factor:.1f} times as long as fp32 on this processor (measured now on a convolution), which "
              "has no instructions for it; --precision fp32 is faster, in a store of its own")


def _warn(line: str) -> None:
    warn(f"{NAME}: {line}")


def _log_beside(folder: "Folder") -> Path | None:
    """Where a run that nobody watches is logged: outside the store, whose bytes it does not change."""
    from refavs.files.partials import MOST_NAME_BYTES
    from refavs.store.backends.base import LocalFolder
    from refavs.store.format.schema import LOG

    if sys.stderr.isatty() or not isinstance(folder, LocalFolder):
        return None
    path = folder.path.with_name(f"{folder.path.name}.{LOG}")
    fits = len(os.fsencode(path.name)) <= MOST_NAME_BYTES
    return path if fits and os.access(path.parent, os.W_OK) else None


if __name__ == "__main__":
    sys.exit(main())

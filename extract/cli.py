"""refavs-extract: extracts frozen features of a benchmark or a folder of videos into a store."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from extract.encoders.presets import PRESETS, preset_named
from refavs.choices import DEVICES, LAYOUTS, MASK_RULES, PRECISIONS, STORED_TYPES, MaskRule, Precision
from refavs.errors import ConfigError
from refavs.files.path_text import path_text
from refavs.machine.processors import share_processors
from refavs.steps import Steps
from refavs.terminal.command import CommandParser, run_command
from refavs.terminal.printing import warn

if TYPE_CHECKING:
    from extract.encoders.weights import WeightSource
    from extract.pipeline.extraction import Extraction
    from refavs.data.layouts import Source
    from refavs.store.backends.base import Folder
    from refavs.store.format.mask_rows import MaskSize
    from refavs.store.format.schema import StoreSchema, StreamSpec

NAME = "refavs-extract"
SECONDS = 10
NATIVE = "native"


def build_parser() -> CommandParser:
    """The command line."""
    parser = CommandParser(
        prog=NAME, description="Extracts the frozen features of a source into a store; computes only what is missing.",
        epilog="examples:\n  refavs-extract videos/ features.zarr --preset tiny --expressions questions.csv\n"
        "  refavs-extract videos/ features.zarr --streams vggish-back-to-back   adds a stream to a store\n\n"
        "exit status: 0 complete, 2 bad input, 3 finished but some clips failed (listed), 130 interrupted",
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", nargs="?",
        help="folder of one of the layouts (--layout)")
    add("store", metavar="STORE", nargs="?",
        help="folder of the store, or a URL (s3://bucket/name); made where there is none, else completed")  # fmt: skip
    presets = "; ".join(f"{name}, {preset.about}" for name, preset in PRESETS.items())
    add("--preset", default="base", metavar="NAME", help=f"a list of streams: {presets}")
    add("--streams", metavar="A,B,C", help="the streams to extract instead of a preset's: ENCODER or ENCODER/LEVEL; "
        "ENCODER@NAME keeps another version of an encoder that the store has, under that name")  # fmt: skip
    add("--levels", metavar="LEVELS", help="levels of visual encoders that have several (backbone, pixel_decoder); "
        "default: the preset's, or all levels of an encoder in --streams")  # fmt: skip
    add("--list-encoders", action="store_true", help="only list the encoders with their input, output and size")
    add("--weights", choices=("pretrained", "random"), default="pretrained", help="weights of the encoders")
    add("--seed", type=int, default=0, help="seed of random weights")
    add("--weights-dir", type=Path, metavar="DIR",
        help="pretrained weights: for each encoder the files of its repository on the hub, in a folder named by the "
        "last part of its id (mask2former-swin-base-ade: mask2former/, swin-base-imagenet: swin/), vggish.pth, "
        "visual.safetensors (tiny-swin); otherwise the hub's cache or a download")  # fmt: skip
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="of visual and audio encoders; auto: that "
        "of the stream in STORE, and fp32 for a new one, so that features are the same on every machine")  # fmt: skip
    add("--dtype", metavar="TYPE", help=f"type of the stored visual streams: {', '.join(STORED_TYPES)}; int8 and "
        "float8 halve the bytes; STREAM=TYPE for one stream, several separated by commas; default: the type that the "
        "stream has in STORE, or the encoder's own for a new stream")  # fmt: skip
    add("--seconds", type=int, metavar="N", help=f"seconds of a clip; default: STORE's, and {SECONDS} for a new one")
    add("--fps", type=float, metavar="N", help="frames per second, each with a mask and the sound of the second that "
        "begins there; default: STORE's, and 1 for a new one")  # fmt: skip
    add("--mask-size", type=_pixels, metavar="PX|native", help="height and width of the stored masks, or native: each "
        "as large as its frame; default: STORE's, and for a new one 384, or 96 with preset tiny")  # fmt: skip
    add("--mask-rule", choices=MASK_RULES[1:], help="which pixels of a mask are the object: nonzero, every colour but "
        "black; alpha, not transparent; index, every palette index, grey value or id except 0; default: that of "
        "STORE, and for a new one what all of them agree on")  # fmt: skip
    add("--expressions", type=Path, metavar="CSV", help="columns video,exp: expressions about "
        "a folder of videos, or about a data set that has none of its own (AVSBench, AVSS)")  # fmt: skip
    add("--layout", metavar="NAME", help=f"how SOURCE is laid out: {', '.join(LAYOUTS)} or that of an installed "
        "package; default: the one that recognises it")  # fmt: skip
    add("--device", choices=DEVICES, default="auto",
        help="where the encoders run; auto takes GPUs where there are any, on this machine or the cluster")  # fmt: skip
    add("--workers", type=int, metavar="N", help="worker processes; default: one per processor, or per GPU")
    add("--gpus-per-worker", type=float, metavar="G", help="share of a GPU for each worker; default: 1 on a GPU")
    add("--batch-clips", type=int, metavar="N",
        help="clips in one pass through the visual encoders; default: 4 on a GPU, 1 on a processor")  # fmt: skip
    add("--clips-per-shard", type=int, metavar="N", help="clips in a shard of a new stream, which is "
        "written and retried as a whole; default: as many as make files of about 256 MiB")  # fmt: skip
    add("--log", type=Path, metavar="FILE", help="append JSON lines about the run: speed, stages, failures; default: "
        "no log on a terminal, else STORE.extract.jsonl beside a local store")  # fmt: skip
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")
    add("--check-weights", type=Path, metavar="DIR",
        help="only list the pretrained weights in DIR, and what to download; without SOURCE and STORE")
    add("--dry-run", action="store_true", help="only print what would be done: clips, shards, bytes, time and cost")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-extract; returns the exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.list_encoders:
        return run_command(NAME, _list_encoders)
    if args.check_weights is not None:
        return run_command(NAME, lambda: _check_weights(args))
    if args.store is None:
        parser.error("SOURCE and STORE are required, except with --list-encoders and --check-weights DIR")
    if args.dry_run:  # the only run that computes in this process
        share_processors()
    return run_command(NAME, lambda: extract(args))


def _list_encoders() -> int:
    from extract.encoders.listing import list_encoders

    return list_encoders()


def _check_weights(args: argparse.Namespace) -> int:
    from extract.encoders.check_weights import check_weights
    from extract.encoders.protocol import EncoderSetup
    from extract.encoders.streams import choose_streams
    from extract.encoders.weights import WeightSource

    setup = EncoderSetup(weights=WeightSource(folder=args.check_weights))
    names, levels = _streams(args)
    return check_weights(choose_streams(names, Steps(SECONDS), lambda name: setup, levels), args.check_weights)


def extract(args: argparse.Namespace) -> int:
    """Extracts what is missing and returns the exit status."""
    from extract.pipeline.dry_run import dry_run
    from extract.pipeline.extraction import complete
    from extract.pipeline.input_check import check_films, check_masks
    from extract.pipeline.plan import object_units
    from refavs.store.lease import Lease
    from refavs.store.writer import StoreWriter

    run = prepared(args)
    check_films(run.folder, run.source)
    check_masks(run.folder, object_units(run.source, run.mask_rule), run.streams.steps)
    if args.dry_run:
        return dry_run(run)
    specs = run.streams.specs()  # reads the weights files first, so that nothing is created if they are missing
    with Lease(run.folder, NAME) as lease:
        writer = StoreWriter.open(args.store, run.schema(specs))
        _warn_of_slow_bf16(specs.values(), run.resources.device)
        return complete(run, writer, lease)


def prepared(args: argparse.Namespace, weights_of: "Callable[[str], WeightSource] | None" = None) -> "Extraction":
    """Checks the arguments against each other, the source and the store; changes nothing.

    Args:
        args: the command line.
        weights_of: returns the weights source of an encoder; by default the one in `args`.
    """
    from extract.encoders.networks import refuse_precision
    from extract.encoders.protocol import EncoderSetup
    from extract.encoders.stored_types import StoredTypes
    from extract.encoders.streams import StreamSet, choose_streams
    from extract.encoders.weights import WeightSource
    from extract.pipeline.extraction import Extraction
    from extract.pipeline.input_check import film_rules, has_films
    from extract.pipeline.local_ray import chosen_gpus
    from extract.pipeline.ray_pool import PoolResources
    from refavs.data.layouts import read_source
    from refavs.store.columns import table_record
    from refavs.store.folders import open_folder
    from refavs.store.format.schema import refuse_foreign, schema_at

    names, levels = _streams(args)
    gpus = chosen_gpus(args.device, args.gpus_per_worker, args.address, "--gpus-per-worker", _warn)
    resources = PoolResources(
        address=args.address, num_workers=args.workers, gpus_per_worker=gpus, batch_clips=args.batch_clips,
    )
    folder = open_folder(args.store)
    refuse_foreign(folder)
    kept = schema_at(folder) if folder.exists("zarr.json") else None
    seconds = _at_least_1("--seconds", args.seconds, kept.seconds if kept else SECONDS)
    steps = Steps(seconds, args.fps if args.fps is not None else kept.fps if kept else 1.0)
    per_shard = None if args.clips_per_shard is None else _at_least_1("--clips-per-shard", args.clips_per_shard, 1)
    given = WeightSource(kind=args.weights, seed=args.seed, folder=args.weights_dir, fetch=not args.dry_run)

    types = StoredTypes(args.dtype, {id: stream.fingerprint for id, stream in (kept.streams if kept else {}).items()})

    def choose(weights_of: Callable[[str], WeightSource]) -> StreamSet:
        def setup(name: str) -> EncoderSetup:
            precision = _precision(args.precision, name, kept)
            refuse_precision(precision, resources.device)
            return EncoderSetup(weights=weights_of(name), precision=precision, device=resources.device)

        return replace(choose_streams(names, steps, setup, levels, types), clips_per_shard=per_shard)

    streams = choose(weights_of or (lambda name: given))
    log = args.log or _log_beside(folder)
    if log is not None and not log.absolute().parent.is_dir() and log.absolute().parent != Path(args.store).absolute():
        raise ConfigError(f"--log {log} cannot be written: there is no folder {log.absolute().parent}; make it first")
    source = read_source(args.source, args.expressions, args.layout)
    for clip in source.clips:
        clip.pictures(steps)  # refuses a rate that they do not have
    rule = _mask_rule(args.mask_rule, kept)
    films = {"film_rules": film_rules(folder, source)} if has_films(source) else {}
    extraction = {
        "source": path_text(args.source), "layout": source.layout, "batch_clips": resources.clips_per_pass,
        **films,
        "expressions": None if args.expressions is None else path_text(args.expressions),
    }  # fmt: skip
    # A source without expressions leaves those of the store unchanged.
    keeps = not len(source.expressions) and folder.exists(table_record("expressions"))
    return Extraction(folder=folder, source=source, streams=streams, choose=choose, weights=given, resources=resources,
               log=log, mask_rule=rule, mask_size=_mask_size(args, kept, source, rule), keeps_expressions=keeps,
               extraction=extraction)  # fmt: skip


def _streams(args: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    """The requested streams, and the levels."""
    preset = preset_named(args.preset)
    names = list(preset.streams) if args.streams is None else _parts(args.streams)
    return names, None if args.levels is None else _parts(args.levels)


def _parts(joined: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in joined.split(",") if part.strip()))


def _at_least_1(option: str, asked: int | None, default: int) -> int:
    if asked is not None and asked < 1:
        raise ConfigError(f"{option} is {asked}; accepted: 1 or more")
    return default if asked is None else asked


def _pixels(text: str) -> int | str:
    if text != NATIVE and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither {NATIVE} nor a number of pixels")
    return text if text == NATIVE else int(text)


def _mask_size(args: argparse.Namespace, store: "StoreSchema | None", source: "Source", rule: MaskRule) -> "MaskSize":
    """The requested size of the masks, otherwise the size in the store."""
    from extract.pipeline.input_check import native_size
    from extract.pipeline.plan import object_units

    known = PRESETS["base" if args.streams else args.preset].mask_size if store is None else store.mask_size
    room = known if isinstance(known, tuple) else None
    if args.mask_size == NATIVE or (args.mask_size is None and room):
        return native_size(object_units(source, rule), room)
    return known if args.mask_size is None else _at_least_1("--mask-size", args.mask_size, 1)


def _mask_rule(asked: MaskRule | None, store: "StoreSchema | None") -> MaskRule:
    """The rule for reading masks: the requested one, else the store's."""
    known = "auto" if store is None or store.mask_rule is None else store.mask_rule
    return MASK_RULES[MASK_RULES.index(asked or known)]


def _precision(asked: str, name: str, store: "StoreSchema | None") -> Precision:
    """The precision of an encoder: the requested one, else that of its streams in the store, else fp32."""
    known = [stream.fingerprint.get("precision", "fp32") for id, stream in (store.streams if store else {}).items()
             if id.split("/")[1] == name]  # fmt: skip
    wanted = asked if asked != "auto" else next(iter(known), "fp32")
    if wanted not in PRECISIONS:
        raise ConfigError(f"the store says that {name} was computed with precision {wanted!r}; give one of "
                          f"{', '.join(PRECISIONS)} by --precision")
    return PRECISIONS[PRECISIONS.index(wanted)]


def _warn_of_slow_bf16(specs: "Iterable[StreamSpec]", device: str) -> None:
    from refavs.machine.accelerator import slow_bf16

    if any(spec.fingerprint.get("precision") == "bf16" for spec in specs) and (factor := slow_bf16(device)) is not None:
        _warn(f"bf16 takes {factor:.1f} times as long as fp32 on this processor (measured now on a convolution), which "
              "has no instructions for it; --precision fp32 is faster, in a store of its own")


def _warn(line: str) -> None:
    warn(f"{NAME}: {line}")


def _log_beside(folder: "Folder") -> Path | None:
    """The default log file of a run without a terminal: next to the store, so that the store is unchanged."""
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

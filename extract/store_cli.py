"""refavs-store: shows, verifies, repairs, upgrades, publishes, exports and imports a feature store."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.media.notes import NOTES, counted
from refavs.errors import ConfigError, StoreError
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.console import PlainConsole, ProgressBar, wide_console
from refavs.terminal.printing import readable_bytes, say, warn

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore

NAME = "refavs-store"
FORMATS = {"webdataset": "export_webdataset", "parquet": "export_parquet"}
EXAMPLE = """example:
  refavs-store info features/                 rows, arrays, bytes, encoders and expressions of the store in features/
  refavs-store verify features/               hash every byte again and list the damage (exit status 3)
  refavs-store repair features/               remove what is damaged, and extract it again
  refavs-store drop features/ audio/vggish    remove a stream and free its space
  refavs-store upgrade features/              bring a store of version 2 to this version without computing features
  refavs-store tag features/ v1               name the present content; log lists the names, diff compares two
  refavs-store diff features/@v1 features/    what has changed since (exit status 3 if something has)
  refavs-store delete features/ day1/a b      remove two clips; compact rewrites a store in whole shards
  refavs-store publish features/              add a card and checksums, then copy the folder to a web server or the hub
  refavs-store export features/ features.h5   everything in one HDF5 file, which h5py reads without refavs
  refavs-store export features/ tars/ --to webdataset --split train   for loaders of tar files
  refavs-store import features.h5 features/   the same store again, byte for byte

exit status: 0 complete, 1 a bug or an error, 2 bad input, 3 damage found or left, or an export of an unfinished store
(listed), 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-store; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: args.command(args))


def build_parser() -> CommandParser:
    """The commands and their arguments."""
    parser = CommandParser(prog=NAME, description="Manages a feature store.", epilog=EXAMPLE)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> CommandParser:
        one = commands.add_parser(name, help=text, description=f"{NAME} {name}: {text}.", epilog=EXAMPLE)
        one.set_defaults(command=run)
        return one

    store = "folder or URL of the store, as refavs-extract wrote it"
    for name, run, text in (
        ("info", lambda args: info(args.store), "show the content of a store"),
        ("verify", lambda args: verify(args.store), "compare every byte with its checksum"),
    ):
        command(name, run, text).add_argument("store", metavar="STORE", help=store)
    mend = command("repair", _repair, "remove what is damaged, and extract it again")
    mend.add_argument("store", metavar="STORE", help=store)
    _add_extraction(mend)
    dropped = command("drop", lambda args: drop(args.store, args.stream), "remove a stream and free its space")
    dropped.add_argument("store", metavar="STORE", help=store)
    dropped.add_argument("stream", metavar="STREAM", help="its id as info shows it, or visual/ENCODER for all levels")
    upgraded = command("upgrade", lambda args: upgrade(args.store), "bring a store of version 2 to this version")
    upgraded.add_argument("store", metavar="STORE", help=store)
    shared = command("publish", _publish, "make a finished store ready for others to read, with a card and checksums")
    shared.add_argument("store", metavar="STORE", help="folder of the store")
    shared.add_argument("--licence", default="other", metavar="ID", help="licence of the features for the card, as the "
                        "hub names it, for example cc-by-4.0 (default: other)")  # fmt: skip
    shared.add_argument("--title", help="heading of the card; default: the folder's name")
    _add_history(command)
    out = command("export", _export, "write a store in another format")
    out.add_argument("store", metavar="STORE", help=store)
    out.add_argument("file", type=Path, metavar="OUT", help="the HDF5 file to create, never overwritten; or the folder "
                     "of the other formats")  # fmt: skip
    out.add_argument("--to", choices=("hdf5", *FORMATS), default="hdf5", help="hdf5: all of it in one file, which "
                     "import reads; webdataset: tar files with a sample for each clip; parquet: the vectors of audio "
                     "and text, without maps and masks (default: hdf5)")  # fmt: skip
    out.add_argument("--split", metavar="NAME", help="only the expressions of this split and their clips; not hdf5")
    back = command("import", lambda args: import_(args.file, args.store), "restore a store from its HDF5 file")
    back.add_argument("file", type=Path, metavar="FILE", help="an HDF5 file that refavs-store export wrote")
    back.add_argument("store", metavar="STORE", help="folder or URL of the store to create, or to complete")
    return parser


def _add_history(command: Callable[..., CommandParser]) -> None:
    """The commands that name, compare and rewrite contents."""

    def of(module: str, name: str) -> Callable[[argparse.Namespace], int]:
        return lambda args: getattr(import_module(f"extract.{module}"), name)(args)

    tagged = command("tag", of("history_cli", "tag"), "name the present content of a store")
    tagged.add_argument("store", metavar="STORE", help="folder or URL of the store")
    tagged.add_argument("name", metavar="NAME", help="a new name")
    tagged.add_argument("--message", default="", metavar="TEXT", help="what log shows beside it")
    tagged.add_argument("--dry-run", action="store_true", help="only say what would be tagged")
    command("log", of("history_cli", "log"), "list the tags of a store, and what changed in between").add_argument(
        "store", metavar="STORE", help="folder or URL of the store")
    compared = command("diff", of("history_cli", "diff"), "list the streams, rows and clips in which two differ")
    compared.add_argument("first", metavar="A", help="a store, or STORE@TAG")
    compared.add_argument("second", metavar="B", help="the same")
    deleted = command("delete", of("rewrite_cli", "delete"), "remove clips with their objects and expressions")
    deleted.add_argument("store", metavar="STORE", help="folder or URL of the store")
    deleted.add_argument("clips", metavar="CLIP", nargs="+", help="ids of clips")
    packed = command("compact", of("rewrite_cli", "compact"), "rewrite a store in whole shards, without unused rows")
    packed.add_argument("store", metavar="STORE", help="folder or URL of the store")
    packed.add_argument("--clips-per-shard", type=int, metavar="N", help="clips in a shard; default: as in the store")
    for one in (deleted, packed):
        one.add_argument("--out", metavar="NEW", help="write a new store there and leave STORE alone; needed for a "
                         "URL; default: the new one takes the place of STORE, which needs the space of both meanwhile")
        one.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _add_extraction(parser: CommandParser) -> None:
    """Adds the options for finding the source again; by default they are as recorded in the store."""
    group = parser.add_argument_group("extraction", "where to find what the store was made from; default: as the "
                                      "extraction noted it in the store")  # fmt: skip
    add = group.add_argument
    add("--source", metavar="SOURCE", help="benchmark root or folder of videos, if it has moved")
    add("--expressions", metavar="CSV", help="expressions about a folder of videos, if that file has moved")
    add("--weights-dir", metavar="DIR", help="pretrained weights, as for refavs-extract")
    add("--batch-clips", metavar="N", help="clips in one pass through the visual encoders")
    add("--workers", metavar="N", help="worker processes; default: one per processor")
    add("--gpus-per-worker", metavar="G", help="share of a GPU for each worker; default: 0")
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")


def info(location: str) -> int:
    """Prints a summary of the store."""
    from rich.table import Table

    from refavs.store.format.commits import short_digest
    from refavs.store.format.mask_rows import told_size
    from refavs.store.format.schema import says_random
    from refavs.store.reader import FeatureStore

    store = FeatureStore(location)
    console = PlainConsole(soft_wrap=True)
    console.print(f"store        {store.location}")
    console.print(f"source       {store.schema.source}")
    console.print(f"fingerprint  {store.fingerprint}{'' if store.finished else ' (its extraction did not finish)'}")
    console.print(f"clips        {store.seconds} seconds, {store.steps.fps:g} frames per second")
    rule = "" if store.schema.mask_rule is None else f", read by mask rule {store.schema.mask_rule}"
    console.print(f"masks        {told_size(store.mask_size)}{rule}")
    for name in store.streams:
        fingerprint = store.schema.streams[name].fingerprint
        facts = ", ".join(f"{fact} {value}" for fact, value in fingerprint.items() if fact != "name")
        console.print(f"stream       {name}: {fingerprint.get('name', '?')}@{short_digest(fingerprint)} ({facts})")
        if says_random(fingerprint):
            console.print("             random weights: these features only show that the system works")
    table = Table()
    for name in ("array", "axes", "row shape", "type", "rows", "shards", "bytes"):
        table.add_column(name, overflow="fold")
    for spec in store.specs.values():
        records = [record for record in store.records if record.table == spec.table]
        num_bytes = sum(record.arrays[spec.name].num_bytes for record in records)
        table.add_row(
            spec.path, " ".join(spec.axes), "x".join(map(str, spec.shape)), spec.number_format or spec.dtype,
            str(sum(len(record.rows) for record in records)), str(len(records)), readable_bytes(num_bytes),
        )  # fmt: skip
    wide_console().print(table)
    for line in facts_of_rows(store):
        console.print(line)
    return Exit.COMPLETE


def facts_of_rows(store: "FeatureStore") -> list[str]:
    """Lines on flagged clips, on clips and objects that failed, and on the expressions of each split."""
    clips = store.clips.to_dict("records") if "clips" in store.tables else []
    lines = [f"clips        {count} {name}{f': {NOTES[name]}' if name in NOTES else ''}"
             for name, count in counted(clips).items()]  # fmt: skip
    lines += [f"failed       {name}: {reason}" for name, reason in _failures(store, clips).items()]
    try:
        splits = Counter(store.expressions["split"])
    except StoreError:
        return [*lines, "expressions  not written yet"]
    counts = ", ".join(f"{split} {count}" for split, count in sorted(splits.items()))
    return [*lines, f"expressions  {splits.total()}{f' ({counts})' if counts else ''}"]


def _failures(store: "FeatureStore", clips: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Clips, texts and objects without a row in some table, with the reason."""
    names: dict[str, dict[str, str]] = {modality: {} for modality in ("visual", "audio", "text")}
    for clip in clips:
        names["visual"].setdefault(clip["frames"], clip["id"])
        names["audio"].setdefault(clip["sound"], clip["id"])
    if "text" in store.tables:
        names["text"] = dict(zip(store.texts["key"], store.texts["text"], strict=True))
    done = {(record.table, key) for record in store.records for key in record.rows}
    failed = [(record.table, key, reason) for record in store.records for key, reason in record.failures.items()
              if (record.table, key) not in done]  # fmt: skip
    found = {}
    for table, key, reason in failed:
        known = names.get(table.split("/")[0])
        name = key if known is None else known.get(key)
        if name is not None:  # otherwise the file has been replaced
            found.setdefault(name, reason)
    return found


def drop(location: str, stream: str) -> int:
    """Removes a stream, or all levels of an encoder."""
    from refavs.store.folders import open_folder
    from refavs.store.lease import Lease
    from refavs.store.writer import StoreWriter

    writer = StoreWriter.attach(location)
    with Lease(open_folder(location), NAME):
        gone = writer.drop(stream)
        fingerprint = writer.finalise()
    say(f"{writer.location}: {', '.join(gone) or stream} removed; fingerprint {fingerprint}")
    return Exit.COMPLETE


def upgrade(location: str) -> int:
    """Brings a store of version 2 to this version."""
    from refavs.store.upgrade import upgrade as upgrade_store

    say(f"{location} is upgraded: fingerprint {upgrade_store(location)}")
    return Exit.COMPLETE


def verify(location: str) -> int:
    """Hashes the store again and prints what is damaged."""
    from extract.damage import report, verified

    verdict = verified(location)
    report(location, verdict)
    if not verdict.damage:
        return Exit.COMPLETE
    say(f"to repair it: {NAME} repair {location}")
    return Exit.FAILURES


def export(location: str, file: Path) -> int:
    """Writes the store to an HDF5 file."""
    from refavs.store.folders import open_folder
    from refavs.store.hdf5.exchange import export as export_store
    from refavs.store.hdf5.exchange import is_finished
    from refavs.store.lease import writer_of

    with _Rows("export") as rows:
        fingerprint = export_store(location, file, rows)
    say(f"{location} is in {file}: {readable_bytes(file.stat().st_size)}, fingerprint {fingerprint}")
    if is_finished(file):
        return Exit.COMPLETE
    writer = writer_of(open_folder(location))
    goes_on = f"goes on: {writer} is at work" if writer else "did not finish: run the same refavs-extract command again"
    warn(f"{file} has only what was committed by then: the extraction of {location} {goes_on}; then export it to "
         "another file")  # fmt: skip
    return Exit.FAILURES


def _export(args: argparse.Namespace) -> int:
    if args.to == "hdf5":
        if args.split is not None:
            raise ConfigError("an HDF5 file has the whole store; leave out --split, or choose another --to")
        return export(args.store, args.file)
    from refavs.store import export_formats
    from refavs.store.reader import FeatureStore

    with _Rows("export") as rows:
        num_clips = getattr(export_formats, FORMATS[args.to])(FeatureStore(args.store), args.file, args.split, rows)
    say(f"{num_clips} clips of {args.store} are in {args.file}")
    return Exit.COMPLETE


def import_(file: Path, location: str) -> int:
    """Restores the store in an HDF5 file."""
    from refavs.store.hdf5.exchange import import_ as import_store

    with _Rows("import") as rows:
        fingerprint = import_store(file, location, rows)
    say(f"{file} is in {location}: fingerprint {fingerprint}")
    return Exit.COMPLETE


class _Rows:
    """A progress bar for rows, shown once their number is known."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: ProgressBar | None = None

    def __enter__(self) -> "_Rows":
        return self

    def __call__(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            self._bar = ProgressBar(self._title, total, "rows").__enter__()
        self._bar.advance(done - self._bar.done, note)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _publish(args: argparse.Namespace) -> int:
    from extract.publish import publish

    return publish(args.store, args.licence, args.title)


def _repair(args: argparse.Namespace) -> int:
    from extract.repair import repair  # imports Ray, which the other commands do not need

    return repair(args)


if __name__ == "__main__":
    sys.exit(main())

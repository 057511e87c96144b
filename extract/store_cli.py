"""refavs-store: what is in a feature store, whether it is whole, mending it, and taking it elsewhere."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.media.notes import NOTES
from refavs.errors import StoreError
from refavs.terminal.command import CommandParser, Exit, run_command
from refavs.terminal.console import PlainConsole, ProgressBar
from refavs.terminal.printing import say, warn

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore
    from refavs.store.verify import Verdict

NAME = "refavs-store"
EXAMPLE = """example:
  refavs-store info features/                 rows, arrays, bytes, encoders and expressions of the store in features/
  refavs-store verify features/               hash every byte again and name what is damaged (exit status 3)
  refavs-store repair features/               compute what is damaged again, and only that
  refavs-store export features/ features.h5   everything in one HDF5 file, which h5py reads without refavs
  refavs-store import features.h5 features/   the same store again, byte for byte

exit status: 0 complete, 1 a bug or an error, 2 bad input, 3 damage found or left, or an export of an unfinished store
(listed), 130 interrupted
"""

FLAGS = ("silent", "repeated_from_s")  # facts of a clip that say what is odd about it


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-store; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command(NAME, lambda: args.command(args))


def build_parser() -> CommandParser:
    """The commands and their arguments."""
    parser = CommandParser(
        prog=NAME, description="Looks after a feature store.", epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> CommandParser:
        one = commands.add_parser(name, help=text, description=f"{NAME} {name}: {text}.", epilog=EXAMPLE,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.set_defaults(command=run)
        return one

    store = "folder or URL of the store, as refavs-extract wrote it"
    for name, run, text in (
        ("info", lambda args: info(args.store), "show what a store holds"),
        ("verify", lambda args: verify(args.store), "compare every byte with its checksum"),
    ):
        command(name, run, text).add_argument("store", metavar="STORE", help=store)
    mend = command("repair", _repair, "compute again what is damaged, and only that")
    mend.add_argument("store", metavar="STORE", help=store)
    _add_extraction(mend)
    out = command("export", lambda args: export(args.store, args.file), "write a whole store to one new HDF5 file")
    out.add_argument("store", metavar="STORE", help=store)
    out.add_argument("file", type=Path, metavar="FILE", help="the HDF5 file to make; never written over")
    back = command("import", lambda args: import_(args.file, args.store), "make a store again from its HDF5 file")
    back.add_argument("file", type=Path, metavar="FILE", help="an HDF5 file that refavs-store export wrote")
    back.add_argument("store", metavar="STORE", help="folder or URL of the store to make, or of an interrupted import")
    return parser


def _add_extraction(parser: CommandParser) -> None:
    """Where to find again what the store was made from; what is left out is as the extraction noted it."""
    group = parser.add_argument_group("extraction", "where to find what the store was made from; default: as the "
                                      "extraction noted it in the store")  # fmt: skip
    add = group.add_argument
    add("--source", metavar="SOURCE", help="benchmark root or folder of videos, if it has moved")
    add("--expressions", metavar="CSV", help="expressions about a folder of videos, if that file has moved")
    add("--weights-dir", metavar="DIR", help="pretrained weights, as for refavs-extract")
    add("--preset", metavar="NAME", help="encoder sizes")
    add("--weights", choices=("pretrained", "random"), help="weights of the encoders")
    add("--seed", metavar="SEED", help="of random weights")
    add("--levels", metavar="LEVELS", help="visual maps")
    add("--precision", metavar="PRECISION", help="of the encoders")
    add("--batch-clips", metavar="N", help="clips in one pass through the visual encoder")
    add("--workers", metavar="N", help="worker processes; default: one per processor")
    add("--gpus-per-worker", metavar="G", help="share of a GPU for each worker; default: 0")
    add("--address", metavar="ADDRESS", help="a running Ray cluster; default: one on this machine for this run")


def info(location: str) -> int:
    """Prints a summary of the store."""
    from rich.table import Table

    from refavs.store.format.commits import encoder_digests
    from refavs.store.reader import FeatureStore

    store = FeatureStore(location)
    console = PlainConsole(soft_wrap=True)
    console.print(f"store        {store.location}")
    console.print(f"source       {store.schema.source}")
    console.print(f"fingerprint  {store.fingerprint}{'' if store.finished else ' (its extraction did not finish)'}")
    console.print(f"frames       {store.num_frames} per clip, {store.input_size} x {store.input_size} px")
    if store.schema.mask_rule is not None:
        console.print(f"masks        read by mask rule {store.schema.mask_rule}")
    for stream, short in encoder_digests(store.schema).items():
        fingerprint = store.encoders[stream]
        facts = ", ".join(f"{name} {value}" for name, value in fingerprint.items() if name != "name")
        console.print(f"encoder      {stream}: {fingerprint.get('name', '?')}@{short} ({facts})")
    if store.random_weights:
        console.print("             random weights: these features show that the system works, nothing else")
    table = Table()
    for name in ("array", "axes", "row shape", "type", "rows", "shards", "bytes"):
        table.add_column(name, overflow="fold")
    for spec in store.specs.values():
        records = [record for record in store.records if spec.path in record.arrays]
        num_bytes = sum(record.arrays[spec.path].num_bytes for record in records)
        table.add_row(
            spec.path, " ".join(spec.axes), "x".join(map(str, spec.shape)), spec.dtype,
            str(sum(len(record.own_rows(spec.path)) for record in records)), str(len(records)), readable(num_bytes),
        )  # fmt: skip
    console.print(table)
    for line in facts_of_rows(store):
        console.print(line)
    return Exit.COMPLETE


def facts_of_rows(store: "FeatureStore") -> list[str]:
    """Lines on flagged clips, on what failed and was not mended since, and on the expressions of each split."""
    lines = []
    for name in FLAGS:
        values = store.clips[name].tolist() if name in store.clips else []
        # NaN where other clips have a number and this one has nothing.
        flagged = sum(value is not None and value is not False and value == value for value in values)
        if flagged:
            lines.append(f"clips        {flagged} {name}")
    noted = store.clips["notes"].tolist() if "notes" in store.clips else []
    for name, count in Counter(name for names in noted if isinstance(names, str) for name in names.split(",")).items():
        lines.append(f"clips        {count} {name}: {NOTES.get(name, 'noted')}")
    done = {(record.table, key) for record in store.records for key in record.rows}
    for record in store.records:
        for key, reason in record.failures.items():
            if (record.table, key) not in done:
                lines.append(f"failed       {key}: {reason}")
    try:
        splits = Counter(store.expressions["split"])
    except StoreError:
        return [*lines, "expressions  not written yet"]
    counts = ", ".join(f"{split} {count}" for split, count in sorted(splits.items()))
    return [*lines, f"expressions  {splits.total()}{f' ({counts})' if counts else ''}"]


def verify(location: str) -> int:
    """Hashes the store again and prints what is damaged."""
    verdict = verified(location)
    report(location, verdict)
    if not verdict.damage:
        return Exit.COMPLETE
    say(f"to mend it: {NAME} repair {location}")
    return Exit.FAILURES


def verified(location: str) -> "Verdict":
    """What `verify` finds in a store; shows how far it is."""
    from refavs.store.backends.base import open_folder
    from refavs.store.format.commits import record_files
    from refavs.store.format.schema import root_attributes
    from refavs.store.verify import verify as verify_store

    folder = open_folder(location)
    root_attributes(folder)
    with ProgressBar("verify", len(record_files(folder)), "shards") as bar:
        return verify_store(location, lambda name: bar.advance(note=name))


def report(location: str, verdict: "Verdict") -> None:
    """Prints what `verify` found."""
    for name in verdict.uncommitted:
        whose = f"of {verdict.writer}, which is at work" if verdict.writer else "left by an interrupted run"
        say(f"uncommitted: {name} ({whose}; readers do not see it)")
    for damage in verdict.damage:
        keys = f" [{', '.join(damage.keys)}]" if damage.keys else ""
        say(f"damaged: {damage.where}{keys}: {damage.problem}")
    size = readable(verdict.num_bytes)
    say(f"{location}: {verdict.num_rows} rows, {size} hashed, {len(verdict.damage)} damaged")


def export(location: str, file: Path) -> int:
    """Writes the store to an HDF5 file."""
    from refavs.store.backends.base import open_folder
    from refavs.store.hdf5.exchange import export as export_store
    from refavs.store.hdf5.exchange import is_finished
    from refavs.store.lease import writer_of

    with _Rows("export") as rows:
        fingerprint = export_store(location, file, rows)
    say(f"{location} is in {file}: {readable(file.stat().st_size)}, fingerprint {fingerprint}")
    if is_finished(file):
        return Exit.COMPLETE
    writer = writer_of(open_folder(location))
    goes_on = f"goes on: {writer} is at work" if writer else "did not finish: run the same refavs-extract command again"
    warn(f"{file} has only what was committed by then: the extraction of {location} {goes_on}; then export it to "
         "another file")  # fmt: skip
    return Exit.FAILURES


def import_(file: Path, location: str) -> int:
    """Makes the store again that is in an HDF5 file."""
    from refavs.store.hdf5.exchange import import_ as import_store

    with _Rows("import") as rows:
        fingerprint = import_store(file, location, rows)
    say(f"{file} is in {location}: fingerprint {fingerprint}")
    return Exit.COMPLETE


class _Rows:
    """Shows how many rows are done, once it is known how many there are."""

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


def _repair(args: argparse.Namespace) -> int:
    from extract.pipeline.repair import repair  # brings Ray, which the other commands do without

    return repair(args)


def readable(num_bytes: int) -> str:
    """A size in the largest decimal unit that keeps it above one."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


if __name__ == "__main__":
    sys.exit(main())

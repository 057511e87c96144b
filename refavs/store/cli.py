"""refavs-store: what is in a feature store, and whether it is whole."""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from refavs.cli import Exit, run_command
from refavs.console import ProgressBar
from refavs.errors import StoreError

if TYPE_CHECKING:
    from refavs.store.reader import FeatureStore

EXAMPLE = """example:
  refavs-store info features/      rows, arrays, bytes, encoders and expressions of the store in features/
  refavs-store verify features/    hash every byte again and name what is damaged (exit status 3)
"""

FLAGS = ("silent", "repeated_from_s")  # facts of a clip that say what is odd about it


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of refavs-store; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_command("refavs-store", lambda: args.command(args.store))


def build_parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    parser = argparse.ArgumentParser(
        prog="refavs-store", description="Looks after a feature store.", epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command, text in (
        ("info", info, "show what a store holds"),
        ("verify", verify, "compare every byte with its checksum"),
    ):
        one = commands.add_parser(name, help=text, description=f"refavs-store {name}: {text}.", epilog=EXAMPLE,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
        one.add_argument("store", metavar="STORE", help="folder or URL of the store, as refavs-extract wrote it")
        one.set_defaults(command=command)
    return parser


def info(location: str) -> int:
    """Prints a summary of the store."""
    from rich.console import Console
    from rich.table import Table

    from refavs.store.commits import encoder_digests
    from refavs.store.reader import FeatureStore

    store = FeatureStore(location)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"store        {store.location}")
    console.print(f"source       {store.schema.source}")
    console.print(f"fingerprint  {store.fingerprint}{'' if store.finished else ' (its extraction did not finish)'}")
    console.print(f"frames       {store.num_frames} per clip, {store.input_size} x {store.input_size} px")
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
    from refavs.store.commits import record_files
    from refavs.store.folder import open_folder
    from refavs.store.schema import root_attributes
    from refavs.store.verify import verify as verify_store

    folder = open_folder(location)
    root_attributes(folder)
    with ProgressBar("verify", len(record_files(folder)), "shards") as bar:
        verdict = verify_store(location, lambda name: bar.advance(note=name))
    for name in verdict.uncommitted:
        print(f"uncommitted: {name} (left by an interrupted run; readers do not see it)")
    for damage in verdict.damage:
        keys = f" [{', '.join(damage.keys)}]" if damage.keys else ""
        print(f"damaged: {damage.where}{keys}: {damage.problem}")
    size = readable(verdict.num_bytes)
    print(f"{folder.location}: {verdict.num_rows} rows, {size} hashed, {len(verdict.damage)} damaged")
    if not verdict.damage:
        return Exit.COMPLETE
    print("to mend it: remove the commit record of each damaged shard (commits/TABLE-SHARD.json), then run the same "
          "refavs-extract command again")
    return Exit.FAILURES


def readable(num_bytes: int) -> str:
    """A size in the largest decimal unit that keeps it above one."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"

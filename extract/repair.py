"""refavs-store repair: removes damaged parts of a store, and extracts them again with the original settings."""

import argparse
from dataclasses import replace
from pathlib import Path

from extract.cli import build_parser, prepared
from extract.damage import report, verified
from extract.encoders.weights import WeightSource
from extract.pipeline.extraction import Extraction, complete
from refavs.errors import StoreError
from refavs.files.path_text import path_of
from refavs.store.columns import table_record
from refavs.store.folders import open_folder
from refavs.store.format.commits import record_name
from refavs.store.format.schema import StoreSchema, root_attributes, schema_at
from refavs.store.lease import Lease
from refavs.store.repair import drop_damaged, restore_root, root_copy
from refavs.store.writer import StoreWriter, planned_schema
from refavs.terminal.command import Exit
from refavs.terminal.printing import say, warn

NAME = "refavs-store"
OWN = ("source", "expressions", "weights_dir", "workers", "gpus_per_worker", "batch_clips", "address")
PATHS = ("source", "expressions")
MOST_NAMED = 5


def repair(args: argparse.Namespace) -> int:
    """Repairs the store; returns the exit status."""
    folder = open_folder(args.store)
    if root_copy(folder) is None:
        root_attributes(folder)  # fails if there is no store, before anything is created
    with Lease(folder, NAME) as lease:
        if restore_root(folder):
            say(f"{folder.where('zarr.json')} was restored from its copy")
        folder.sweep()
        verdict = verified(args.store)
        report(args.store, verdict)
        if not verdict.damage:
            return Exit.COMPLETE
        before = root_attributes(folder).get("fingerprint")
        # Check that the source and the weights exist before removing anything.
        run = _prepared(args, schema_at(folder))
        wanted = run.schema(run.streams.specs())
        planned_schema(folder, wanted)
        writer = StoreWriter.attach(args.store)
        keys = {record_name(record.table, record.index): (record.table, set(record.rows))
                for record in _readable(writer)}  # fmt: skip
        removed = drop_damaged(folder, verdict.damage)
        status = Exit.COMPLETE
        writer = StoreWriter.open(args.store, wanted)
        if removed:
            say(f"removed, to be extracted again: {', '.join(removed)}")
            status = complete(run, writer, lease, refill=True)
        else:
            writer.finalise()
        lost = [(table, gone) for table, known in (keys[file] for file in removed if file in keys)
                if (gone := sorted(known - writer.committed(table).keys()))]  # fmt: skip
        for table, gone in lost:
            warn(f"{NAME}: {len(gone)} rows of {table} are lost, because the source no longer has them: "
                 f"{', '.join(gone[:MOST_NAMED])}{' ...' if len(gone) > MOST_NAMED else ''}")  # fmt: skip
        if run.keeps_expressions is False and not folder.exists(table_record("expressions")):
            warn(f"{NAME}: the expressions are lost; give their CSV as --expressions")
        after = root_attributes(folder).get("fingerprint")
        if before is not None and before != after and not lost and status == Exit.COMPLETE:
            say(f"rows moved or differ from the lost ones (other hardware or software), so the fingerprint of "
                f"{folder.location} changed from {before} to {after}")  # fmt: skip
    verdict = verified(args.store)
    report(args.store, verdict)
    return status if status == Exit.ERROR else Exit.FAILURES if verdict.damage or lost or status else Exit.COMPLETE


def _readable(writer: StoreWriter) -> list:
    """The commit records; none if any is damaged, because their total content is then unknown."""
    try:
        return writer.records()
    except StoreError:
        return []


def _prepared(args: argparse.Namespace, schema: StoreSchema) -> Extraction:
    """The extraction that made the store.

    Raises:
        StoreError: the store does not record where it was extracted from.
    """
    told = {name: path_of(value) if name in PATHS else value
            for name, value in schema.extraction.items() if name in OWN and value is not None}  # fmt: skip
    told |= {name: value for name in OWN if (value := getattr(args, name)) is not None}
    if "source" not in told:
        raise StoreError(f"{args.store} does not say where it was extracted from; give --source")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in told.items() if name != "source"]
    streams = ",".join(name.partition("/")[2] for name in schema.streams)

    folder = None if args.weights_dir is None else Path(args.weights_dir)

    def weights_of(name: str) -> WeightSource:
        stamps = [str(stream.fingerprint.get("weights")) for id, stream in schema.streams.items()
                  if id.split("/")[1] == name]  # fmt: skip
        kind, _, seed = stamps[0].partition(":")
        if kind == "random":
            return WeightSource(kind="random", seed=int(seed), folder=folder)
        return WeightSource(folder=folder)

    arguments = [str(told["source"]), args.store, f"--streams={streams}", *options]
    run = prepared(build_parser().parse_args(arguments), weights_of)
    return replace(run, extraction=dict(schema.extraction))

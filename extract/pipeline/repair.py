"""refavs-store repair: computes again what is damaged in a store, by the way in which it was extracted, and no more."""

import argparse
from collections.abc import Sequence
from typing import Any

from extract.cli import build_parser, prepared
from extract.pipeline.extraction import TABLES, Run, Totals, work
from extract.pipeline.plan import Item, Job, expressions_table, refuse_replaced, wanted_items
from extract.store_cli import NAME, report, verified
from refavs.errors import StoreError
from refavs.store.backends.base import Folder, open_folder
from refavs.store.columns import EXPRESSIONS_RECORD
from refavs.store.format.commits import record_name
from refavs.store.format.schema import root_attributes
from refavs.store.lease import Lease
from refavs.store.plan import ShardPlan
from refavs.store.repair import Repairs, plan_repairs, restore_root, root_copy, with_failed
from refavs.store.writer import StoreWriter, planned_schema
from refavs.terminal.command import Exit
from refavs.terminal.printing import say, show_trace, warn

FACTS = ("source", "preset", "weights", "seed", "levels", "precision", "expressions", "batch_clips")
OWN = ("weights_dir", "workers", "gpus_per_worker", "address")  # of the machine and not of the store


def repair(args: argparse.Namespace) -> int:
    """Mends the store; returns the exit status."""
    folder = open_folder(args.store)
    if root_copy(folder) is None:
        root_attributes(folder)  # there must be a store, before anything is made
    with Lease(folder, NAME) as lease:
        if restore_root(folder):
            say(f"{folder.where('zarr.json')} was restored from its copy")
        folder.sweep()
        verdict = verified(args.store)
        report(args.store, verdict)
        if not verdict.damage:
            return Exit.COMPLETE
        writer = StoreWriter.attach(args.store)
        facts = _facts(args, writer)
        repairs = plan_repairs(folder, writer.schema, verdict.damage, int(facts.get("batch_clips") or 1))
        totals = Totals()
        _mend_whole_rows(writer, repairs)
        _compute(args, facts, writer, lease, repairs, totals)
        before = root_attributes(folder).get("fingerprint")
        if before is not None and not totals.failures and not totals.broken and not repairs.unknown:
            lease.check()
            # Opened anew: `writer` may have read records that were replaced since.
            _tell_change(folder, before, StoreWriter.attach(args.store).finalise())
    return _end(args, repairs, totals)


def _facts(args: argparse.Namespace, writer: StoreWriter) -> dict[str, Any]:
    """How the store was extracted: as it says, and as the command line says."""
    given = {name: value for name in FACTS if (value := getattr(args, name)) is not None}
    return {name: value for name, value in {**writer.schema.extraction, **given}.items() if value is not None}


def _mend_whole_rows(writer: StoreWriter, repairs: Repairs) -> None:
    """Writes files anew all of whose rows are whole, for which nothing has to be computed."""
    for plan in repairs.mends:
        if not plan.keys:
            with writer.shard(plan):
                pass


def _compute(
    args: argparse.Namespace, facts: dict[str, Any], writer: StoreWriter, lease: Lease, repairs: Repairs, totals: Totals
) -> None:
    """Computes lost rows and shards, and the table of expressions where that is damaged."""
    mends = [plan for plan in repairs.mends if plan.keys]
    if not (mends or repairs.anew or repairs.unknown or repairs.expressions):
        return
    folder = writer.folder
    run = _prepared(args, facts, writer)
    wanted = wanted_items(run.source, run.mask_rule)
    # Records that cannot be read hide what is beside them; what they held is known from the columns.
    for name in (*repairs.unknown, *(record_name(plan.table, plan.index) for plan in repairs.anew)):
        folder.remove(name)
    refuse_replaced(writer, [clip for clip in run.source.clips if clip.id in repairs.keys("clips")])
    anew = with_failed(folder, writer.schema, repairs.anew, {table: list(wanted[table]) for table in wanted})
    jobs = _jobs([*mends, *anew], wanted, totals)
    if jobs:
        work(run, writer, lease, jobs, totals)
    failed_before = {f"{plan.table} {key}" for plan, known in zip(anew, repairs.anew, strict=True)
                     for key in plan.keys if key not in known.keys}  # fmt: skip
    totals.failures = [line for line in totals.failures if line.partition(": ")[0] not in failed_before]
    if repairs.expressions:
        lease.check()
        if not len(run.source.expressions):
            totals.failures.append("expressions: the source has none; give the CSV as --expressions")
        elif not totals.failures and not totals.broken:
            folder.remove(EXPRESSIONS_RECORD)
            rows = {table: writer.committed(table) for table in TABLES}
            writer.write_expressions(expressions_table(run.source, rows))


def _prepared(args: argparse.Namespace, facts: dict[str, Any], writer: StoreWriter) -> Run:
    """The extraction that made the store.

    Raises:
        StoreError: the store does not say how it was extracted, or was extracted in another way.
    """
    if "source" not in facts:
        raise StoreError(f"{writer.location} does not say how it was extracted; give --source, --preset, --weights and "
                         "what else was given to refavs-extract")
    options = {name: facts[name] for name in (*FACTS, "layout") if name in facts and name != "source"}
    options |= {name: value for name in OWN if (value := getattr(args, name)) is not None}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    run = prepared(build_parser().parse_args([str(facts["source"]), args.store, *given]))
    planned_schema(writer.folder, **run.description())
    return run


def _jobs(plans: Sequence[ShardPlan], wanted: dict[str, dict[str, Item]], totals: Totals) -> list[Job]:
    """Jobs of those plans whose keys the source has; the others are failures."""
    jobs = []
    for plan in plans:
        gone = [key for key in plan.keys if key not in wanted[plan.table]]
        totals.failures += [f"{plan.table} {key}: the source does not have it any more" for key in gone]
        if not gone:
            jobs.append(Job(shard=plan, items=tuple(wanted[plan.table][key] for key in plan.keys)))
    return jobs


def _tell_change(folder: Folder, before: str, after: str) -> None:
    if before != after:
        say(f"the rows computed now differ from the lost ones (other hardware or software), so the fingerprint of "
              f"{folder.location} changed from {before} to {after}")


def _end(args: argparse.Namespace, repairs: Repairs, totals: Totals) -> int:
    """Says what is left; returns the exit status."""
    for line in totals.failures:
        warn(f"{NAME}: {line}")
    for trace in totals.broken:
        show_trace(trace)
    for name in repairs.unknown:
        say(f"{name} was removed: nothing says what it held; run the same refavs-extract command again")
    verdict = verified(args.store)
    report(args.store, verdict)
    num_keys = sum(len(plan.keys) for plan in (*repairs.mends, *repairs.anew))
    say(f"mended: {num_keys} keys of {len(repairs.mends) + len(repairs.anew)} shards were computed again"
          if not (totals.failures or totals.broken) else "not everything could be computed again")
    if totals.broken:
        return Exit.ERROR
    return Exit.FAILURES if verdict.damage or totals.failures or repairs.unknown else Exit.COMPLETE

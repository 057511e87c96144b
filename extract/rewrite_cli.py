"""refavs-store delete and compact: rewrite a store without some clips, or in whole shards."""

import argparse
import shutil
from collections.abc import Collection
from pathlib import Path

from refavs.errors import ConfigError, StoreError
from refavs.store.contents import contents_of, differences
from refavs.store.folders import open_folder
from refavs.store.lease import Lease
from refavs.store.reader import FeatureStore
from refavs.store.rewrite import copied, copy_of, exchange, is_needless, is_same, mend, planned, shards_before
from refavs.terminal.command import Exit
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import readable_bytes, say

NAME = "refavs-store"


def delete(args: argparse.Namespace) -> int:
    """Removes clips."""
    return _rewrite(args, dict.fromkeys(args.clips), None)


def compact(args: argparse.Namespace) -> int:
    """Rewrites a store in whole shards."""
    number = args.clips_per_shard
    if number is not None and number < 1:
        raise ConfigError(f"--clips-per-shard is {number}; accepted: 1 or more")
    return _rewrite(args, (), number)


def _rewrite(args: argparse.Namespace, leave_out: Collection[str], clips_per_shard: int | None) -> int:
    mend(args.store)
    store = FeatureStore(args.store)
    plan = planned(store, leave_out, clips_per_shard)
    shards, before = sum(plan.num_shards(store).values()), sum(shards_before(store).values())
    size = sum(facts.num_bytes for record in store.records for facts in record.arrays.values())
    expressions = "no" if plan.expressions is None else f"{len(plan.expressions):,} of {len(store.expressions):,}"
    told = (f"{len(plan.clips):,} of {len(store.clips):,} clips, {expressions} expressions, "
            f"{shards:,} shards instead of {before:,}; {readable_bytes(size)} before")  # fmt: skip
    if is_needless(store, plan):
        say(f"{args.store}: nothing to do: {told}")
        return Exit.COMPLETE
    if args.dry_run:
        say(f"{args.store} would have {told}; nothing was written")
        return Exit.COMPLETE
    out = args.out or str(copy_of(args.store))
    if not args.out and not is_same(out, plan):  # left by another, interrupted call
        shutil.rmtree(out)
    with Lease(open_folder(args.store), NAME) as lease:
        total = sum(map(len, plan.keys.values()))
        with ProgressBar(f"{NAME} rewriting", total, "rows") as bar:
            def row(table: str) -> None:
                lease.check()
                bar.advance(note=table)

            fingerprint = copied(store, plan, out, row)
        if not leave_out and (found := differences(contents_of(args.store), contents_of(out))):
            raise StoreError(f"the copy {out} differs from {args.store}, which stays as it is: "
                             f"{found[0].lines(args.store, out)[0]}; run {NAME} verify {args.store}")  # fmt: skip
        lease.check()
        if not args.out:
            exchange(str(Path(args.store).absolute()), Path(out))
    say(f"{args.out or args.store} has {told}; fingerprint {fingerprint}")
    return Exit.COMPLETE

"""What mends a damaged store: which rows to compute again, which shards, and what follows from the rest."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from refavs.errors import StoreError
from refavs.files.typed_json import read_json
from refavs.store.backends.base import Folder, holds, refuse_out_of_reach
from refavs.store.columns import read_column
from refavs.store.derived_files import SHARED, keys_of_rows
from refavs.store.format.commits import CommitRecord, read_listing, read_record, record_files, record_name, shard_of
from refavs.store.format.schema import StoreSchema, root_attributes
from refavs.store.mender import mending_plan
from refavs.store.plan import ShardPlan
from refavs.store.verify import Damage

ROOT = "zarr.json"


@dataclass(frozen=True, kw_only=True)
class Repairs:
    """What to do about the damage of a store.

    Attributes:
        mends: damaged files of committed shards; no keys where every row is whole.
        anew: shards whose commit record is damaged or gone, to be computed as a whole.
        unknown: damaged commit records of which nothing says what they held.
        expressions: the table of expressions is damaged.
    """

    mends: tuple[ShardPlan, ...]
    anew: tuple[ShardPlan, ...]
    unknown: tuple[str, ...]
    expressions: bool

    def keys(self, table: str) -> set[str]:
        """Keys of a table that have to be computed."""
        return {key for plan in (*self.mends, *self.anew) if plan.table == table for key in plan.keys}


def plan_repairs(
    folder: Folder, schema: StoreSchema, damage: Sequence[Damage], batch_clips: int = 1
) -> Repairs:
    """What mends the damage that `verify` found; reads the damaged files again, changes nothing."""
    files = {spec.path: spec for spec in schema.specs.values()}
    broken: dict[tuple[str, int], list[str]] = {}
    lost: list[str] = []
    expressions = False
    for one in damage:
        parent, _, file = one.where.rpartition("/")
        if parent in files and file.startswith("c."):
            paths = broken.setdefault((files[parent].table, int(file.split(".")[1])), [])
            if parent not in paths:
                paths.append(parent)
        elif one.where.startswith("commits/") and _is_shard_record(one.where):
            lost.append(one.where)
        else:
            expressions |= one.where in ("commits", "commits/expressions.json") or one.where.startswith("expressions")
    mends = [
        mending_plan(folder, schema, read_record(folder, record_name(table, index), schema), paths, batch_clips)
        for (table, index), paths in broken.items()
    ]
    anew = [plan for name in dict.fromkeys(lost) if (plan := _lost_shard(folder, schema, name)) is not None]
    known = {record_name(plan.table, plan.index) for plan in anew}
    return Repairs(mends=tuple(mends), anew=tuple(anew), expressions=expressions,
                   unknown=tuple(name for name in dict.fromkeys(lost) if name not in known))  # fmt: skip


def with_failed(
    folder: Folder, schema: StoreSchema, plans: Sequence[ShardPlan], wanted: Mapping[str, Sequence[str]]
) -> list[ShardPlan]:
    """Lost shards with the keys that had failed in them, as far as their place between the others tells.

    Args:
        wanted: keys that the source has, by table.
    """
    found = []
    in_records = {table: _known(folder, schema, table) for table in {plan.table for plan in plans}}
    for plan in plans:
        size = schema.tables[plan.table].rows_per_shard
        known = in_records[plan.table] | {key for one in plans if one.table == plan.table for key in one.keys}
        left = sorted(set(wanted[plan.table]) - known)
        rows = dict(zip(plan.rows, plan.keys, strict=True))
        places = range(plan.index * size, (plan.index + 1) * size)
        before = ""
        for is_hole, group in groupby(places, lambda row: row not in plan.rows):  # noqa: B023 (used up at once)
            run = list(group)
            if not is_hole:
                before = rows[run[-1]]
                continue
            after = min((key for key in known if key > before), default=None)
            fits = [key for key in left if before < key and (after is None or key < after)]
            if len(fits) <= len(run):
                rows |= dict(zip(run, fits, strict=False))
        order = sorted(rows)
        found.append(ShardPlan(table=plan.table, index=plan.index, keys=tuple(rows[row] for row in order),
                               rows=tuple(order), arrays=plan.arrays, shares=plan.shares))  # fmt: skip
    return found


def restore_root(folder: Folder) -> bool:
    """Writes the description of a finished store anew from the copy in the list of its records, where they differ.

    Returns:
        Whether that was needed and done.
    """
    copy = root_copy(folder)
    try:
        told = root_attributes(folder)
        # A store that is being added to says nothing but its schema, and differs from what it was when last finished.
        finished = told.keys() != StoreSchema.from_attributes(told, f"store {folder.location}").to_attributes().keys()
    except StoreError:
        if copy is None:
            raise
        finished = True
    if copy is None or not finished or holds(folder, ROOT, copy):
        return False
    folder.write(ROOT, copy)
    return True


def root_copy(folder: Folder) -> bytes | None:
    """The store's description when it was last finished; None where there is no whole copy."""
    with contextlib.suppress(StoreError, KeyError, ValueError, TypeError, AttributeError):
        copy = read_listing(folder)["zarr.json"].encode()
        StoreSchema.from_attributes(read_json(copy)["attributes"], "")
        return copy
    return None


def _lost_shard(folder: Folder, schema: StoreSchema, name: str) -> ShardPlan | None:
    """The shard whose record is lost, by the columns of names; None where these do not tell."""
    table, index = shard_of(name)
    if table not in schema.tables:
        return None
    size = schema.tables[table].rows_per_shard
    names = keys_of_rows(folder, table)
    rows = [row for row in range(index * size, (index + 1) * size) if row in names]
    if not rows:
        return None
    return ShardPlan(
        table=table, index=index, keys=tuple(names[row] for row in rows), rows=tuple(rows),
        arrays=tuple(spec.path for spec in schema.tables[table].arrays),
        shares=_shares(folder, names, rows) if table == "clips" else {},
    )  # fmt: skip


def _shares(folder: Folder, names: Mapping[int, str], rows: Sequence[int]) -> dict[str, dict[str, str]]:
    """Which clips had another one's features, by the columns that tell readers."""
    shares: dict[str, dict[str, str]] = {}
    for start in SHARED:
        column = read_column(folder, "clips", f"{start.split('/')[1]}_row")
        if column is None:
            continue
        for row in [row for row in rows if row < len(column)]:  # columns of two times, where a run died between them
            owner = int(column[row])
            if owner != row and owner in names:
                shares.setdefault(names[row], {})[start] = names[owner]
    return shares


def _known(folder: Folder, schema: StoreSchema, table: str) -> set[str]:
    """Keys that whole records of the table hold, or name as failed."""
    known: set[str] = set()
    for file in record_files(folder, table):
        try:
            record: CommitRecord = read_record(folder, file, schema)
        except StoreError as error:
            refuse_out_of_reach(error)
        else:
            known |= {*record.rows, *record.failures}
    return known


def _is_shard_record(name: str) -> bool:
    try:
        shard_of(name)
    except ValueError:
        return False
    return True

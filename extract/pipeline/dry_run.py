"""refavs-extract --dry-run: shows the work and cost of a run; writes and downloads nothing, and loads no weights."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from rich.table import Table

from extract.encoders.streams import StreamSet
from extract.encoders.weights import NotFetched
from extract.pipeline.estimate import Missing, Seconds, calibrate, clip_bytes, missing_of
from extract.pipeline.extraction import Extraction
from extract.pipeline.plan import ORDER, plan_jobs, wanted_units
from extract.pipeline.ray_pool import limited_by_gpus
from extract.pipeline.tables import refuse_replaced
from refavs.errors import WeightsError
from refavs.machine.processors import num_processors
from refavs.store.format.schema import StoreSchema, StreamSpec
from refavs.store.plan import plan_shards
from refavs.store.writer import StoreWriter, planned_schema
from refavs.terminal.command import Exit
from refavs.terminal.console import PlainConsole

TOLD_BY_FILES = ("weights", "preprocessing", "config")  # facts that nobody knows without an encoder's files


def dry_run(run: Extraction) -> int:
    """Prints the work and cost of a run; the exit status says whether the run would find its weights.

    Raises:
        StoreError: the store was made with other settings, or has clips made from other files.
    """
    to_fetch, lacking = _weights(run.streams)
    absent = to_fetch.keys() | lacking.keys()
    # Weights of zero take the same time. Their sizes are those of the user's weights.
    blank = run.choose(lambda name: replace(run.weights, kind="random", seed=None))
    exists = run.folder.exists("zarr.json")
    known = StoreWriter.attach(run.folder.location).schema.streams if exists else {}
    specs = _unread_specs(run.streams, blank, known, absent if exists else blank.encoders.keys())
    schema = planned_schema(run.folder, run.schema(specs))
    writer = StoreWriter(run.folder, schema)
    contents, unreadable = run.contents()
    refuse_replaced(writer, contents)
    jobs = plan_jobs(writer, wanted_units(run.source, run.streams, contents),
                     lambda table, groups: plan_shards(schema, table, writer.records(table), groups))
    missing = missing_of(jobs, schema, run.streams)
    console = PlainConsole()
    table = Table("", "missing", "shards", title=f"{writer.location} (nothing was written)")
    for kind in ORDER:
        table.add_row(kind, str(missing.units[kind]), "")
    for name in (*run.streams.streams, "objects"):
        table.add_row(name, str(missing.rows[name]), str(missing.shards[name]))
    console.print(table)
    of_weights = [line for lines in (*to_fetch.values(), *lacking.values()) for line in lines]
    for line in [*of_weights, *(f"clips {name}: {reason}" for name, reason in unreadable.items())]:
        console.print(line, soft_wrap=True)
    if absent and exists:
        console.print("whether the store has features of these weights can be checked when they are on this machine")
    _show_cost(console, run, blank, schema, missing)
    return Exit.USAGE if lacking else Exit.COMPLETE


def _weights(streams: StreamSet) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Lines about weights to download and about missing weights, by encoder."""
    to_fetch, lacking = defaultdict(list), defaultdict(list)
    for name, encoder in streams.encoders.items():
        for part in encoder.weight_parts():
            try:
                part.find()
            except NotFetched as error:
                to_fetch[name].append(f"not on this machine, a run downloads it: {part.name}, {error}")
            except WeightsError as error:
                lacking[name].append(f"missing, a run ends here: {part.name}: {error}")
    return to_fetch, lacking


def _unread_specs(
    streams: StreamSet, blank: StreamSet, known: Mapping[str, StreamSpec], unread: Collection[str]
) -> dict[str, StreamSpec]:
    """The streams; for encoders in `unread` the weights are assumed to be those of the store."""
    specs = blank.specs()
    for id, spec in specs.items():
        facts = known[id].fingerprint if id in known else {}
        stream = streams.streams[id]
        if stream.encoder not in unread:
            spec.fingerprint.update(streams.fingerprint(stream))
        elif str(facts.get("weights")).startswith("sha256:"):
            spec.fingerprint.update({name: facts[name] for name in TOLD_BY_FILES if name in facts})
        else:
            spec.fingerprint["weights"] = "those that are not on this machine"
    return specs


def _show_cost(console: PlainConsole, run: Extraction, blank: StreamSet, schema: StoreSchema, missing: Missing) -> None:
    """Prints bytes, and also seconds if the device of the run is on this machine."""
    sizes = f"{missing.num_bytes:,} bytes"
    on_gpu = run.resources.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        console.print(f"{sizes}; no GPU on this machine to measure the time on")
        return
    num_workers = limited_by_gpus(
        run.resources.local_workers(), run.resources.gpus_per_worker, [torch.cuda.device_count()]
    )
    num_threads = max(1, num_processors() // num_workers)
    torch.set_num_threads(num_threads)
    # Only what is missing; if nothing is, everything, to show the cost of further clips.
    try:
        each = calibrate(blank.only(missing.rows) if missing.rows else blank, run.source.clips, run.resources)
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        console.print(f"{sizes}; the GPU fails, so no time was measured: {str(error).splitlines()[0]}")
        return
    seconds = missing.seconds(each, num_workers, num_threads if on_gpu else None)
    console.print(f"{sizes}; about {seconds:,.0f} s with {num_workers} workers on this machine")
    console.print(each.render())
    console.print(_costs(run, each, missing.units["clips"], clip_bytes(schema), num_threads))


def _costs(run: Extraction, each: Seconds, num_missing: int, bytes_per_clip: int, num_threads: int) -> Table:
    """Bytes and hours for the missing clips, and for a thousand and a million similar ones."""
    on_gpu = run.resources.device == "cuda"
    hours_each = (each.beside(num_threads) * run.resources.gpus_per_worker if on_gpu
                  else each.of_clip * num_threads) / 3600  # fmt: skip
    costs = Table("clips", "bytes", "GPU-hours" if on_gpu else "CPU-hours", title="cost of clips like these")
    for count in sorted({num_missing, 1_000, 1_000_000} - {0}):
        costs.add_row(f"{count:,}", f"{count * bytes_per_clip:,}", f"{count * hours_each:,.2f}")
    return costs

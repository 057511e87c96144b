"""refavs-extract --dry-run: what a run would do and cost. It writes nothing, downloads nothing and loads no weights."""

import dataclasses
from typing import Any

import torch
from rich.table import Table

from extract.encoders.presets import build_encoders
from extract.encoders.weights import NotFetched, WeightSource
from extract.pipeline.estimate import Missing, Seconds, calibrate, clip_bytes, missing_in
from extract.pipeline.extraction import TABLES, Run
from extract.pipeline.plan import refuse_replaced, shares_of, wanted_items
from extract.pipeline.ray_pool import limited_by_gpus
from refavs.errors import WeightsError
from refavs.machine.processors import num_processors
from refavs.store.writer import StoreWriter, planned_schema
from refavs.terminal.command import Exit
from refavs.terminal.console import PlainConsole


def dry_run(run: Run) -> int:
    """Prints what a run would do and cost; returns the exit status, which says whether the run would find its weights.

    Raises:
        StoreError: the store is another one's, or has clips of other files.
    """
    to_fetch, lacking = _weights(run)
    schema = planned_schema(run.folder, **_description(run, compare=not to_fetch and not lacking))
    writer = StoreWriter(run.folder, schema)
    refuse_replaced(writer, run.source.clips)
    missing = missing_in(writer, wanted_items(run.source), shares_of(writer, run.source.clips))
    console = PlainConsole()
    table = Table("", "missing", "shards", title=f"{writer.location} (nothing was written)")
    for name in TABLES:
        table.add_row(name, str(missing.keys[name]), str(missing.shards[name]))
    console.print(table)
    for line in [*to_fetch, *lacking]:
        console.print(line, soft_wrap=True)
    if (to_fetch or lacking) and run.folder.exists("zarr.json"):
        console.print("whether the store holds features of these weights is seen when they are on this machine")
    _show_cost(console, run, writer, missing)
    return Exit.USAGE if lacking else Exit.COMPLETE


def _weights(run: Run) -> tuple[list[str], list[str]]:
    """Lines about the weights that a run would download, and about those that it would not find."""
    to_fetch, lacking = [], []
    for encoder in (run.encoders.visual, run.encoders.audio, run.encoders.text):
        for part in encoder.weight_parts():
            try:
                part.find()
            except NotFetched as error:
                to_fetch.append(f"not on this machine, a run downloads it: {part.name}, {error}")
            except WeightsError as error:
                lacking.append(f"missing, a run ends here: {part.name}: {error}")
    return to_fetch, lacking


def _description(run: Run, compare: bool) -> dict[str, Any]:
    """What the store would be opened with.

    Args:
        compare: whether the weights are hashed, to compare them with those of a store that exists. Otherwise they are
            taken to be that store's.
    """
    exists = run.folder.exists("zarr.json")
    if exists and compare:
        return run.description()
    found = dataclasses.replace(run, encoders=_without_weights(run, run.encoders.visual.levels)).description()
    known = StoreWriter.attach(run.folder.location).schema.encoders if exists else {}
    for stream, facts in found["encoders"].items():
        if str(known.get(stream, {}).get("weights")).startswith("sha256:"):
            facts |= {name: known[stream][name] for name in ("weights", "preprocessing")}
        elif not compare:
            facts["weights"] = "those that are not on this machine"
    return found


def _without_weights(run: Run, levels: tuple[str, ...]) -> Any:
    """The encoders of the run with zeros for weights, which compute as fast."""
    blank = WeightSource(kind="random", seed=None)
    return build_encoders(run.preset, blank, levels, run.encoders.visual.precision, run.resources.device)


def _show_cost(console: PlainConsole, run: Run, writer: StoreWriter, missing: Missing) -> None:
    """Prints bytes, and seconds where the device of the run is on this machine."""
    sizes, sharing = f"{missing.num_bytes:,} bytes", f"{missing.num_sharing} clips share another's features"
    on_gpu = run.resources.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        console.print(f"{sizes}; no GPU on this machine to measure the time on; {sharing}")
        return
    num_workers = limited_by_gpus(
        run.resources.local_workers(), run.resources.gpus_per_worker, [torch.cuda.device_count()]
    )
    num_threads = max(1, num_processors() // num_workers)
    torch.set_num_threads(num_threads)
    levels = missing.levels or run.encoders.visual.levels
    try:
        each = calibrate(run.preset, _without_weights(run, levels), run.source.clips, levels, run.resources)
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        console.print(f"{sizes}; the GPU fails, so that no time was measured: {str(error).splitlines()[0]}")
        return
    num_decoders = num_threads if on_gpu else None
    seconds = missing.seconds(each, num_workers, num_decoders)
    console.print(f"{sizes}; about {seconds:,.0f} s with {num_workers} workers on this machine; {sharing}")
    console.print(each.render())
    console.print(_costs(run, each, missing.keys["clips"], clip_bytes(writer), num_threads))


def _costs(run: Run, each: Seconds, num_missing: int, bytes_per_clip: int, num_threads: int) -> Table:
    """Bytes and hours of the clips that are missing, and of a thousand and a million like them."""
    on_gpu = run.resources.device == "cuda"
    hours_each = (each.beside(num_threads) * run.resources.gpus_per_worker if on_gpu
                  else each.of_clip * num_threads) / 3600  # fmt: skip
    costs = Table("clips", "bytes", "GPU-hours" if on_gpu else "CPU-hours", title="cost of clips as these are")
    for count in sorted({num_missing, 1_000, 1_000_000} - {0}):
        costs.add_row(f"{count:,}", f"{count * bytes_per_clip:,}", f"{count * hours_each:,.2f}")
    return costs

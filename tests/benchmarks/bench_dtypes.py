"""Bytes and speed of stores whose maps are float16, int8 and float8, and what reading them costs a step.

The same clips are written in each type. The readers take turns within one run. It also measures training that decodes
two steps of a clip and reads only these, with and without the pooled mask features of those before. `--quick` shrinks
it to a smoke test; what the types cost in J and F is measured by the grid `dtypes`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from bench_store import drop_pages, seconds, turn
from machine import describe, table

from refavs.choices import STORED_TYPES, StoredType
from refavs.data.batches import Recycler
from refavs.data.maps import Maps
from refavs.model.visual import Standardisation
from refavs.store import ArraySpec, FeatureStore, StoreSchema, StoreWriter, StreamSpec
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.quantised import quantise, stored_as, stored_rows

PACKAGES = ("torch", "numpy", "zarr")
STREAM, POOLED, SECONDS, CHANNELS = "visual/bench", "visual/bench-pooled8", 10, 256
DECODED, WAYS = 2, ("all steps", "two steps", "two steps, pooled tokens of those before")
LEVELS = {"mask_features": 4, "s8": 8, "s16": 16, "s32": 32}  # strides
USES = ("as stored", "values", "standardised")
Times = dict[tuple[StoredType, str], list[float]]


def specs_of(side: int) -> tuple[ArraySpec, ...]:
    """The pixel decoder's maps of a frame of `side` pixels, in float16."""
    return tuple(ArraySpec(name=name, shape=(SECONDS, CHANNELS, side // stride, side // stride), dtype="float16",
                           axes=("t", "c", "h", "w"), statistics=True) for name, stride in LEVELS.items())  # fmt: skip


def pooled_spec(side: int) -> ArraySpec:
    """The pooled mask features of a frame: a token for each 32 x 32 pixels."""
    return ArraySpec(name="mask_features_pooled", shape=(SECONDS, CHANNELS, side // 32, side // 32), dtype="float32",
                     axes=("t", "c", "h", "w"))  # fmt: skip


def write_pooled(folder: Path, side: int, num_clips: int) -> None:
    """Adds the pooled mask features of its clips to a store; the values do not matter."""
    writer, spec = StoreWriter.attach(folder), pooled_spec(side)
    streams = {**writer.schema.streams, POOLED: StreamSpec(fingerprint={}, arrays=(spec,), rows_per_shard=4)}
    writer = StoreWriter.open(folder, StoreSchema(
        streams=streams, source="benchmark", seconds=SECONDS, fps=1.0, mask_size=8, objects_per_shard=1,
    ))  # fmt: skip
    values = np.random.default_rng(0).standard_normal(spec.shape, np.float32)
    keys = [f"clip{number:05d}" for number in range(num_clips)]
    for plan in filter(None, writer.plan(POOLED, [keys[at : at + 4] for at in range(0, num_clips, 4)])):
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, {spec.name: values})


def write_clips(folder: Path, side: int, num_clips: int) -> dict[StoredType, list[float]]:
    """The same clips in a store of each type; the seconds that writing each clip took."""
    rng, taken, base = np.random.default_rng(0), {}, {}
    for spec in specs_of(side):
        base[spec.name] = rng.standard_normal(spec.shape, np.float32).astype(np.float16)
    for dtype in STORED_TYPES:
        specs = stored_as(specs_of(side), dtype)
        stream = StreamSpec(fingerprint={"dtype": dtype}, arrays=specs, rows_per_shard=4)
        writer = StoreWriter.open(folder / dtype, StoreSchema(
            streams={STREAM: stream}, source="benchmark", seconds=SECONDS, fps=1.0, mask_size=8, objects_per_shard=1,
        ))  # fmt: skip
        keys = [f"clip{number:05d}" for number in range(num_clips)]
        taken[dtype] = []
        for plan in filter(None, writer.plan(STREAM, [keys[at : at + 4] for at in range(0, num_clips, 4)])):
            with writer.shard(plan) as shard:
                for key in plan.keys:
                    clip = {name: np.roll(values, int(key[4:]), 0) for name, values in base.items()}
                    started = time.perf_counter()
                    shard.write(key, stored_rows(clip, specs))
                    taken[dtype].append(time.perf_counter() - started)
    return taken


def read(store: FeatureStore, rows: Sequence[int], memory: Recycler) -> Maps:
    """The maps of some clips, as a batch has them."""
    specs = store.schema.tables[STREAM].values
    found = store.read_rows({path: rows for spec in specs for path in spec.paths}, memory.empty)
    return Maps({spec.name: found[spec.path] for spec in specs},
                {spec.name: found[spec.scale_path] for spec in specs if spec.scale_path})  # fmt: skip


def use(maps: Maps, how: str, layers: dict[str, Standardisation]) -> None:
    """What a step does first with the maps of a batch."""
    for name, stored in maps.stored.items():
        if how == "values":
            _ = maps[name]
        elif how == "standardised":
            layers[name].maps(stored, maps.scales.get(name))


def bench_reads(folder: Path, num_clips: int, batch: int, repeats: int, cold: bool) -> Times:
    """Seconds for random batches in each type and each use, in turns."""
    memory, rng = Recycler(), np.random.default_rng(1)
    layers = {name: Standardisation(CHANNELS) for name in LEVELS}
    stores = {dtype: FeatureStore(folder / dtype, verify="never") for dtype in STORED_TYPES}
    taken: Times = {(dtype, how): [] for dtype in STORED_TYPES for how in USES}
    if not cold:
        for store in stores.values():  # every page is touched once
            for start in range(0, num_clips, batch):
                read(store, range(start, min(start + batch, num_clips)), memory)

    def step(dtype: StoredType, how: str, rows: Sequence[int]) -> None:
        store = FeatureStore(folder / dtype, verify="never") if cold else stores[dtype]
        use(read(store, rows, memory), how, layers)

    for repeat in range(repeats):
        rows = rng.choice(num_clips, batch, replace=False).tolist()
        for place in turn([str(place) for place in range(len(taken))], repeat):
            dtype, how = list(taken)[int(place)]
            if cold:
                drop_pages(folder / dtype)
            taken[dtype, how].append(seconds(lambda dtype=dtype, how=how, rows=rows: step(dtype, how, rows)))
    return taken


def read_table(title: str, taken: Times, batch: int) -> str:
    """Clips a second in each type, and as a multiple of float16."""
    rows = []
    for how in USES:
        base = taken["float16", how]
        rows.append([how, *(f"{batch / min(times):.0f} / {batch / median(times):.0f}"
                            for times in (taken[dtype, how] for dtype in STORED_TYPES)),
                     *(f"{min(base) / min(times):.2f} / {median(base) / median(times):.2f}"
                       for times in (taken[dtype, how] for dtype in STORED_TYPES[1:]))])  # fmt: skip
    header = ["a batch", *(f"{dtype}, clips/s best / median" for dtype in STORED_TYPES),
              *(f"{dtype} x float16" for dtype in STORED_TYPES[1:])]  # fmt: skip
    return f"### {title}\n\n{table(header, rows)}"


def steps_read(store: FeatureStore, way: str, frames: Sequence[int]) -> dict[str, Sequence[int]]:
    """The steps of each array that a training step with these frames reads."""
    before = range(frames[-1] + 1)
    paths = [spec.path for spec in store.schema.tables[STREAM].values]
    if way == WAYS[0]:
        return dict.fromkeys(paths, range(SECONDS))
    if way == WAYS[1]:
        return {path: before if path.endswith("mask_features") else frames for path in paths}
    return {**dict.fromkeys(paths, frames), f"clips/{POOLED}/mask_features_pooled": before}


def bench_steps(folder: Path, num_clips: int, batch: int, repeats: int, cold: bool) -> str:
    """Clips a second and bytes of a clip, for training steps that read all steps or only what they need, in turns."""
    memory, rng = Recycler(), np.random.default_rng(2)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    sizes: dict[str, list[float]] = {way: [] for way in WAYS}
    store = FeatureStore(folder, verify="never")
    for row in () if cold else range(num_clips):  # every page is touched once
        for path in store.specs:
            if path.startswith("clips/visual"):
                store.read_rows({path: [row]}, memory.empty)
    for repeat in range(repeats):
        rows = rng.choice(num_clips, batch, replace=False).tolist()
        frames = sorted(rng.choice(SECONDS, DECODED, replace=False).tolist())
        for way in turn(list(WAYS), repeat):
            if cold:
                drop_pages(folder)
                store = FeatureStore(folder, verify="never")
            wanted = steps_read(store, way, frames)
            started = time.perf_counter()
            found = store.read_rows({path: rows for path in wanted}, memory.empty, wanted)
            taken[way].append(time.perf_counter() - started)
            sizes[way].append(sum(maps.nbytes for maps in found.values()) / len(rows) / 1e6)
    base = taken[WAYS[0]]
    lines = [[way, f"{np.mean(sizes[way]):.1f}", f"{batch / min(times):.0f} / {batch / median(times):.0f}",
              f"{min(base) / min(times):.2f} / {median(base) / median(times):.2f}"] for way, times in taken.items()]
    return table(["a step reads", "MB a clip", "clips/s best / median", "x all steps"], lines)


def write_table(folder: Path, taken: dict[StoredType, list[float]]) -> str:
    """Bytes of a clip and the speed of writing, disk included."""
    num_bytes = {dtype: sum(path.stat().st_size for path in (folder / dtype).rglob("c.*")) for dtype in STORED_TYPES}
    rows = [[dtype, f"{num_bytes[dtype] / len(times) / 1e6:.2f}", f"{num_bytes[dtype] / num_bytes['float16']:.3f}",
             f"{1 / median(times):.1f}"] for dtype, times in taken.items()]  # fmt: skip
    return "### Bytes and writing\n\n" + table(["type", "MB a clip", "x float16 (target <= 0.52)", "clips/s"], rows)


def parts_table(side: int, repeats: int) -> str:
    """What is computed of a clip before it is written, and the error that stays."""
    (spec, *_) = specs_of(side)
    values = np.random.default_rng(0).standard_normal(spec.shape, np.float32).astype(np.float16)
    parts: dict[str, Callable[[], object]] = {"statistics of float16": lambda: ChannelSums.of(values, 1)}
    rows = []
    for dtype in STORED_TYPES[1:]:
        (other, *_) = stored_as([spec], dtype)
        parts[f"quantise to {dtype}"] = lambda other=other: quantise(values, other)
        stored, scale = quantise(values, other)
        found = Maps({"x": torch.from_numpy(stored)[None]}, {"x": torch.from_numpy(scale)[None]})["x"][0].numpy()
        error = np.linalg.norm(found - values) / np.linalg.norm(values.astype(np.float32))
        rows.append([f"relative error of {dtype}, normal values", f"{100 * error:.2f} %"])
    for name, part in parts.items():
        best = min(seconds(part) for _ in range(repeats))
        rows.append([name, f"{values.nbytes / best / 1e9:.2f} GB/s of float16"])
    return "### Parts of writing the mask features of a clip\n\n" + table(["", ""], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few small clips, to see that it works")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to write; its disk is measured")
    parser.add_argument("--repeats", type=int, default=8, help="batches of each kind")
    args = parser.parse_args(argv)
    side, num_clips, batch, repeats = (64, 6, 2, 2) if args.quick else (384, 24, 4, args.repeats)
    print(f"{describe(Path(args.folder), PACKAGES)}, {torch.get_num_threads()} threads of torch", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-dtypes-", dir=args.folder) as name:
        folder = Path(name)
        print("\n" + write_table(folder, write_clips(folder, side, num_clips)), flush=True)
        for title, cold in (("Warm reads", False), ("Cold reads", True)):
            taken = bench_reads(folder, num_clips, batch, repeats, cold)
            print("\n" + read_table(f"{title}, {batch} clips to a batch", taken, batch), flush=True)
        write_pooled(folder / "float16", side, num_clips)
        for title, cold in (("Warm reads", False), ("Cold reads", True)):
            found = bench_steps(folder / "float16", num_clips, batch, repeats, cold)
            print(f"\n### {title} of a training step that decodes {DECODED} of {SECONDS} steps\n\n{found}", flush=True)
    print("\n" + parts_table(side, repeats))
    return 0


if __name__ == "__main__":
    sys.exit(main())

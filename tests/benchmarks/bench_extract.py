"""How fast extraction is: the pipeline against its encoders alone, bf16 against fp32, and a run with nothing to do.

Prints Markdown tables of ratios, each from one run. Weights are random, which takes the same time as real ones; the
cosines of preset tiny are of its own weights. Usage: python tests/benchmarks/bench_extract.py [--quick]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from extract.encoders.mask2former import VISUAL_LEVELS
from extract.encoders.presets import preset_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.media.clip import Media, read_media
from extract.pipeline.content import contents_of
from extract.pipeline.plan import Job, plan_jobs, wanted_units
from extract.pipeline.ray_pool import JOBS_PER_WORKER
from extract.pipeline.tables import write_tables
from extract.pipeline.worker import Worker
from refavs.choices import Precision
from refavs.data.layouts import Source, read_source
from refavs.machine.processors import num_processors
from refavs.store.format.schema import StoreSchema
from refavs.store.writer import StoreWriter
from refavs.synthetic.write import write_benchmark

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe, table

from refavs.steps import Steps

RANDOM = WeightSource(kind="random")
NUM_FRAMES = 4  # of the comparison of precisions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all three parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="preset tiny and few clips: whether it runs, not how fast")
    parser.add_argument("--clips", type=int, default=4, help="clips of preset base through the pipeline")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    threads = num_processors()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "timm", "transformers", "av", "zarr", "numpy"]), flush=True)
        preset = "tiny" if args.quick else "base"
        num_clips = 3 if args.quick else args.clips
        write_benchmark(root / "bench", num_clips, seed=0, size=preset_named(preset).mask_size, videos=num_clips)
        source = read_source(root / "bench" / "videos")
        for precision in ("fp32", "bf16"):
            measure_pipeline(root / precision, source, preset, precision, threads)
        measure_precision(source, preset, WeightSource() if args.quick else RANDOM)
        if not args.quick:
            measure_precision(source, "tiny", WeightSource())
        shutil.rmtree(root / "bf16")
        measure_rerun(root / "many", source, *((50, 1) if args.quick else (1000, 3)))
    return 0


def measure_pipeline(root: Path, source: Source, preset: str, precision: Precision, threads: int) -> None:
    """One worker with all processors, as Ray would run it, against the same encoders on what is decoded already."""
    streams = streams_of(preset, RANDOM, ("pixel_decoder",), precision)
    jobs = open_store(root, source, streams, rows_per_shard=2)
    worker = Worker(str(root), streams, num_threads=threads)
    medias = [read_media(clip, streams.steps, *streams.inputs()) for clip in source.clips]
    encode(streams, medias[:1])  # reads weights, warms up
    started = time.perf_counter()
    with ThreadPoolExecutor(JOBS_PER_WORKER) as pool:
        results = list(pool.map(worker.run, jobs))
    wall_s = time.perf_counter() - started
    assert not any(result.failures or result.error for result in results)
    started = time.perf_counter()
    encode(streams, medias)
    alone_s = time.perf_counter() - started
    stages = {name: sum(result.stages_s[name] for result in results) for name in results[0].stages_s}
    num_bytes = sum(result.num_bytes for result in results)
    print(f"\n### Pipeline: preset {preset}, {precision}, {len(medias)} mp4 clips, {threads} threads\n")
    print(table(
        ["encoders alone, s", "wall, s", "alone / wall", "clips/s", "written, MB", "stages of the worker's threads, s"],
        [[f"{alone_s:.1f}", f"{wall_s:.1f}", f"{alone_s / wall_s:.3f}", f"{len(medias) / wall_s:.3f}",
          f"{num_bytes / 1e6:.0f}", ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())]],
    ), flush=True)  # fmt: skip


def streams_of(
    preset: str, weights: WeightSource, levels: Sequence[str], precision: Precision, device: str = "cpu"
) -> StreamSet:
    """The streams of a preset."""
    setup = EncoderSetup(weights=weights, precision=precision, device=device)
    return choose_streams(preset_named(preset).streams, Steps(10), lambda name: setup, levels)


def encode(streams: StreamSet, medias: Sequence[Media]) -> None:
    """What the worker asks of the encoders, clip by clip, and nothing else."""
    clips = streams.of("visual", "audio").values()
    for media in medias:
        for stream in clips:
            encoder = streams.encoders[stream.encoder]
            encoder.encode([encoder.prepare(media.taken(encoder.takes))], [stream.level])


def measure_precision(source: Source, preset: str, weights: WeightSource) -> None:
    """Frames per second of the whole visual path in turns, and the cosine of each map against fp32."""
    forms, _ = streams_of(preset, weights, VISUAL_LEVELS, "fp32").inputs()
    frames = read_media(source.clips[0], Steps(10), forms, []).frames[forms[0]][:NUM_FRAMES]
    seconds: dict[str, list[float]] = {}
    maps: dict[str, dict[str, np.ndarray]] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    encoders = {precision: next(iter(streams_of(preset, weights, VISUAL_LEVELS, precision).encoders.values()))
                for precision in precisions}  # fmt: skip
    for _ in range(4):
        for precision, encoder in encoders.items():
            started = time.perf_counter()
            maps[precision] = encoder.encode([frames], ["pixel_decoder"])[0]
            seconds.setdefault(precision, []).append(time.perf_counter() - started)
    best = {precision: min(values[1:]) / len(frames) for precision, values in seconds.items()}
    maps = {precision: encoder.encode([frames], VISUAL_LEVELS)[0] for precision, encoder in encoders.items()}
    print(f"\n### bf16 against fp32: preset {preset}, weights {weights.kind}\n")
    print(table(
        ["", "s / frame", "frames/s"],
        [*([precision, f"{value:.4f}", f"{1 / value:.2f}"] for precision, value in best.items()),
         ["bf16 / fp32", "", f"{best['fp32'] / best['bf16']:.2f}"]],
    ))  # fmt: skip
    print()
    rows = []
    for path, high in maps["fp32"].items():
        one, other = high.astype(np.float64).ravel(), maps["bf16"][path].astype(np.float64).ravel()
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        rows.append([path, f"{cosine:.6f}", f"{high.std(dtype=np.float64):.2f}"])
    print(table(["map", "cosine with fp32", "deviation"], rows), flush=True)


def measure_rerun(root: Path, source: Source, num_clips: int, num_runs: int) -> None:
    """The whole command, from the shell, on a store that has everything; a MiB of video for each clip."""
    (root / "videos").mkdir(parents=True)
    video = source.clips[0].video
    assert video is not None
    start, num_bytes = video.read_bytes(), 2**20
    for number in range(num_clips):
        # A `free` box at the end of an MP4 changes its bytes and nothing else.
        content = number.to_bytes(8, "big") * ((num_bytes - len(start) - 8) // 8)
        box = (len(content) + 8).to_bytes(4, "big") + b"free" + content
        (root / "videos" / f"clip{number:05d}.mp4").write_bytes(start + box)
    many, streams = read_source(root / "videos"), streams_of("tiny", RANDOM, ("backbone",), "fp32")
    jobs = open_store(root / "store", many, streams, rows_per_shard=8)
    writer = StoreWriter.attach(root / "store")
    for plan in (shard for job in jobs for shard in job.shards):
        arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in writer.schema.tables[plan.table].arrays}
        with writer.shard(plan) as shard:
            for key in plan.keys:
                shard.write(key, arrays)
    write_tables(writer, many, contents_of(many.clips, streams.steps)[0])
    writer.finalise()
    command = [sys.executable, "-m", "extract.cli", str(root / "videos"), str(root / "store"), "--preset", "tiny",
               "--weights", "random", "--levels", "backbone"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    seconds = []
    for _ in range(num_runs):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import extract.pipeline.extraction"], check=True, env=environment)
    imports_s = time.perf_counter() - started
    print(f"\n### Nothing to do: {num_clips} clips, {num_clips * num_bytes / 1e6:.0f} MB of videos looked at\n")
    print(table(
        ["whole command, s (runs in turn)", "of that imports, s", "Ray"],
        [[" / ".join(f"{value:.1f}" for value in seconds), f"{imports_s:.1f}", "not started"]],
    ), flush=True)  # fmt: skip


def open_store(root: Path, source: Source, streams: StreamSet, rows_per_shard: int) -> list[Job]:
    """A new store for the source's clips; what there is to do in it."""
    specs = {id: replace(spec, rows_per_shard=rows_per_shard) for id, spec in streams.specs().items()}
    writer = StoreWriter.open(root, StoreSchema(
        streams=specs, source=str(source.root), seconds=streams.steps.seconds, fps=1.0, mask_size=96,
        objects_per_shard=64,
    ))  # fmt: skip
    return plan_jobs(writer, wanted_units(source, streams, contents_of(source.clips, streams.steps)[0]))


if __name__ == "__main__":
    sys.exit(main())

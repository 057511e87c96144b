"""Scores frames against the literal loop over 255 thresholds, recomputes every protocol, and reports a large sweep.

`make bench-metrics` runs it. The loop is the authors' formula as it is written, on one thread as ours; what both find
is compared. The statistics of the benchmark's size repeat those of some frames, with neighbouring cells of the
histograms swapped at random. `--quick` shrinks it to a smoke test.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from machine import describe, table
from torch import Tensor
from torch.nn import functional

from experiments.grid.config import TrialConfig
from experiments.records.record_types import write_json
from experiments.training.history import write_history
from refavs.config import flat
from refavs.data.batches import Batch
from refavs.data.cues import DIMENSIONS
from refavs.metrics import PROTOCOLS, Recorder, Statistics, concat, read_facts, released, write_statistics
from refavs.metrics.frame_counts import HISTOGRAMS, frame_statistics
from refavs.metrics.frame_counts import describe as expressions_of
from refavs.model.decoder import predict
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions

NUM_EXPRESSIONS, NUM_FRAMES, DISTINCT = 20_434, 10, 64
SPLITS = {"train": 14_113, "val": 1_349, "test_s": 2_288, "test_u": 1_656, "test_n": 1_028}
EVALUATED = ("val", "test_s", "test_u", "test_n")  # what a trial leaves statistics of: 6,321 expressions
NUM_RUNS, NUM_SEEDS = 60, 3


def main() -> int:
    """Runs all parts; 1 where what we find is not what the loop finds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: small sizes, numbers mean nothing")
    parser.add_argument("--folder", type=Path, help="where the statistics are written; a temporary one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(describe(Path(folder), ("torch", "numpy", "pyarrow")), flush=True)
        worst = bench_frames(4 if arguments.quick else 40)
        bench_inference(arguments.quick)
        size, share = (40, 0.015) if arguments.quick else (384, 1)
        splits = {name: int(share * count) for name, count in SPLITS.items()}
        bench_protocols(Path(folder), splits, size)
        bench_report(Path(folder), splits, size, 6 if arguments.quick else NUM_RUNS)
    return int(worst > 1e-6)


def make_frames(num_frames: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth logits and masks that agree in part; every fifth frame has no object."""
    maker = torch.Generator().manual_seed(seed)
    coarse = 4 * torch.randn(2, num_frames, 1, 8, 8, generator=maker)
    smooth = [functional.interpolate(part, size=(size, size), mode="bicubic")[:, 0] for part in coarse]
    masks = smooth[0] > 4
    masks[::5] = False
    return smooth[0] + 0.5 * smooth[1] - 3, masks


def literal(logits: Tensor, masks: Tensor) -> dict[str, float]:
    """J, F and S of the frames as one batch, threshold by threshold."""
    probs, target = logits.sigmoid(), masks.float()
    jaccard, curves = [], []
    for prob, mask in zip(probs, target, strict=True):
        pred = (prob > 0.4).float()
        if mask.sum() == 0:
            jaccard.append(float((1 - pred).mean()))
            continue
        jaccard.append(float((pred * mask).sum() / (torch.maximum(pred, mask).sum() + 1e-7)))
        curve = torch.zeros(255, dtype=torch.float64)
        for place, threshold in enumerate(torch.linspace(0, 1 - 1e-10, 255, dtype=torch.float64).float()):
            pred = (prob >= threshold).float()
            hits = (pred * mask).sum().double()
            precision, recall = hits / (pred.sum() + 1e-20), hits / (mask.sum() + 1e-20)
            curve[place] = 1.3 * precision * recall / (0.3 * precision + recall)
        curves.append(curve.nan_to_num(0.0))
    return {"J": float(np.mean(jaccard)), "F": float(torch.stack(curves).mean(0).max()),
            "S": float((probs > 0.5).float().mean().sqrt())}  # fmt: skip


def timed(work: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def bench_frames(num_frames: int) -> float:
    """J, F and S of frames 256 x 256; returns the largest difference from the loop."""
    logits, masks = make_frames(num_frames, 256)
    released(logits[:2], masks[:2])
    theirs, ours = [], []
    for _ in range(3):  # in turns, so that whatever else the machine does meets both
        theirs += timed(lambda: literal(logits, masks), 1)
        ours += timed(lambda: released(logits, masks), 10)
    expected, found = literal(logits, masks), released(logits, masks)
    worst = max(abs(expected[name] - getattr(found, name)) for name in "JFS")
    print(f"\n### J, F and S of {num_frames} frames 256 x 256, one thread\n")
    print(table(("", "fastest", "median"), [
        ("loop over 255 thresholds", f"{min(theirs):.3f} s", f"{median(theirs):.3f} s"),
        ("refavs", f"{1000 * min(ours):.1f} ms", f"{1000 * median(ours):.1f} ms"),
        ("times as fast (target 100)", f"{min(theirs) / min(ours):.0f}", f"{median(theirs) / median(ours):.0f}"),
    ]))  # fmt: skip
    print(f"\nLargest difference in J, F or S: {worst:.1e} (accepted: 1e-6).", flush=True)
    return worst


def bench_inference(quick: bool) -> None:
    """What the statistics of a clip cost beside the head's inference of it, at the benchmark's size."""
    size = 96 if quick else 384
    sides = {"mask_features": size // 4, "s8": size // 8, "s16": size // 16, "s32": size // 32}
    maps = tuple(
        MapSize(name=name, path=f"clips/visual/made-up/pixel_decoder/{name}", channels=256, height=side, width=side)
        for name, side in sides.items()
    )
    sizes = FeatureSizes(maps=maps, audio=StreamSize(path="clips/audio/vggish/features", channels=128),
                         text=StreamSize(path="text/roberta/features", channels=768))  # fmt: skip
    options = {"num_layers": 1, "num_queries": 4, "decoder_layers": 1} if quick else {}
    model = EEMC(EEMCOptions(**options), sizes).eval()
    logits, masks = make_frames(NUM_FRAMES, size)
    probs, masks = logits.sigmoid()[None], masks[None]
    batch = Batch(
        visual={part.name: torch.randn(1, NUM_FRAMES, 256, part.height, part.width).half() for part in maps},
        audio=torch.randn(1, NUM_FRAMES, 128), text=torch.randn(1, 25, 768), valid=torch.ones(1, 25).bool(),
        clip=torch.zeros(1, dtype=torch.int64), mask=masks, uid=["a"], split=["test_s"], dimension=["spatial"],
        text_string=["the thing"],
    )  # fmt: skip
    with torch.inference_mode():
        inference = timed(lambda: predict(model(batch), (size, size)), 1 if quick else 2)
    counted = timed(lambda: frame_statistics(probs, masks), 5)
    print(f"\n### One expression of 10 frames {size} x {size}, one thread\n")
    print(table(("", "fastest", "median"), [
        ("inference of the head", f"{min(inference):.3f} s", f"{median(inference):.3f} s"),
        ("statistics", f"{min(counted):.3f} s", f"{median(counted):.3f} s"),
        ("share of it", f"{min(counted) / min(inference):.1%}", f"{median(counted) / median(inference):.1%}"),
    ]), flush=True)  # fmt: skip


def bench_protocols(folder: Path, splits: Mapping[str, int], size: int) -> None:
    """All protocols of all splits from the statistics, in a process of its own, whose memory is watched."""
    path, num_expressions = folder / "statistics.parquet", sum(splits.values())
    started = time.perf_counter()
    write_statistics(path, make_statistics(splits, size))
    written = time.perf_counter() - started
    script = Path(__file__).with_name("recompute_protocols.py")
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=True)
    seconds, peak, values = done.stdout.split(maxsplit=2)
    print(f"\n### All protocols of {num_expressions} expressions x {NUM_FRAMES} frames from statistics\n")
    print(table(("what", "found", "target"), [
        ("read, scored and grouped", f"{float(seconds):.1f} s", "60 s"),
        ("peak memory of the process", f"{float(peak) / 1e9:.2f} GB", "2 GB"),
        ("file", f"{path.stat().st_size / 1e6:.0f} MB", ""),
        ("made and written before", f"{written:.1f} s", ""),
    ]))  # fmt: skip
    print(f"\n{values.strip()}", flush=True)


def bench_report(folder: Path, splits: Mapping[str, int], size: int, num_runs: int) -> None:
    """`refavs-report` on a sweep, as a command; each run has the same statistics, read anew."""
    sweep, splits = folder / "sweep", {name: splits[name] for name in EVALUATED}
    path = folder / "evaluated.parquet"
    write_statistics(path, make_statistics(splits, size))
    num_lines = make_sweep(sweep, path, num_runs)
    script = Path(__file__).with_name("report_sweep.py")
    lines = []
    for protocols in (["canonical"], list(PROTOCOLS)) if num_runs == NUM_RUNS else (list(PROTOCOLS),):
        asked = [part for protocol in protocols for part in ("--protocol", protocol)]
        started = time.perf_counter()
        done = subprocess.run([sys.executable, str(script), str(sweep), *asked], stdout=subprocess.PIPE, check=True)
        lines.append((
            ", ".join(protocols), f"{time.perf_counter() - started:.1f} s",
            "60 s" if protocols == ["canonical"] else "", f"{float(done.stdout.split()[-1]) / 1e9:.2f} GB",
        ))  # fmt: skip
    sizes = f"{num_runs} runs ({num_lines} rows) x {sum(splits.values())} expressions x {NUM_FRAMES} frames"
    print(f"\n### Report of {sizes}\n")
    print(table(("protocols", "found", "target", "peak memory"), lines))
    megabytes = path.stat().st_size / 1e6
    print(f"\nHTML, Markdown, CSV, LaTeX and figures; imports included. {megabytes:.0f} MB of statistics a run, of one "
          f"file under {num_runs} names.", flush=True)  # fmt: skip


def make_sweep(sweep: Path, statistics: Path, num_runs: int) -> int:
    """A sweep's folder with runs in settings of a few seeds each; returns the number of settings."""
    store = read_facts(statistics)["store"]
    num_lines = num_runs // NUM_SEEDS
    for place in range(num_runs):
        line, seed = divmod(place, NUM_SEEDS)
        config = {**flat(TrialConfig()), "model.beta": line / 4, "model.audio": line != 1, "seed": seed}
        folder = sweep / "trials" / f"{place:016d}"
        folder.mkdir(parents=True)
        (folder / "statistics.parquet").hardlink_to(statistics)
        history = [{"epoch": e, "metrics": {"train/loss": 1 / e, "val/J": e / 99}} for e in range(1, 51)]
        write_history(folder / "metrics.jsonl", history)
        facts = {"key": str(place), "name": f"beta {line / 4}", "seed": seed, "store": store, "config": config}
        result = {"epoch": 1, "metrics": {}}
        for name, content in (("config", facts), ("status", {"state": "finished"}), ("result", result)):
            write_json(folder / f"{name}.json", content)
    write_json(sweep / "sweep.json", {"grid": "beta", "store": "made-up", "fingerprint": store})
    return num_lines


def make_statistics(splits: Mapping[str, int], size: int) -> Statistics:
    """Statistics of some frames, repeated with shuffled histograms until there are as many as the splits have."""
    names = [name for name, count in splits.items() for _ in range(count)]
    num_expressions = len(names)
    distinct, every = min(DISTINCT, num_expressions), range(num_expressions)
    expressions = pd.DataFrame({
        "uid": [f"clip{row // 5}_0_1_thing{row % 40}_{row}" for row in every], "fid": 1, "split": names,
        "clip_id": [f"clip{row // 5}" for row in every], "grade": [str(1 + row % 5) for row in every],
        "dimension": [DIMENSIONS[row % len(DIMENSIONS)] for row in every],
        "text": [" ".join(["thing", *["more"] * (row % 15), str(row % 977)]) for row in every],
    })  # fmt: skip
    recorder = Recorder(table=expressions, store="made-up")
    for row in range(distinct):
        logits, masks = make_frames(NUM_FRAMES, size, row)
        recorder.add([row], logits.sigmoid()[None], masks[None])
    known, rng, parts = recorder.statistics(), np.random.default_rng(0), []
    for start in range(0, num_expressions, distinct):
        rows = np.arange(start, min(start + distinct, num_expressions))
        frames = {name: values[: len(rows)].copy() for name, values in known.frames.items()}
        for name in HISTOGRAMS:
            pairs = frames[name][..., 2:254].reshape(*frames[name].shape[:2], 126, 2)
            swapped = np.where(rng.random(pairs.shape[:3])[..., None] < 0.5, pairs, pairs[..., ::-1])
            frames[name][..., 2:254] = swapped.reshape(*swapped.shape[:2], 252)
        described = expressions_of(expressions, rows.tolist())
        parts.append(Statistics(expressions=described, frames=frames, facts=known.facts))
    return concat(parts)


if __name__ == "__main__":
    sys.exit(main())

"""Encoders: parity with their reference classes, one input at a time against batches, and Flan-T5 added to a store.

Prints Markdown tables. Weights are random, which takes the same time as real ones. The expressions are those of the
real metadata.csv where `--metadata` finds it. Usage: python tests/benchmarks/bench_encoders.py [--quick]
"""

import argparse
import csv
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.streams import MOST_TEXTS
from extract.encoders.weights import WeightSource
from refavs.data.layouts.ref_avs_metadata import read_metadata
from refavs.machine.processors import num_processors
from refavs.synthetic.write import write_benchmark

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))  # the references are those of the tests
from machine import describe, table

ROOT = Path(__file__).parents[2]
METADATA = ROOT.parent / "shared" / "data" / "metadata.csv"
FLAN = "flan-t5-base"
SMALL = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 1024, "pad_token_id": 0,
         "feed_forward_proj": "gated-gelu"}  # fmt: skip
TARGET = 0.9
PARTS = ("parity", "batches", "added")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the three parts, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few cases and small networks: whether it runs")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--metadata", type=Path, default=METADATA, help="the benchmark's metadata.csv")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    torch.set_num_threads(num_processors())
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "transformers", "tokenizers", "timm"]), flush=True)
        parts = (args.only,) if args.only else PARTS
        if "parity" in parts:
            measure_parity(root / "parity", args.quick)
        texts = [f"The object number {number}." for number in range(12)] if args.quick else real_texts(args.metadata)
        if "batches" in parts and not args.quick:
            measure_batches(texts)
        if "added" in parts and texts:
            measure_added(root, texts, args.quick)
    return 0


def measure_parity(root: Path, quick: bool) -> None:
    """One row for each encoder: the greatest difference over the greatest value, in fp32."""
    modules = [f"tests.extract.parity.{modality}" for modality in ("text", "audio", "visual")]
    rows = []
    for module in modules:
        if importlib.util.find_spec(module) is None:
            continue
        for name, run in list(importlib.import_module(module).CASES.items())[: 1 if quick else None]:
            folder = root / name
            folder.mkdir(parents=True)
            rows.append((name, module.rsplit(".", 1)[-1], f"{run(folder):.1e}"))
    print("\n### Parity with the reference classes (target 1e-5)\n")
    print(table(("encoder", "modality", "largest difference / largest value"), rows), flush=True)


def measure_batches(texts: Sequence[str]) -> None:
    """Inputs a second of processor time: one after the other, and as many at once as may be."""
    texts = texts[:MOST_TEXTS] or [f"The {word} object, which sounds" + " again" * (number % 9)
                                   for number, word in enumerate(["first", "last", "left", "only"] * 64)]  # fmt: skip
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.standard_normal(160_000)).astype(np.float32) for _ in range(8)]
    rows = []
    for name in ("roberta-base", FLAN, "whisper-base", "beats-iter3-plus"):
        encoder: Any = make_encoder(name, EncoderSetup(weights=WeightSource(kind="random")))
        level = next(iter(encoder.levels))
        items = [encoder.prepare(item) for item in (texts if encoder.modality == "text" else sounds)]
        alone_s = best_s(lambda of=encoder, items=items, level=level: [of._features([one], [level]) for one in items])
        together = encoder.encode if encoder.modality == "text" else encoder._features
        together_s = best_s(partial(together, items, [level]))
        rows.append((name, f"{len(items)}", f"{len(items) / alone_s:.1f}", f"{len(items) / together_s:.1f}",
                     f"{alone_s / together_s:.2f}"))  # fmt: skip
    print("\n### One input at a time against many: texts as they are encoded, sounds eight at once\n")
    print(table(("encoder", "inputs", "inputs/s, one by one", "inputs/s, together", "gain"), rows), flush=True)


def best_s(call: Any, times: int = 3) -> float:
    """Seconds of processor time of the fastest of a few calls after the first."""
    call()
    found = []
    for _ in range(times):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return min(found)


def real_texts(metadata: Path) -> list[str]:
    """The distinct expressions of the benchmark; none where the file is not there."""
    if not metadata.is_file():
        print(f"\nFlan-T5 on the real expressions: left out, {metadata} is not there")
        return []
    return read_metadata(str(metadata))[0]["text"].drop_duplicates().tolist()


def measure_added(root: Path, texts: Sequence[str], quick: bool) -> None:
    """refavs-extract --streams, on a store that has the expressions already; its encoder's share of the whole time."""
    write_benchmark(root / "bench", 1, seed=0, size=96, videos=1)
    videos, expressions = root / "bench" / "videos", root / "expressions.csv"
    (video,) = videos.glob("*.mp4")
    with expressions.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("video", "exp"), *((video.name, text) for text in texts)])
    options = ["--weights", "random", "--log", str(root / "log.jsonl")]
    if quick:
        (root / "weights" / FLAN).mkdir(parents=True)
        (root / "weights" / FLAN / "config.json").write_text(json.dumps(SMALL))
        (root / "weights" / FLAN / "tokenizer.json").write_bytes(
            (ROOT / "extract" / "presets" / "tiny" / "tokenizer.json").read_bytes())  # fmt: skip
        options += ["--weights-dir", str(root / "weights")]
    command = [sys.executable, "-m", "extract.cli", str(videos), str(root / "store"), "--expressions",
               str(expressions)]  # fmt: skip
    subprocess.run([*command, "--preset", "tiny"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    subprocess.run([*command, "--streams", FLAN, *options], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - started
    end = json.loads((root / "log.jsonl").read_text().splitlines()[-1])
    encode_s = end["stages_s"]["encode"] / end["workers"]
    print(f"\n### {FLAN} added to a store of {len(texts):,} expressions, {end['workers']} workers\n")
    rows = [(f"{wall_s:.1f}", f"{encode_s:.1f}", f"{encode_s / wall_s:.2f}", f"{end['encoder_utilisation']:.2f}",
             f"{end['encoders'][FLAN]['inputs_per_s'] * end['workers']:.1f}")]  # fmt: skip
    header = ("s, whole command", "s, encoder alone", f"encoder / whole (target {TARGET})",
              "busy from first to last job", "expressions/s in the encoders")  # fmt: skip
    print(table(header, rows), flush=True)


if __name__ == "__main__":
    sys.exit(main())

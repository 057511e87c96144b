"""How fast a head trains from the store: against the encoders in the loop, against the release, against the processor.

Prints Markdown tables; a ratio is of times taken in turn in one run. Weights and features are random, which takes the
same time as real ones. Usage: python tests/benchmarks/bench_train.py [--quick]
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.grid.config import TrialConfig
from experiments.training.learner import Learner
from experiments.training.loop import build_model
from extract.encoders.presets import preset_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from refavs import config as settings
from refavs.data.batches import Batch, batches
from refavs.data.prefetch import Ahead
from refavs.machine.processors import num_processors
from refavs.store import FeatureStore

sys.path.insert(0, str(Path(__file__).parent))
from machine import GrowingTable, describe, table
from release_step import ReleaseSizes, ReleaseStep
from train_shortcuts import masks_downsampled_after, repeated_tokens, whole_masks
from train_store import PER_CLIP, SENTENCE, write_store

from refavs.steps import Steps

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUICK = {"model.num_layers": 1, "model.num_queries": 8, "model.num_heads": 4, "model.decoder_layers": 3,
         "loss.num_points": 64}  # fmt: skip
QUICK_RELEASE = ReleaseSizes(
    input_size=96, mask_size=64, swin_channels=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window=6, channels=96,
    num_queries=8, decoder_layers=4,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="preset tiny: whether it runs, not how fast")
    parser.add_argument("--rounds", type=int, default=2, help="timed calls of each; the median counts")
    parser.add_argument("--clips", type=int, default=6, help="clips of the store, 63 MB each")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    parser.add_argument("--threads", type=int, default=num_processors())
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)  # the process whose memory is measured
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        print(peak_bytes(args.peak_of, args.quick))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "transformers", "timm", "numpy"]), flush=True)
        print(f"- {args.threads} threads")
        preset = preset_named("tiny" if args.quick else "base")
        setup = EncoderSetup(weights=WeightSource(kind="random"))
        streams = choose_streams(preset.streams, Steps(10), lambda name: setup)
        store = write_store(root / "store", streams.specs(), ["train"] * args.clips, mask_size=preset.mask_size)
        bench = Bench(store, streams, args.quick, 1 if args.quick else args.rounds)
        bench.table_of_targets(root / "store", args.threads)
        bench.table_of_parts()
        bench.table_of_gains()
        bench.table_of_precisions()
    return 0


class Bench:
    """The steps that are compared, all on the clips of one store."""

    def __init__(self, store: FeatureStore, streams: StreamSet, quick: bool, rounds: int) -> None:
        self.store, self.quick, self.rounds = store, quick, rounds
        self.visual, self.audio, self.text = streams.encoders.values()
        rng = np.random.default_rng(1)
        (form,), (rate_hz,) = streams.inputs()
        self.frames = rng.integers(0, 255, (store.seconds, form.size, form.size, 3), np.uint8)
        self.sound = rng.standard_normal(rate_hz * store.seconds).astype(np.float32)
        rows = range(len(store))
        self.one = next(batches(store, rows, 1))
        self.four = next(batches(store, rows, PER_CLIP))
        self.learner = new_learner(store, quick)

    def step(self, batch: Batch, learner: Learner | None = None) -> None:
        """Forward, losses, backward and AdamW, as a trial makes them."""
        (learner or self.learner).step([(0, batch)], 0, 1)

    def encode(self) -> Batch:
        """The features of a clip and an expression, computed and not read."""
        maps = self.visual.encode([self.frames], ["pixel_decoder"])[0]
        sound = self.audio.encode([self.audio.prepare(self.sound)], [""])[0]
        text = self.text.encode([self.text.prepare(SENTENCE)], [""])[0]
        (audio,), (features, valid) = sound.values(), text.values()
        visual = {path.rsplit("/", 1)[1]: torch.from_numpy(array)[None] for path, array in maps.items()}
        return replace(
            self.one, visual=visual, audio=torch.from_numpy(audio)[None], text=torch.from_numpy(features)[None],
            valid=torch.from_numpy(valid)[None],
        )  # fmt: skip

    def release(self) -> Callable[[], Any]:
        """The release's step on one clip."""
        step = ReleaseStep(QUICK_RELEASE if self.quick else ReleaseSizes())
        frames = rearrange(torch.from_numpy(self.frames), "t h w c -> t c h w").float() / 255
        length = self.one.text.shape[1]
        text = torch.randn(length, 768)
        assert self.one.mask is not None
        mask = self.one.mask[0]
        return lambda: step(frames, torch.randn(len(frames), 128), text, mask)

    def table_of_targets(self, root: Path, threads: int) -> None:
        """What is asked of a step from the store; each contender is timed next to it, so that both see one machine."""
        found = GrowingTable("Training from the store: 1 clip x 1 expression, fp32",
                             ["what", "cached step, s", "the other, s", "found", "must reach"])  # fmt: skip

        def compare(
            name: str, other: Callable[[], Any], target: str, ours: Callable[[], Any] = self.step_of_one
        ) -> None:
            one, two = in_turn([ours, other], self.rounds)
            found.add(name, f"{one:.2f}", f"{two:.2f}", f"{two / one:.2f}x", target)

        alone = [next(batches(self.store, [row], 1)) for row in range(PER_CLIP)]
        product = matrix_product(1024 if self.quick else 4096, torch.float32)
        flops = count_flops(self.step_of_one)
        step, other = in_turn([self.step_of_one, product], 2 * self.rounds)
        rate, limit = flops / step / 1e9, product_flops(product) / other / 1e9
        found.add("GFLOP/s over those of a 4096^3 product", f"{step:.2f} ({rate:.0f} GFLOP/s)", f"{limit:.0f} GFLOP/s",
                  f"{rate / limit:.2f}", "0.5")  # fmt: skip
        compare("against the encoders in the loop", lambda: self.step(self.encode()), "4x")
        compare("4 expressions in one batch against 4 batches", lambda: [self.step(one) for one in alone], "1.3x",
                lambda: self.step(self.four))  # fmt: skip
        wait_share, per_step = self.waiting()
        found.add("waiting for data / step time", f"{per_step:.2f}", "", f"{100 * wait_share:.2f} %", "2 %")
        found.add("peak memory", "", "", f"{peak_of_process(root, threads, self.quick) / 1e9:.2f} GB", "6 GB")
        release = self.release()
        compare("against the release's way", release, "15x")
        four = count_flops(lambda: self.step(self.four))
        print(f"\n{flops / 1e9:.0f} GFLOP a step are counted, {four / 1e9:.0f} in one of 4 expressions (4 "
              f"alone: {PER_CLIP * flops / four:.2f} times as many), {count_flops(release) / 1e9:.0f} in one of the "
              "release's way: matrix products, batched ones, convolutions and fused attention, forward and backward; a "
              "multiplication and an addition are two.", flush=True)  # fmt: skip

    def step_of_one(self) -> None:
        """The step that everything is compared with."""
        self.step(self.one)

    def waiting(self) -> tuple[float, float]:
        """Share of the time spent waiting for batches on a warm store, and seconds of a step."""
        rows = list(range(0, len(self.store), PER_CLIP)) * 2  # another clip each step
        for _ in batches(self.store, rows, 1):
            pass
        ahead = Ahead(batches(self.store, rows, 1, seed=0))
        started = time.perf_counter()
        for batch in ahead:
            self.step(batch)
        seconds = time.perf_counter() - started
        return ahead.waited_s / seconds, seconds / len(rows)

    def table_of_parts(self) -> None:
        """FLOPs of each part's forward pass."""
        model = self.learner.model
        with flop_counter() as counter:
            model(self.one)
        found = counter.get_flop_counts()
        parts = {name: sum(counts.values()) for name, counts in found.items() if name.count(".") == 1}
        total = sum(found["Global"].values())
        print("\n### Parts of the forward pass, GFLOP\n")
        print(table(["part", "GFLOP", "share"], [
            [name.split(".")[1], f"{flops / 1e9:.2f}", f"{100 * flops / total:.0f} %"]
            for name, flops in sorted(parts.items(), key=lambda item: -item[1])
        ]), flush=True)  # fmt: skip

    def table_of_gains(self) -> None:
        """Each shortcut against the same step without it."""
        shallow = new_learner(self.store, self.quick, {"loss.deep_supervision": False})
        some = new_learner(self.store, self.quick, {"train.frames": 2})
        copies = torch.arange(PER_CLIP)
        repeated = replace(
            self.four, clip=copies, audio=self.four.audio.expand(PER_CLIP, -1, -1).clone(),
            visual={name: torch.cat([maps] * PER_CLIP) for name, maps in self.four.visual.items()},
        )
        found = GrowingTable("What each shortcut brings to a step, s", ["shortcut", "with", "without", "gain"])

        def compare(name: str, on: Callable[[], Any], off: Callable[[], Any]) -> None:
            seconds = in_turn([on, off], self.rounds)
            found.add(name, f"{seconds[0]:.2f}", f"{seconds[1]:.2f}", f"{seconds[1] / seconds[0]:.2f}x")

        def changed(change: Any, batch: Batch = self.one) -> None:
            with change:
                self.step(batch)

        compare("maps of a clip once for its 4 expressions, not a copy each (keys, values, mask features, tokens)",
                lambda: self.step(self.four), lambda: self.step(repeated))  # fmt: skip
        compare("only the matched mask of a frame is differentiated, not all queries' masks",
                lambda: self.step(self.one), lambda: changed(whole_masks()))  # fmt: skip
        compare("mask features downsampled before the product with the queries, not the masks after it",
                lambda: self.step(self.one), lambda: changed(masks_downsampled_after()))  # fmt: skip
        compare("fused attention from 128 keys on", lambda: self.step(self.one),
                lambda: changed(mock.patch("refavs.model.attention.FUSED_KEYS", math.inf)))  # fmt: skip
        compare("text and a clip's tokens projected once in the first layer, 4 expressions",
                lambda: self.step(self.four), lambda: changed(repeated_tokens(), self.four))  # fmt: skip
        compare("2 of 10 steps decoded (a choice: train.frames=2)", lambda: self.step(self.one, some),
                lambda: self.step(self.one))  # fmt: skip
        compare("no deep supervision (a choice: loss.deep_supervision=false)", lambda: self.step(self.one, shallow),
                lambda: self.step(self.one))  # fmt: skip

    def table_of_precisions(self) -> None:
        """bf16 on this processor, and on a GPU where there is one, there with torch.compile too."""
        found = GrowingTable("Precision", ["device", "fp32, s", "bf16, s", "fp32 / bf16",
                                           "4096^3 product fp32 / bf16, GFLOP/s", "first steps, s"])  # fmt: skip
        for device, name, compiled in columns():
            learners = [
                new_learner(self.store, self.quick, {"train.precision": precision, "train.compile": compiled}, device)
                for precision in ("fp32", "bf16")
            ]
            batch = self.one.to(device)
            warm = time.perf_counter()
            for learner in learners:
                self.step(batch, learner)
            warm = time.perf_counter() - warm
            seconds = in_turn([partial(self.step, batch, learner) for learner in learners], self.rounds)
            rates = [product_rate(device, self.quick, dtype) for dtype in DTYPES.values()]
            found.add(
                name + (", compiled" if compiled else ""), f"{seconds[0]:.3f}", f"{seconds[1]:.3f}",
                f"{seconds[0] / seconds[1]:.2f}x", " / ".join(f"{rate:.0f}" for rate in rates), f"{warm:.0f}",
            )  # fmt: skip
        if not torch.cuda.is_available():
            print("\nNo GPU was to be had here, so its rows are left out.")


def new_learner(
    store: FeatureStore, quick: bool, changes: dict[str, Any] | None = None, device: str = "cpu"
) -> Learner:
    """A head of the paper's sizes before its first step."""
    config = settings.replace(TrialConfig(), (QUICK if quick else {}) | (changes or {}))
    torch.manual_seed(0)
    return Learner(config, build_model(config, store).to(device).train())


def columns() -> Iterator[tuple[str, str, bool]]:
    """Device, its name, and whether torch.compile is used."""
    yield "cpu", "this processor", False
    if torch.cuda.is_available():
        yield "cuda", torch.cuda.get_device_name(), False
        yield "cuda", torch.cuda.get_device_name(), True


def in_turn(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each call; they take turns, after one call each that is not counted."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, found in zip(calls, seconds, strict=True):
            synchronise()
            started = time.perf_counter()
            call()
            synchronise()
            if number:
                found.append(time.perf_counter() - started)
    return [statistics.median(found) for found in seconds]


def synchronise() -> None:
    """Waits for the GPU, where one is used."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_product(size: int, dtype: torch.dtype, device: str = "cpu") -> Callable[[], Tensor]:
    """The product of two square matrices."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: one @ other


def product_flops(product: Callable[[], Tensor]) -> float:
    """Of a matrix product: 2 n^3."""
    return 2.0 * len(product()) ** 3


def product_rate(device: str, quick: bool, dtype: torch.dtype) -> float:
    """GFLOP/s of a matrix product."""
    product = matrix_product(512 if quick else 4096, dtype, device)
    return product_flops(product) / in_turn([product], 3)[0] / 1e9


def count_flops(call: Callable[[], Any]) -> float:
    """FLOPs of everything `call` computes by matrix products, convolutions and fused attention."""
    with flop_counter() as counter:
        call()
    return float(counter.get_total_flops())


def flop_counter() -> FlopCounterMode:
    """torch's counter, which does not know the fused attention of a CPU; its backward counts as twice its forward."""

    def attention(query: Sequence[int], key: Sequence[int], *more: Any, **named: Any) -> int:
        batch, heads, num_queries, depth = query
        return 4 * batch * heads * num_queries * key[2] * depth

    def backward(gradient: Sequence[int], query: Sequence[int], key: Sequence[int], *more: Any, **named: Any) -> int:
        return 2 * attention(query, key)

    operations = torch.ops.aten
    return FlopCounterMode(display=False, custom_mapping={
        operations._scaled_dot_product_flash_attention_for_cpu: attention,
        operations._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    })  # fmt: skip


def peak_of_process(root: Path, threads: int, quick: bool) -> int:
    """`peak_bytes` of a process of its own."""
    command = [sys.executable, __file__, "--peak-of", str(root), "--threads", str(threads)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, *(["--quick"] if quick else [])], capture_output=True, text=True, check=True,
                          env=environment)  # fmt: skip
    return int(done.stdout.split()[-1])


def peak_bytes(root: Path, quick: bool) -> int:
    """Peak resident memory of a process that trains three steps from the store."""
    store = FeatureStore(root)
    learner = new_learner(store, quick)
    for batch in Ahead(batches(store, range(0, 3 * PER_CLIP, PER_CLIP), 1)):
        learner.step([(0, batch)], 0, 1)
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())

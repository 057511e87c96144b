"""A training step of each baseline at the sizes of its backbone, AVSBench's interaction against its quadratic form, and
the dry run of `table3`.

`make bench-heads` runs it: one clip of 10 seconds, one expression, fp32. Each head runs in a process of its own, with
the environment that the commands give to their workers; its rate is compared with that of matrix products before and
after it. The decoders of SAM do fewer multiplications than their formulas have; the last column counts those of the
formulas. `--quick` shrinks it to a smoke test.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.training.flops import FlopCounter
from extract.pipeline.local_ray import WORKER_ENVIRONMENT
from refavs.data.batches import Batch
from refavs.model.feature_sizes import FeatureSizes
from refavs.model.heads.avsbench import Interaction
from refavs.model.heads.parts.baseline_options import BaselineOptions
from refavs.model.heads.parts.sam_decoder import NarrowAttention
from refavs.model.heads.registry import implementation_of, names, options_class
from refavs.model.options import HeadOptions
from refavs.store import ArraySpec, StreamSpec
from tests.benchmarks.machine import GrowingTable, describe
from tests.benchmarks.sweep_store import NOISE, SECONDS, SIDES, SIZE, wide_streams
from tests.benchmarks.train_store import write_store
from tests.refavs.small_heads import SWIN_B, loss_of, published_sizes, quadratic_interaction

NUM_STEPS, MASK_SIDE, NUM_WORDS = 10, 384, 25
SECONDS_OF_STEPS = 10
TARGET_RATE, TARGET_PEAK, TARGET_TIMES, TOLERANCE = 0.4, 8e9, 10, 1e-5


def main() -> int:
    """Runs all parts; 1 where the two forms of the interaction differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: small sizes, numbers mean nothing")
    parser.add_argument("--heads", nargs="+", metavar="NAME", default=baselines(), help="all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--step-of", help=argparse.SUPPRESS)  # the process whose time and memory are measured
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.step_of:
        print(json.dumps(step_of(arguments.step_of, arguments.quick)))
        return 0
    print(describe(Path.cwd(), ("torch",)), flush=True)
    num_steps = 1 if arguments.quick else NUM_STEPS
    found = GrowingTable(f"A step of 1 clip x {num_steps} s x 1 expression, fp32, {arguments.threads} threads", [
        "head", "parameters", "GFLOP", "s", "GFLOP/s over a product's, by the clock / by processor time",
        f"peak memory, GB (target {TARGET_PEAK / 1e9:.0f})", "rate by the GFLOP of the formulas",
    ])  # fmt: skip
    for name in arguments.heads:
        command = [sys.executable, __file__, "--step-of", name, "--threads", str(arguments.threads)]
        done = subprocess.run([*command, *["--quick"] * arguments.quick], capture_output=True, text=True, check=True,
                              env=WORKER_ENVIRONMENT | os.environ)  # fmt: skip
        one = json.loads(done.stdout)
        found.add(name, f"{one['parameters'] / 1e6:.2f} M", f"{one['flops'] / 1e9:.0f}", f"{one['clock']:.1f}",
                  f"{one['by_clock']:.2f} / {one['by_processor']:.2f} (target {TARGET_RATE})",
                  f"{one['peak'] / 1e9:.2f}", of_formulas(one))  # fmt: skip
    difference = bench_interaction(arguments.quick)
    bench_dry_run(arguments.quick)
    return int(difference > TOLERANCE)


def of_formulas(found: Mapping[str, float]) -> str:
    """The rates of a step as if it had done the products of its formulas, in words."""
    more = found["formulas"] / found["flops"]
    if more == 1:
        return "the same"
    return f"{found['formulas'] / 1e9:.0f}: {more * found['by_clock']:.2f} / {more * found['by_processor']:.2f}"


def baselines() -> list[str]:
    """The heads that are baselines of Table 3."""
    return [name for name in names() if issubclass(options_class(name), BaselineOptions)]


def step_of(name: str, quick: bool) -> dict[str, float]:
    """Time, arithmetic and memory of a step.

    The first two count the arithmetic. Of those that follow until 10 s are over the fastest is taken, as of products.
    """
    options = options_class(name)(head=name)
    sizes = published_sizes(options)
    if quick:
        fold = sizes.maps[0].height // 8
        sizes = dataclasses.replace(sizes, maps=tuple(
            dataclasses.replace(one, channels=8, height=one.height // fold, width=one.width // fold)
            for one in sizes.maps
        ))  # fmt: skip
    torch.manual_seed(0)
    head = implementation_of(options)(options, sizes).train()
    batch = made_up(sizes, options, 1 if quick else NUM_STEPS)

    def step() -> None:
        head.zero_grad(set_to_none=True)
        loss_of(head, batch).backward()

    counter, formulas = FlopCounter(), FlopCounter()
    with counter:
        step()
    with formulas, unittest.mock.patch.multiple(
        NarrowAttention, pixels_read=NarrowAttention.forward, tokens_read=NarrowAttention.forward
    ):
        step()
    head.zero_grad(set_to_none=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    size = 256 if quick else 4096
    before = rates(lambda: product(size), 2 * size**3)
    taken = [timed(step)]
    while sum(clock for clock, _ in taken) < SECONDS_OF_STEPS and not quick:
        taken.append(timed(step))
    own = min(taken)
    after = rates(lambda: product(size), 2 * size**3)
    clock, processor = ((counter.total / taken) / ((one + other) / 2)
                        for taken, one, other in zip(own, before, after, strict=True))  # fmt: skip
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return {"parameters": sum(one.numel() for one in head.parameters()), "flops": counter.total,
            "formulas": formulas.total, "clock": own[0], "by_clock": clock, "by_processor": processor,
            "peak": peak}  # fmt: skip


def made_up(sizes: FeatureSizes, options: HeadOptions, num_steps: int) -> Batch:
    """One expression about one clip, with an object in a corner."""
    mask = torch.zeros(1, num_steps, MASK_SIDE, MASK_SIDE, dtype=torch.bool)
    mask[..., : MASK_SIDE // 3, : MASK_SIDE // 3] = True
    return Batch(
        visual={one.name: torch.randn(1, num_steps, one.channels, one.height, one.width).half()
                for one in sizes.maps},
        audio=torch.randn(1, num_steps, sizes.audio.channels if sizes.audio else 1),
        text=torch.randn(1, NUM_WORDS, sizes.text.channels if sizes.text else 1),
        valid=torch.ones(1, NUM_WORDS, dtype=torch.bool), clip=torch.tensor([0]), mask=mask, uid=["a"],
        split=["train"], dimension=[""], text_string=["a"],
    )  # fmt: skip


def bench_interaction(quick: bool) -> float:
    """Prints the table of both forms; returns their greatest difference."""
    side, num_steps = (6, 2) if quick else (48, NUM_STEPS)
    interaction = Interaction(256, 128, by_batch=False).eval()
    torch.nn.init.ones_(interaction.out_norm.weight)
    maps, sound = torch.randn(1, num_steps, 256, side, side), torch.randn(1, num_steps, 128)
    clip, results = torch.tensor([0]), []

    def sums_first() -> torch.Tensor:
        return interaction(maps, maps.mean(dim=(3, 4)), sound, clip)[0][0]

    with torch.no_grad():
        sums_first()
        ours = timed(lambda: results.append(sums_first()))[0]
        theirs = timed(lambda: results.append(quadratic_interaction(interaction, maps[0], sound[0])))[0]
    difference = float((results[0] - results[1]).abs().max())
    found = GrowingTable(f"The interaction over {num_steps} x {side} x {side} pixels, forward", [
        "form", "s", "times as fast", "greatest difference"
    ])  # fmt: skip
    found.add("quadratic", f"{theirs:.3f}", "1", "")
    found.add("sums first", f"{ours:.3f}", f"{theirs / ours:.1f} (target {TARGET_TIMES})", f"{difference:.1e}")
    return difference


def bench_dry_run(quick: bool) -> None:
    """Prints the dry run of `table3` on a store of Swin-B's sizes, and its seconds."""
    fold, channels = (4, 16) if quick else (1, 256)
    backbone = StreamSpec(fingerprint=NOISE, rows_per_shard=4, arrays=tuple(
        ArraySpec(name=name, shape=(SECONDS, wide // fold, side // fold, side // fold), dtype="float16",
                  axes=("t", "c", "h", "w"), statistics=True) for name, (wide, side) in SWIN_B.items()
    ))  # fmt: skip
    streams = wide_streams(channels, {name: side // fold for name, side in SIDES.items()})
    with tempfile.TemporaryDirectory() as folder:
        write_store(f"{folder}/store", streams | {"visual/noise/backbone": backbone},
                    [*["train"] * 4, "val", "test_s"], mask_size=SIZE // fold)  # fmt: skip
        command = [sys.executable, "-c", "import sys; from experiments.cli import main; sys.exit(main())", "table3",
                   "--store", f"{folder}/store", "--out", f"{folder}/out", "--dry-run"]  # fmt: skip
        print(f"\nrefavs-sweep table3 --dry-run at the sizes of Swin-B{' (small)' if quick else ''}", flush=True)
        clock, _ = timed(lambda: subprocess.run(command, check=True, cwd=Path(__file__).parents[2]))
    print(f"{clock:.1f} s by the clock")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processor


def rates(call: Callable[[], object], flops: int) -> list[float]:
    """FLOP/s by the clock and by processor time, the better of three."""
    call()
    taken = [timed(call) for _ in range(3)]
    return [flops / min(one) for one in zip(*taken, strict=True)]


def product(size: int) -> torch.Tensor:
    """A product of two square matrices."""
    return torch.ones(size, size) @ torch.ones(size, size)


if __name__ == "__main__":
    sys.exit(main())

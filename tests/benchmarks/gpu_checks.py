"""The checks of `check_gpu.py`: each is a function that yields rows, run in a process of its own."""

import collections
import functools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from experiments.grid.config import TrialConfig
from experiments.records.record_types import STOP_FILE
from experiments.training.evaluate import predictions
from experiments.training.learner import Learner
from experiments.training.loop import train
from experiments.training.sampler import Sampler
from extract.encoders.mask2former import VISUAL_LEVELS
from extract.encoders.streams import StreamSet
from extract.pipeline.plan import Job
from extract.pipeline.ray_pool import JOBS_PER_WORKER
from extract.pipeline.worker import JobResult, Worker
from refavs import config as settings
from refavs.choices import Precision
from refavs.data.layouts import Source, read_source
from refavs.data.prefetch import Ahead, depth_for
from refavs.machine.accelerator import allow_tf32
from refavs.metrics.sums import batch_counts, expression_sums
from refavs.model.checkpoint import load_model
from refavs.synthetic.write import write_benchmark

sys.path.insert(0, str(Path(__file__).parent))
from bench_extract import open_store
from gpu_place import NOTHING, Place, Row
from train_store import SENTENCE

# Largest error against fp32 on the processor: of features and gradients relative to their norm, of losses to the value.
FEATURE_ERROR = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
LOSS_ERROR = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
GRADIENT_ERROR = {"fp32": 1e-2, "bf16": 3e-1, "fp16": 1e-1}
SCORE_ERROR = 1e-3
RESUME_ERROR = 1e-3  # on a GPU, or what two undisturbed runs differ by; on a processor nothing


def environment(at: Place) -> Iterator[Row]:
    """What torch says of the device, and the store for the other checks."""
    if at.cuda:
        properties = torch.cuda.get_device_properties(at.device)
        said = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    else:
        said = f"processor, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    yield Row(check=f"{said}; torch {torch.__version__}; preset {at.preset}")
    assert len(at.store)


def encoders(at: Place) -> Iterator[Row]:
    """Features against those of fp32 on the processor, and frames per second."""
    rng, known = np.random.default_rng(0), at.streams("fp32", torch.device("cpu"))
    (form,), (rate_hz,) = known.inputs()
    shape = (known.seconds, form.size, form.size, 3)
    clips = [rng.integers(0, 255, shape, np.uint8) for _ in range(4 if at.cuda else 1)]
    sound = (0.1 * rng.standard_normal(rate_hz * known.seconds)).astype(np.float32)
    wanted = _features(known, clips[0], sound)
    errors = {stream: at.row(f"{stream} features against the processor's, error") for stream in wanted}
    speed = at.row("visual encoder, frames/s")
    for precision in at.precisions:
        found = at.streams(precision)
        visual = next(iter(found.encoders.values()))
        features = _features(found, clips[0], sound)
        for stream, row in errors.items():
            if precision == "fp32" and not at.cuda:
                row.cells[precision] = NOTHING  # it would be compared with itself
            else:
                row.bound(precision, _error(features[stream], wanted[stream]), FEATURE_ERROR[precision])
        seconds = at.seconds(functools.partial(visual.encode, clips, ("pixel_decoder",)), 3)
        speed.cells[precision] = f"{len(clips) * len(clips[0]) / seconds:.0f}"
    yield from errors.values()
    yield speed


def _features(streams: StreamSet, frames: np.ndarray, sound: np.ndarray) -> dict[str, list[np.ndarray]]:
    visual, audio, text = streams.encoders.values()
    return {
        "visual": list(visual.encode([frames], VISUAL_LEVELS)[0].values()),
        "audio": list(audio.encode([audio.prepare(sound)], [""])[0].values()),
        "text": [part for part in text.encode([text.prepare(SENTENCE)], [""])[0].values() if part.dtype.kind == "f"],
    }


def _error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest error of an array relative to its norm."""
    pairs = ((a.astype(np.float64), b.astype(np.float64)) for a, b in zip(found, wanted, strict=True))
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)


def extraction(at: Place) -> Iterator[Row]:
    """One worker with all processors over clips of the benchmark's layout, and where its time goes."""
    num_clips = 16 if at.cuda else 2
    write_benchmark(at.folder / "bench", num_clips, seed=0, size=128, videos=False)
    source = read_source(at.folder / "bench")
    rows: dict[str, Row] = {}
    for precision in at.precisions:
        found = at.streams(precision)
        worker, jobs = _worker(at, found, source, at.folder / f"extracted-{precision}")
        worker.probe(jobs[0], jobs[0].names[0])  # reads the weights
        results, whole = _work(worker, jobs)
        clips = sum(result.num_done for result in results)
        cells = {"extraction, frames/s": f"{clips * found.seconds / whole:.0f}"}
        for stage in results[0].stages_s:
            spent = sum(result.stages_s[stage] for result in results)
            cells[f"extraction, {stage}, ms a clip (threads side by side)"] = f"{1e3 * spent / clips:.0f}"
        on_gpu = NOTHING
        if at.cuda:
            again = _worker(at, found, source, at.folder / f"extracted-{precision}-again")
            times = at.on_gpu(functools.partial(_work, *again))
            on_gpu = " / ".join(f"{times[name] / clips:.1f}" for name in ("busy", "HtoD", "DtoH"))
        cells["extraction, the GPU computes / copies in / back, ms a clip"] = on_gpu
        for name, cell in cells.items():
            rows.setdefault(name, at.row(name)).cells[precision] = cell
        for folder in at.folder.glob("extracted-*"):
            shutil.rmtree(folder)
    yield from rows.values()


def _worker(at: Place, streams: StreamSet, source: Source, location: Path) -> tuple[Worker, list[Job]]:
    """One with all processors, and the clips that it is to extract into a new store."""
    jobs = [job for job in open_store(location, source, streams, 4) if job.kind == "clips"]
    return Worker(str(location), streams, torch.get_num_threads(), 4 if at.cuda else 1), jobs


def _work(worker: Worker, jobs: list[Job]) -> tuple[list[JobResult], float]:
    started = time.perf_counter()
    with futures.ThreadPoolExecutor(JOBS_PER_WORKER) as pool:
        results = list(pool.map(worker.run, jobs))
    for result in results:
        if result.error or result.failures:
            raise RuntimeError(f"{result.error or result.failures}")
    return results, time.perf_counter() - started


def step_against_processor(at: Place) -> Iterator[Row]:
    """Losses and gradient of one step; nothing is drawn in it."""
    loss, gradient = at.row("training step against the processor's, error of the loss"), at.row("its gradient, error")
    wanted = _losses_and_gradient(at, at.config(loss__num_points=0, train__precision="fp32"), torch.device("cpu"))
    for precision in at.precisions:
        if precision == "fp32" and not at.cuda:
            loss.cells[precision] = gradient.cells[precision] = NOTHING
            continue
        found = _losses_and_gradient(at, at.config(loss__num_points=0, train__precision=precision), at.device)
        loss.bound(precision, abs(found[0] - wanted[0]) / abs(wanted[0]), LOSS_ERROR[precision])
        gradient.bound(precision, float((found[1] - wanted[1]).norm()), GRADIENT_ERROR[precision])
    yield loss
    yield gradient


def _losses_and_gradient(at: Place, config: TrialConfig, device: torch.device) -> tuple[float, Tensor]:
    """The gradient has norm 1, as fp16 scales it."""
    config = settings.replace(config, {"train.batch_size": 2})
    learner, (parts,) = at.learner(config, device), at.parts(config)
    if learner.scaler.is_enabled():
        learner.scaler.update(2.0**8)  # its first scale overflows, and such a step is skipped
    kept: dict[int, Tensor] = {}
    for place, parameter in enumerate(learner.trained):
        parameter.register_post_accumulate_grad_hook(
            lambda p, place=place: kept.update({place: p.grad.detach().double().flatten().cpu()})
        )
    loss = float(learner.step(parts, 0, 10)["total"])
    whole = torch.cat([kept[place] for place in sorted(kept)])
    return loss, whole / whole.norm()


def scores(at: Place) -> Iterator[Row]:
    """Every metric of an untrained head; the two devices count pixels by different code."""
    row, found = Row(check="metrics against the processor's, largest difference"), []
    config = at.config(train__precision="fp32")
    for device in (torch.device("cpu"), at.device):
        model = at.learner(config, device).model
        ((batch, probs),) = predictions(config.train, model, at.store, range(4), device)
        assert batch.mask is not None
        sums = expression_sums(batch_counts(probs, batch.mask))
        found.append(torch.stack([total.double().cpu() for total, _ in sums.values()]))
    row.bound("fp32", float((found[0] - found[1]).abs().max()), SCORE_ERROR)
    if not at.cuda:
        row.cells["fp32"] = NOTHING
    yield row


def step_time(at: Place) -> Iterator[Row]:
    """How long a step takes, what of it the GPU works, and what keeps it waiting."""
    rows: dict[str, Row] = {}
    lines: collections.Counter[str] = collections.Counter()
    for precision in at.precisions:
        cells, syncs = _step_cells(at, precision)
        lines |= syncs
        for name, cell in cells.items():
            rows.setdefault(name, at.row(name)).cells[precision] = cell
    yield from rows.values()
    told = ", ".join(f"{place} {number}x" for place, number in lines.most_common()) or "none"
    yield Row(check="syncs by line", cells={"fp32": told if at.cuda else NOTHING})
    tf32 = Row(check="ms a step, fp32 with TF32", cells={"fp32": NOTHING})
    if at.cuda:
        config = at.config(train__precision="fp32")
        learner, (parts,) = at.learner(config), at.parts(config)
        allow_tf32(at.device)
        tf32.cells["fp32"] = f"{1e3 * at.seconds(lambda: learner.step(parts, 0, 1000)):.1f}"
    yield tf32


def _step_cells(at: Place, precision: Precision) -> tuple[dict[str, str], collections.Counter[str]]:
    config = at.config(train__precision=precision, train__steps_per_epoch=at.steps)
    learner, (parts,) = at.learner(config), at.parts(config)
    step = functools.partial(learner.step, parts, 0, 1000)
    seconds = at.seconds(step)
    cells = {"ms a step": f"{1e3 * seconds:.1f}",
             "ms a step, read from the store": f"{1e3 * _seconds_from_store(at, learner):.1f}"}  # fmt: skip
    names = ("share of a step in which the GPU computes", "kernels a step", "syncs a step", "copies a step",
             "peak memory, GiB")  # fmt: skip
    if not at.cuda:
        return {**cells, **dict.fromkeys(names, NOTHING)}, collections.Counter()
    from sync_counter import count

    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated() / 2**30
    counts, spent = count(step, at.device), at.on_gpu(step)
    copies = ", ".join(f"{number} {way}" for way, number in sorted(counts.copies.items()))
    found = (f"{spent['busy'] / seconds / 1e3:.0%}", str(counts.kernels), str(counts.syncs.total()), copies,
             f"{peak:.1f}")  # fmt: skip
    return {**cells, **dict(zip(names, found, strict=True))}, counts.syncs


def _seconds_from_store(at: Place, learner: Learner) -> float:
    """A step of an epoch, whose batches are read and sent ahead."""
    read = Sampler(learner.config, at.store, at.device).batches(0)
    started, steps = time.perf_counter(), 0
    for number, parts in enumerate(Ahead(read, depth_for(at.device))):
        if number == 1:  # the first one is not read ahead
            at.wait()
            started, steps = time.perf_counter(), 0
        learner.step(parts, number, 1000)
        steps += 1
    at.wait()
    return (time.perf_counter() - started) / steps


def compiled(at: Place) -> Iterator[Row]:
    """torch.compile on three batches of other shapes; a processor only traces the graphs."""
    from torch._dynamo.utils import counters

    precision = "bf16" if at.cuda else "fp32"
    config = at.config(train__precision=precision, train__compile=True)
    shapes = ({}, {"train.batch_size": 7}, {"train.batch_size": 6, "train.expressions_per_clip": 2})
    batches = [at.parts(settings.replace(config, shape))[0] for shape in shapes]
    compiler = torch.compile if at.cuda else functools.partial(torch.compile, backend="eager")
    graphs, seconds = [], []
    with mock.patch.object(torch, "compile", compiler):
        learner = at.learner(config)
    for parts in batches:
        started = time.perf_counter()
        learner.step(parts, 0, 1000)
        at.wait()
        seconds.append(f"{time.perf_counter() - started:.0f}")
        graphs.append(str(counters["stats"]["unique_graphs"]))
    breaks = counters["graph_break"]
    told = "".join(f"; {' '.join(reason.split())[:80]}" for reason in list(breaks)[:2])
    yield Row(check="torch.compile, graphs after each of three batches", cells={precision: ", ".join(graphs)})
    yield Row(check="torch.compile, graph breaks", cells={precision: f"{sum(breaks.values())}{told}"})
    yield Row(check="torch.compile, s for each of three batches",
              cells={precision: ", ".join(seconds) if at.cuda else NOTHING})  # fmt: skip
    then = f"{1e3 * at.seconds(lambda: learner.step(batches[0], 0, 1000)):.1f}" if at.cuda else NOTHING
    yield Row(check="torch.compile, ms a step then", cells={precision: then})


def resumed(at: Place) -> Iterator[Row]:
    """A trial that is stopped after its first epoch and goes on, against two that are not."""
    if not at.cuda:
        torch.set_num_threads(1)  # with several even undisturbed trials differ in their last bits now and then
    config = at.config(train__precision="fp32", train__epochs=3, train__steps_per_epoch=3, train__batch_size=4)
    weights = []
    for name in ("one", "two", "stopped"):
        folder = at.folder / "trials" / name / "run"

        def stop(records: list[dict[str, Any]], folder: Path = folder) -> None:
            if folder.parent.name == "stopped" and records[-1]["epoch"] == 1:
                (folder / STOP_FILE).touch()

        train(config, at.store, folder, stop, at.device)
        if name == "stopped":
            (folder / STOP_FILE).unlink()
            assert not (folder / "result.json").exists(), "the trial did not stop"
            train(config, at.store, folder, device=at.device)
        model = load_model(folder / "checkpoint")
        weights.append(torch.cat([part.detach().double().flatten() for part in model.parameters()]))
    noise, found = (float((other - weights[0]).norm() / weights[0].norm()) for other in weights[1:])
    yield Row(check="two undisturbed trials, difference of the weights", cells={"fp32": f"{noise:.1e}"})
    row = Row(check="a trial that was stopped and went on, difference to an undisturbed one")
    row.bound("fp32", found, max(RESUME_ERROR, 10 * noise) if at.cuda else 0.0)
    yield row


# The checks by name, with the seconds after which one is given up on a GPU.
CHECKS: dict[str, tuple[Callable[[Place], Iterator[Row]], float]] = {
    "environment": (environment, 90), "encoders": (encoders, 90), "scores": (scores, 60),
    "step_against_processor": (step_against_processor, 90), "step_time": (step_time, 120), "resumed": (resumed, 90),
    "extraction": (extraction, 120), "compiled": (compiled, 180),
}  # fmt: skip

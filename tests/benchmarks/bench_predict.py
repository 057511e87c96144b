"""How fast predictions for a video are, and what they hold in memory; a video of 90 s whose sounding object changes.

Prints Markdown tables. Weights are random, which takes the same time as real ones; the video of 90 s needs a trained
run of preset tiny by --run. Usage: python tests/benchmarks/bench_predict.py [--quick] [--run RUN]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import refavs
from experiments.predict.outputs import write_predictions
from experiments.predict.segmenter import Segmenter
from experiments.predict.stages import Stages
from extract.encoders.presets import preset_named
from extract.encoders.protocol import EncoderSetup
from extract.encoders.streams import StreamSet, choose_streams
from extract.encoders.weights import WeightSource
from extract.media.film_stream import FilmStream, Span
from refavs.machine.processors import num_processors
from refavs.model.checkpoint import save_model
from refavs.model.feature_sizes import FeatureSizes, MapSize, StreamSize
from refavs.model.heads.eemc import EEMC
from refavs.model.heads.options import EEMCOptions
from refavs.store.format.array_spec import table_path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parents[2]))  # for the films of the tests
from machine import GrowingTable, describe

from refavs.steps import Steps
from tests.experiments.long_films import greatest_shift_s, two_voices, write_blinking_film

SENTENCES = [f"the object number {number} that makes a sound" for number in range(4)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="preset tiny and short videos: whether it runs")
    parser.add_argument("--run", help="a trained trial of preset tiny, for the video of 90 s")
    parser.add_argument("--folder", type=Path, help="where to work; default: the folder of temporary files")
    args = parser.parse_args(argv)
    torch.set_num_threads(num_processors())
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        root = Path(name)
        print(describe(root, ["torch", "av", "pillow"]), flush=True)
        preset = "tiny" if args.quick else "base"
        small = random_run(root / "tiny", "tiny")
        measure_latency(root, small if args.quick else random_run(root / preset, preset), preset)
        measure_length(root, small, (4, 8) if args.quick else (60, 600))
        if args.run:
            measure_memory(root, args.run)
    return 0


def random_run(folder: Path, preset: str) -> Path:
    """A checkpoint of the default head with random weights, for a preset with random weights."""
    setup = EncoderSetup(weights=WeightSource(kind="random"))
    streams = choose_streams(preset_named(preset).streams, Steps(10), lambda name: setup, ["pixel_decoder"])
    sizes = sizes_of(streams)
    torch.manual_seed(0)
    facts = {"encoders": json.loads(json.dumps({id: streams.fingerprint(one) for id, one in streams.streams.items()})),
             "store": "none", "seconds": 10, "mask_size": preset_named(preset).mask_size}  # fmt: skip
    save_model(folder, EEMC(EEMCOptions(), sizes), facts)
    return folder


def sizes_of(streams: StreamSet) -> FeatureSizes:
    """The sizes of the features of some encoders, as a store of them would give."""
    found = {f"{table_path(id)}/{spec.name}": dict(zip(spec.axes, spec.shape, strict=True))
             for id, one in streams.streams.items() for spec in one.arrays}  # fmt: skip
    paths = {path.rsplit("/", 1)[1]: path for path in found if path.startswith("clips/visual/")}
    maps = [MapSize(name=name, path=paths[name], channels=found[paths[name]]["c"], height=found[paths[name]]["h"],
                    width=found[paths[name]]["w"]) for name in ("mask_features", "s8", "s16", "s32")]  # fmt: skip
    audio, text = (next(StreamSize(path=path, channels=size["c"]) for path, size in found.items()
                        if path.startswith(start) and "c" in size) for start in ("clips/audio", "text/"))  # fmt: skip
    return FeatureSizes(audio=audio, text=text, maps=tuple(maps))


def measure_latency(root: Path, run: Path, preset: str) -> None:
    """A clip of 10 s: the whole way against encoders and head, and further expressions against the first."""
    film = write_blinking_film(root / "clip.mp4", 10, size=(720, 1280))
    segmenter = refavs.load(run, device="auto")
    walls: dict[int, float] = {}
    title = f"Latency of a clip of 10 s, 1280 x 720, preset {preset}, {segmenter.run.device}"
    header = ["expressions", "wall, s", "wall / (encoders + head)", "without overlays", "frames/s (paper: 2)",
              "stages, s"]  # fmt: skip
    table = GrowingTable(title, header)
    whole(root / "warm", segmenter, film, 1)
    for number in (1, 2, 4):
        walls[number], stages = min(whole(root / f"{number}-{turn}", segmenter, film, number) for turn in range(3))
        started = time.perf_counter()
        segmenter.run.words(SENTENCES[:number])  # again by itself, as pictures are decoded meanwhile
        alone = time.perf_counter() - started + stages["encoders"] + stages["head"]
        shown = ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.items())
        wall_s = walls[number]
        bare_s = wall_s - stages["overlays"]
        table.add(str(number), f"{wall_s:.2f}", f"{wall_s / alone:.3f}", f"{bare_s / alone:.3f}", f"{10 / wall_s:.2f}",
                  shown)  # fmt: skip
    further_s = (walls[4] - walls[1]) / 3
    share = further_s / walls[1]
    print(f"\na further expression: {further_s:.2f} s, {share:.3f} of the first (target 0.25)", flush=True)


class _Timed(tuple):
    """Compares by the wall time alone."""

    def __lt__(self, other: tuple) -> bool:
        return self[0] < other[0]


def whole(out: Path, segmenter: Segmenter, film: Path, number: int) -> tuple[float, dict[str, float]]:
    """The wall time of all that the command does for a video, and of each stage."""
    started = time.perf_counter()
    request = {"memory": "all", "overlays": True}
    told = write_predictions(out, segmenter, FilmStream(film), SENTENCES[:number], request, lambda count: None)
    return _Timed((time.perf_counter() - started, told["stages_s"]))


def measure_length(root: Path, run: Path, lengths_s: tuple[int, int]) -> None:
    """The command on a short and on a long video: its greatest memory, and picture against sound at the end."""
    header = ["video, s", "wall, s", "memory, MB", "greatest shift of a beep against its flash, ms"]
    table = GrowingTable("Length, preset tiny, 640 x 360, 29.97 pictures/s, 44.1 kHz", header)
    peaks = []
    for length_s in lengths_s:
        film, out = write_blinking_film(root / f"{length_s}.mp4", length_s, size=(360, 640)), root / f"out{length_s}"
        script = ("import resource, sys; from experiments.predict.cli import main; status = main(sys.argv[1:]); "
                  "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)")  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", script, str(film), SENTENCES[0], "--run", str(run), "--out", str(out)],
            check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        wall_s = time.perf_counter() - started
        peaks.append(int(done.stdout.split()[-1]) / 1e3)
        table.add(f"{length_s}", f"{wall_s:.1f}", f"{peaks[-1]:.0f}",
                  f"{1e3 * greatest_shift_s(out / '1' / 'overlay.mp4'):.1f}")  # fmt: skip
    print(f"\nmemory: {peaks[1] / peaks[0]:.3f} of the short video's (target 1.05)", flush=True)


def measure_memory(root: Path, run: str) -> None:
    """J of the sounding object in a video of 90 s, by what the cached memory covers; the sound changes at 45 s."""
    segmenter = refavs.load(run)
    table = GrowingTable("The sounding object of a video of 90 s whose sound changes at 45 s (paper, Fig. 9): J",
                         ["memory", "before", "after", "the 10 s after the change"])  # fmt: skip
    films = [two_voices(root / f"voices{seed}.mp4", seed) for seed in range(4)]
    for memory in ("all", 30, 10, 3, 1):
        scores = []
        for path, truth in films:
            masks = np.concatenate([one.masks for one in segmenter.segment_video(
                FilmStream(path, Span(end_s=90)), ["the object making a sound"], memory=memory, stages=Stages())])
            union = (masks | truth).sum((1, 2))
            scores.append(np.where(union > 0, (masks & truth).sum((1, 2)) / np.maximum(union, 1), 1.0))
        mean = np.mean(scores, axis=0)
        table.add(str(memory), *(f"{part.mean():.3f}" for part in (mean[:45], mean[45:], mean[45:55])))


if __name__ == "__main__":
    sys.exit(main())

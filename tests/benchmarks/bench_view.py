"""How long refavs-view takes from the command to the first clip, on a store of 1,000 clips.

`make bench-view` runs it. The imports, which do not depend on the store, are timed in a process of their own. `--quick`
takes a store of a few clips; its numbers mean nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.benchmarks.machine import describe, table
from tests.experiments.small_store import SECONDS, make_store

NUM_CLIPS, TARGET_S, REPEATS = 1000, 5.0, 3
IMPORTS = "import torch, gradio, uvicorn, experiments.view.page"
START = "import sys; from experiments.view.cli import main; sys.exit(main(sys.argv[1:]))"
SHOWN = 'class="frame"'


def main() -> int:
    """Prints a row per repeat; 1 where the slowest is above the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test: few clips, numbers mean nothing")
    arguments = parser.parse_args()
    num_clips, repeats = (12, 1) if arguments.quick else (NUM_CLIPS, REPEATS)
    print(describe(Path.cwd(), ("gradio", "torch")), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), num_clips)
        rows, slowest = [], 0.0
        for _ in range(repeats):
            imports_s, total_s = timed_imports(), timed_first_clip(store)
            slowest = max(slowest, total_s - imports_s)
            rows.append([f"{num_clips:,}", f"{total_s:.1f}", f"{imports_s:.1f}", f"{total_s - imports_s:.1f}"])
    print(table(["clips", "first clip, s", "imports, s", f"beyond imports, s (target {TARGET_S:.0f})"], rows))
    return int(slowest > TARGET_S and not arguments.quick)


def write_store(root: Path, num_clips: int) -> Path:
    """A store of small features, with the frames and the sound of its first clip."""
    make_store(root / "store", {"train": num_clips - 8, "val": 2, "test_s": 2, "test_u": 2, "test_n": 2})
    media = root / "bench" / "media" / "null_test_n0"
    (media / "frames").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for second in range(SECONDS):
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(media / "frames" / f"{second}.jpg")
    with wave.open(str(media / "audio.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(rng.integers(-3000, 3000, SECONDS * 16_000, np.int16).tobytes())
    description = json.loads((root / "store" / "zarr.json").read_text())
    description["attributes"]["extraction"] = {"source": str(root / "bench"), "layout": "ref-avs-bench"}
    (root / "store" / "zarr.json").write_text(json.dumps(description))
    return root / "store"


def timed_imports() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return time.monotonic() - started


def timed_first_clip(store: Path) -> float:
    """From the start of the command until the server has answered the page's first request with a clip."""
    started = time.monotonic()
    command = [sys.executable, "-c", START, str(store), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[1]
            with httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
                first_clip(client)
            return time.monotonic() - started
        finally:
            process.terminate()


def first_clip(client: httpx.Client) -> None:
    """Asks what a browser asks for when it has loaded the page, and waits for a clip with its frames."""
    while True:
        try:
            config = client.get("config").json()
            break
        except httpx.ConnectError:
            time.sleep(0.02)
    event = next(one for one in config["dependencies"] if any(name == "load" for _, name in one["targets"]))
    body = {"data": ["store"], "fn_index": event["id"], "session_hash": "bench"}
    client.post("gradio_api/queue/join", json=body).raise_for_status()
    with client.stream("GET", "gradio_api/queue/data", params={"session_hash": "bench"}) as lines:
        for line in lines.iter_lines():
            if '"process_completed"' in line:
                assert SHOWN in json.dumps(json.loads(line.removeprefix("data:"))).replace('\\"', '"'), line[:400]
                return
    raise AssertionError("the page's server ended its answer")


if __name__ == "__main__":
    sys.exit(main())

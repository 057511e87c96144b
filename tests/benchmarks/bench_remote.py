"""Reads, writes and lists through obstore, s3fs and tensorstore, from one run, and prints their ratios to refavs; and
random samples of a store on disk, on S3 and behind a web server.

`make bench-remote` runs it; `--quick` shrinks it to a smoke test. s3fs takes part where it is installed
(`pip install -c constraints.txt s3fs`). The servers are processes of this machine: moto (Python, so
that it limits everybody), a server that only calls sendfile, and the same at the pace S3 has per connection.
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import obstore
import tensorstore
from bench_store import seconds, turn
from machine import describe, ratio, speed, table

from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.backends.object_store import RemoteFolder
from tests.benchmarks.sweep_store import wide_streams
from tests.benchmarks.train_store import write_store

PACKAGES = ("obstore", "tensorstore", "moto", "numpy")
OURS = "refavs (obstore, parts)"
MOTO = """import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()"""
SENDING, PACED = "a server that only sends", "the same, 30 ms away, 85 MB/s a connection"
BUCKET, SHARD = "features", "clips/c.0.0.0"
Times = dict[str, list[float]]


@contextlib.contextmanager
def served(*command: str) -> Iterator[str]:
    """A server in a process of its own, which the environment points at."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    url = f"http://127.0.0.1:{int(process.stdout.readline())}"
    os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
                   "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
    try:
        yield url
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def open_tensorstore(url: str) -> tensorstore.KvStore:
    """The bucket, through tensorstore's S3 driver."""
    spec = {"driver": "s3", "bucket": BUCKET, "endpoint": url, "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"}}  # fmt: skip
    return tensorstore.KvStore.open(spec).result()


def open_s3fs(url: str):
    """The bucket, through fsspec; None where s3fs is not installed."""
    if importlib.util.find_spec("s3fs") is None:
        return None
    import s3fs

    return s3fs.S3FileSystem(endpoint_url=url, skip_instance_cache=True)


def range_readers(url: str) -> dict[str, Callable[[np.ndarray, int], None]]:
    """By name: a reader of the shard's bytes from a place on into an array."""
    folder = RemoteFolder(f"s3://{BUCKET}")
    blob, store, kv, fs = folder.open(SHARD), folder.reading, open_tensorstore(url), open_s3fs(url)

    def ours(out: np.ndarray, start: int) -> None:
        out[:] = blob.read(start, start + out.size)

    def one(out: np.ndarray, start: int) -> None:
        out[:] = np.frombuffer(obstore.get_range(store, SHARD, start=start, length=out.size), np.uint8)

    def tensor(out: np.ndarray, start: int) -> None:
        out[:] = np.frombuffer(kv.read(SHARD, byte_range=slice(start, start + out.size)).result().value, np.uint8)

    def fsspec(out: np.ndarray, start: int) -> None:
        out[:] = np.frombuffer(fs.cat_file(f"{BUCKET}/{SHARD}", start=start, end=start + out.size), np.uint8)

    found = {OURS: ours, "obstore, one request": one, "tensorstore, one request": tensor, "s3fs, one request": fsspec}
    return {name: reader for name, reader in found.items() if fs is not None or not name.startswith("s3fs")}


def bench_ranges(url: str, data: np.ndarray, num_bytes: int, repeats: int) -> Times:
    """Seconds of each reader for random ranges of one length."""
    contenders, rng = range_readers(url), np.random.default_rng(0)
    out = np.zeros(num_bytes, np.uint8)
    taken: Times = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        start = int(rng.integers(0, data.size - num_bytes + 1))
        for name in turn(list(contenders), repeat):
            out[:] = 0
            passed = seconds(lambda name=name, start=start: contenders[name](out, start))
            if not np.array_equal(out, data[start : start + num_bytes]):
                raise AssertionError(f"{name} read other bytes than were written")
            if repeat:  # the first round opens connections
                taken[name].append(passed)
    return taken


def bench_whole(url: str, data: np.ndarray, num_names: int, repeats: int) -> dict[str, Times]:
    """Seconds to publish a long file, to put and read short ones, and to list, from moto."""
    folder, kv, fs = RemoteFolder(f"s3://{BUCKET}/whole"), open_tensorstore(url), open_s3fs(url)
    long, short = data.tobytes(), b"x" * 4096
    names = [f"many/{number:05d}" for number in range(num_names)]
    for name in names:
        folder.write(name, short)

    def ours_publish() -> None:
        scratch = folder.scratch("long")
        scratch.write_bytes(long)
        folder.publish(scratch, "long")

    works: dict[str, dict[str, Callable[[], object]]] = {
        f"put {len(long) / 1e6:.0f} MB": {OURS: ours_publish, "tensorstore": lambda: kv.write("t/long", long).result()},
        "put 4 kB": {OURS: lambda: folder.write("a", short), "tensorstore": lambda: kv.write("t/a", short).result()},
        "read 4 kB": {OURS: lambda: folder.read(names[0]),
                      "tensorstore": lambda: kv.read(f"whole/{names[0]}").result()},
        f"list {num_names}": {OURS: lambda: folder.names("many"), "tensorstore": lambda: kv.list(
            tensorstore.KvStore.KeyRange("whole/many/", "whole/many0")).result()},
    }  # fmt: skip
    if fs is not None:
        places = zip(works, ["s/long", "s/a", f"whole/{names[0]}", "whole/many"], strict=True)
        calls = (lambda place: fs.pipe_file(place, long), lambda place: fs.pipe_file(place, short), fs.cat_file,
                 lambda place: fs.find(place, refresh=True))  # fmt: skip
        for (work, place), call in zip(places, calls, strict=True):
            works[work]["s3fs"] = lambda call=call, place=f"{BUCKET}/{place}": call(place)
    taken: dict[str, Times] = {work: {name: [] for name in contenders} for work, contenders in works.items()}
    for repeat in range(repeats):
        for work, contenders in works.items():
            for name in turn(list(contenders), repeat):
                taken[work][name].append(seconds(contenders[name]))
    return taken


def write_samples(location: Path, num_clips: int, side: int) -> None:
    """A store of random features: the maps of a pixel decoder from `side` down to an eighth of it, sound and a text."""
    streams = wide_streams(256, {f"s{stride}": side // stride for stride in (1, 2, 4, 8)})
    write_store(location, streams, ["train"] * num_clips, mask_size=side, per_clip=1, masks=False)


def bench_samples(location: str, repeats: int) -> tuple[Times, int]:
    """Seconds per random sample, its arrays fetched one after the other or together, and its bytes."""
    stores = {"one after the other": FeatureStore(location), "together": FeatureStore(location)}
    alone = LocalFolder(Path()).together
    stores["one after the other"].folder.together = alone  # pyright: ignore
    rng, taken = np.random.default_rng(0), {name: [] for name in stores}
    for store in stores.values():  # every shard is opened once
        for sample in store:
            num_bytes = sum(one.nbytes for one in (*sample.visual.values(), sample.audio, sample.text, sample.valid))
    for repeat in range(repeats):
        index = int(rng.integers(len(stores["together"])))
        for name in turn(list(stores), repeat):
            taken[name].append(seconds(lambda name=name, index=index: stores[name].sample(index)))
    return taken, num_bytes


def print_samples(found: dict[str, tuple[Times, int]]) -> None:
    """Samples per second by the place of the store."""
    print("\n### Random samples, warm\n\nsamples/s (fastest / median); what a server sent is verified each time\n")
    rows = [[place, f"{num_bytes / 1e6:.1f} MB", *(f"{1 / min(times):.1f} / {1 / median(times):.1f}"
             for times in taken.values()), ratio(taken["together"], taken["one after the other"])]
            for place, (taken, num_bytes) in found.items()]  # fmt: skip
    print(table(["store", "sample", "one array after the other", "together", "together is x"], rows))


def print_ranges(title: str, found: dict[int, Times]) -> None:
    """Speeds and ratios by length of the range."""
    print(f"\n### Ranges from {title}\n\nGB/s and how many times as fast refavs is (fastest / median run)\n")
    rows = [[f"{size / 1e6:.0f} MB", name, speed(size, times), ratio(taken[OURS], times)]
            for size, taken in found.items() for name, times in taken.items()]  # fmt: skip
    print(table(["range", "reader", "GB/s", "refavs is x"], rows))


def print_whole(found: dict[str, Times]) -> None:
    """Milliseconds and ratios by kind of work."""
    print("\n### Whole files and lists from moto\n\nmilliseconds and how many times as fast refavs is\n")
    rows = [[work, name, f"{min(times) * 1e3:.1f}", ratio(taken[OURS], times)]
            for work, taken in found.items() for name, times in taken.items()]  # fmt: skip
    print(table(["work", "through", "ms", "refavs is x"], rows))


def main() -> None:
    """Prints the machine and all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the servers' files")
    args = parser.parse_args()
    sizes = (100_000, 9_000_000) if args.quick else (5_000_000, 20_000_000, 60_000_000)
    repeats, num_names = (2, 10) if args.quick else (8, 2500)
    data = np.random.default_rng(0).integers(0, 256, 2 * max(sizes), np.uint8)
    print(describe(args.folder, PACKAGES))
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        (shard := Path(place) / SHARD).parent.mkdir(parents=True)
        shard.write_bytes(data)
        on_disk = LocalFolder(Path(place) / "store")
        write_samples(on_disk.path, 4 if args.quick else 16, 16 if args.quick else 64)
        server = str(Path(__file__).with_name("object_server.py"))
        with served("-c", MOTO) as url:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT", data=b"")).close()
            RemoteFolder(f"s3://{BUCKET}").write(SHARD, data.tobytes())
            print_ranges("moto", {size: bench_ranges(url, data, size, repeats) for size in sizes})
            print_whole(bench_whole(url, data[: 1 << 26], num_names, repeats))
            on_moto = RemoteFolder(f"s3://{BUCKET}/store")
            for name in on_disk.names():
                on_moto.write(name, on_disk.read(name))
            samples = {"local disk": bench_samples(on_disk.location, repeats),
                       "s3:// (moto)": bench_samples(on_moto.location, repeats)}  # fmt: skip
        for title, pace in ((SENDING, ()), (PACED, ("0.03", "85e6"))):
            with served(server, place, *pace) as url:
                print_ranges(title, {size: bench_ranges(url, data, size, repeats) for size in sizes})
                samples[f"http:// ({title})"] = bench_samples(f"{url}/{BUCKET}/store", repeats)
    print_samples(samples)


if __name__ == "__main__":
    main()

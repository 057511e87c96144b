"""Files of strangers whose declared numbers would decide over memory and time; each is to be refused."""

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from experiments.grid.file import grid_text, parse_yaml
from extract.encoders.networks import load_tensors
from refavs.files.tables import read_rows
from refavs.metrics.parquet import STATISTICS_FILE, statistics_blocks
from refavs.model.checkpoint import CONFIG, load_model
from refavs.model.heads.released import FILE, _read
from refavs.store.columns import table_record
from refavs.store.format.commits import seal
from refavs.store.reader import FeatureStore
from refavs.store.verify import verify
from tests.experiments import small_sweep
from tests.refavs import small_store

RECORD = f"commits/{small_store.VISUAL}/00000.json"
Refusal = tuple[str, Callable[[], object]]


def refusals(work: Path, store: Path, checkpoint: Path) -> Iterator[Refusal]:
    """What each file is, and what reads it.

    Args:
        store, checkpoint: which are changed, one file at a time.
    """
    yield from _of_a_store(store)
    yield from _of_a_checkpoint(checkpoint)
    yield from _of_weights(work)
    yield from _of_a_sweep(work)
    yield from _of_grids(work)
    yield from _of_texts(work)


def _of_a_store(store: Path) -> Iterator[Refusal]:
    def root(facts: dict[str, Any]) -> None:
        facts["attributes"]["mask_size"] = 2_000_000

    def shard(facts: dict[str, Any]) -> None:
        facts["attributes"]["refavs_schema"]["streams"][small_store.VISUAL]["rows_per_shard"] = 10**9

    def no_width(facts: dict[str, Any]) -> None:
        facts["num_rows"] = 4 * 10**8
        for column in facts["columns"]:
            column.update(kind="str", dtype="uint8", shape=[4 * 10**8, 0])

    def long_column(facts: dict[str, Any]) -> None:
        facts["num_rows"] = 10**9
        for column in facts["columns"]:
            column["shape"][0] = 10**9

    def far_row(facts: dict[str, Any]) -> None:
        facts["rows"][next(iter(facts["rows"]))] = 4 * 10**8

    changes = [("mask_size of 2,000,000", "zarr.json", root), ("10^9 rows in a shard", "zarr.json", shard),
               ("texts without width", table_record("expressions"), no_width),
               ("10^9 expressions", table_record("expressions"), long_column),
               ("row 4e8", RECORD, far_row)]  # fmt: skip
    for what, file, change in changes:
        whole = (store / file).read_bytes()
        facts = json.loads(whole)
        change(facts.get("record", facts))
        (store / file).write_bytes(seal(facts["record"]) if "record" in facts else json.dumps(facts).encode())
        yield what, lambda: FeatureStore(store)
        if file == RECORD:
            assert verify(store).damage
        (store / file).write_bytes(whole)


def _of_a_checkpoint(checkpoint: Path) -> Iterator[Refusal]:
    whole = (checkpoint / CONFIG).read_bytes()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "10^5 layers": lambda model: model.update(num_layers=10**5),
        "10^5 layers of the decoder": lambda model: model.update(decoder_layers=10**5),
        "10^9 channels": lambda model: model.update(channels=10**9),
        "10^9 channels of the sound": lambda model: model["sizes"]["audio"].update(channels=10**9),
        "4000 maps": lambda model: model["sizes"].update(maps=model["sizes"]["maps"] * 1000),
        "10^8 queries": lambda model: model.update(num_queries=10**8),
        "hidden width of 10^9": lambda model: model.update(feedforward_channels=10**9),
    }
    for what, change in changes.items():
        facts = json.loads(whole)
        change(facts["model"])
        (checkpoint / CONFIG).write_text(json.dumps(facts))
        yield what, lambda: load_model(checkpoint)
    (checkpoint / CONFIG).write_bytes(whole)


def _of_weights(work: Path) -> Iterator[Refusal]:
    plain = work / "plain.pth"
    torch.save({"a": torch.zeros(2**24)}, plain)
    for name, read in (("packed.pth", load_tensors), (FILE, _read)):
        packed = zipfile.ZipFile(work / name, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with zipfile.ZipFile(plain) as old, packed as new:
            for part in old.namelist():
                new.writestr(part, old.read(part))
        yield f"a packed {name}", lambda name=name, read=read: read(work / name)
    torch.save({"a": torch.zeros(1).expand(2**32)}, work / "views.pth")
    yield "views of one number", lambda: load_tensors(work / "views.pth")
    plain.unlink()
    for name in ("pipe.pth", "pipe.safetensors"):
        os.mkfifo(work / name)
        yield name, lambda name=name: load_tensors(work / name)


def _of_a_sweep(work: Path) -> Iterator[Refusal]:
    trial = small_sweep.write_trial(work / "sweep", "full")
    table = pq.read_table(trial / STATISTICS_FILE)
    many = pa.concat_tables([table] * 8)
    pq.write_table(many, trial / STATISTICS_FILE, compression="zstd", row_group_size=many.num_rows)
    yield "one row group", lambda: list(statistics_blocks(trial / STATISTICS_FILE))


def _of_grids(work: Path) -> Iterator[Refusal]:
    lines = ["a: &a {" + ", ".join(f"x{number}: 1" for number in range(20)) + "}"]
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}], {new}: 1}}")
    many = "\n".join(["a: &a {" + ", ".join(f"x{number}: 1" for number in range(2000)) + "}",
                      *(f"k{number}: {{<<: *a}}" for number in range(1000))])  # fmt: skip
    parse_yaml("\n".join(lines), "grid.yaml")  # which is short
    yield "merge keys", lambda: parse_yaml(many, "grid.yaml")
    yield "a mapping merged into itself", lambda: parse_yaml("a: &a\n  <<: *a\n", "grid.yaml")
    yield "a number of 150,000 digits", lambda: parse_yaml("a: 1" + ":10" * 50_000, "grid.yaml")
    yield "a long hexadecimal number", lambda: parse_yaml("a: 0x" + "f" * 5000, "grid.yaml")
    yield "a grid of a megabyte", lambda: parse_yaml("a: b\n" * 200_000, "grid.yaml")
    os.symlink("/dev/zero", work / "endless.yaml")
    os.mkfifo(work / "pipe.yaml")
    yield "an endless grid", lambda: grid_text(str(work / "endless.yaml"))
    yield "a grid that is a pipe", lambda: grid_text(str(work / "pipe.yaml"))


def _of_texts(work: Path) -> Iterator[Refusal]:
    (work / "texts.csv").write_text("video,exp\n" + "a.mp4,the dog\n" * 1000 + f"a.mp4,{'x' * 120_000}\n")
    yield "a sentence of 120,000 characters", lambda: list(read_rows(work / "texts.csv", ("video", "exp")))
    (work / "line.csv").write_text("video,exp\n")
    os.truncate(work / "line.csv", 2**40)
    yield "a line without end", lambda: list(read_rows(work / "line.csv", ("video", "exp")))

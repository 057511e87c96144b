"""Writes a small store of schema version 2 as refavs wrote it, for the tests of the upgrade."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refavs.store import ArraySpec, text_key
from refavs.store.backends.base import LocalFolder
from refavs.store.columns import column_files, from_frame, write_table
from refavs.store.format.channel_stats import ChannelSums
from refavs.store.format.commits import seal
from refavs.store.format.shard import ShardFile
from refavs.store.format.zarr_metadata import group_metadata
from tests.refavs import small_store as small

SPECS: dict[str, dict[str, dict[str, Any]]] = {
    "clips": {
        "clips/visual/pixel_decoder/s8": {"shape": (3, 4, 2, 3), "dtype": "float16", "axes": ("t", "c", "h", "w"),
                                          "statistics": True, "valid": None},
        "clips/audio/vggish": {"shape": (3, 7), "dtype": "float32", "axes": ("t", "c"), "statistics": True,
                               "valid": None},
    },
    "objects": {
        "objects/mask": {"shape": (3, 11, 2), "dtype": "uint8", "axes": ("t", "h", "w"), "statistics": False,
                         "valid": None},
    },
    "text": {
        "text/roberta/features": {"shape": (5, 6), "dtype": "float32", "axes": ("l", "c"), "statistics": True,
                                  "valid": "text/roberta/valid"},
        "text/roberta/valid": {"shape": (5,), "dtype": "bool", "axes": ("l",), "statistics": False, "valid": None},
    },
}  # fmt: skip
ENCODERS = {
    "visual/pixel_decoder": {"name": "tiny swin, mask2former pixel decoder", "weights": "a1" * 32},
    "audio": {"name": "vggish", "weights": "random:0"}, "text": {"name": "roberta", "weights": "random:0"},
}  # fmt: skip
SIZES = {"clips": 2, "objects": 3, "text": 4}
# b shares a's frames; c has a's sound under other frames, and d a's frames and sound in a row of its own; e is silent.
INPUTS = {"a": ("fa", "sa"), "b": ("fa", "sb"), "c": ("fc", "sa"), "d": ("fa", "sa"), "e": ("fe", "")}
SHARES = {"b": {"clips/visual": "a"}}
FAILED = "x"  # a clip that could not be read


def values(path: str, key: str) -> np.ndarray:
    """The row of a key; clips of the same input have the same values."""
    spec = SPECS[path.split("/")[0]][path]
    if path.startswith("clips/"):
        key = INPUTS[key][path.startswith("clips/audio")]
    return small.row_of(key, [ArraySpec(name="x", shape=spec["shape"], dtype=spec["dtype"], axes=spec["axes"])])["x"]


def write_old_store(root: Path) -> None:
    """A finished store; its third shard of clips has no frames that are not in another one."""
    folder = LocalFolder(root)
    attributes = {
        "refavs_schema": {"version": 2, "tables": {
            table: {"rows_per_shard": SIZES[table], "arrays": [{"path": path, **spec} for path, spec in specs.items()]}
            for table, specs in SPECS.items()
        }},
        "encoders": ENCODERS, "source": "small", "T": 3, "input_size": 11, "mask_rule": "auto",
        "extraction": {"preset": "tiny"},
    }  # fmt: skip
    texts = sorted(small.TEXTS, key=text_key)
    shards_of = {
        "clips": [["a", "b"], ["c", "e"], ["d", FAILED]],
        "objects": [[f"{clip}/1" for clip in "abc"], [f"{clip}/1" for clip in "de"]],
        "text": [[text_key(text) for text in texts]],
    }
    for table, shards in shards_of.items():
        for index, keys in enumerate(shards):
            write_shard(folder, table, index, keys)
    rows = {key: 2 * index + place for index, keys in enumerate(shards_of["clips"]) for place, key in enumerate(keys)}
    names = pd.DataFrame({"id": ["a", "b", "c", "e", "d"], "visual_row": [0, 0, 2, 3, 4], "audio_row": range(5)})
    columns = {"clips": names, "text": pd.DataFrame({"string": texts}),
               "objects": pd.DataFrame({"clip": [0, 1, 2, 4, 3], "fid": 1})}  # fmt: skip
    for table, frame in columns.items():
        for name, data in column_files(table, *from_frame(frame)):
            folder.write(name, data)
    write_table(folder, "expressions", pd.DataFrame([
        {"uid": f"{clip}_{k}", "vid": clip, "clip": rows[clip], "object": object_row, "split": "train", "fid": 1,
         "text": texts.index(small.TEXTS[k]), "grade": "easy", "dimension": "semantic"}
        for object_row, clip in enumerate("abcde") for k in range(2)
    ]))  # fmt: skip
    groups = ["clips", "clips/visual", "clips/visual/pixel_decoder", "clips/audio", "objects", "text", "text/roberta"]
    for name in groups:
        folder.write(f"{name}/zarr.json", group_metadata())
    for path in (path for specs in SPECS.values() for path in specs):
        folder.write(f"{path}/zarr.json", b"the description of an array")
    folder.write("commits/listing.json", seal({"names": [], "zarr.json": ""}))
    folder.write("zarr.json", group_metadata(attributes | {"fingerprint": "0" * 64}))


def write_shard(folder: LocalFolder, table: str, index: int, keys: list[str]) -> None:
    """One shard with its commit record."""
    size, arrays, statistics = SIZES[table], {}, {}
    done = [key for key in keys if key != FAILED]
    for path, spec in SPECS[table].items():
        owned = [key for key in done if not any(path.startswith(start) for start in SHARES.get(key, {}))]
        file = ShardFile(folder, f"{path}/{'.'.join(['c', str(index), *('0' for _ in spec['shape'])])}", size)
        for key in owned:
            file.append(keys.index(key), values(path, key))
        facts = file.finish()
        file.publish()
        arrays[path] = {"bytes": facts.num_bytes, "crc32c": facts.crc32c,
                        "rows": {str(place): crc for place, crc in facts.rows.items()}}  # fmt: skip
        if spec["statistics"]:
            sums = [ChannelSums.of(values(path, key), spec["axes"].index("c"),
                                   values(spec["valid"], key) if spec["valid"] else None) for key in owned]  # fmt: skip
            total = sums[0]
            for one in sums[1:]:
                total = total.merge(one)
            statistics[path] = total.to_json()
    strings = {text_key(text): text for text in small.TEXTS}
    metas = {key: {"text": strings[key]} if table == "text" else {} for key in done}
    if table == "clips":
        metas = {key: {"silent": key == "e", "repeated_from_s": 2 if key == "c" else None, "num_frames": 3,
                       "visual_input": INPUTS[key][0], "audio_input": INPUTS[key][1]} for key in done}  # fmt: skip
    facts = {
        "version": 2, "table": table, "index": index, "rows": {key: index * size + keys.index(key) for key in done},
        "meta": metas, "arrays": arrays, "encoders": {}, "statistics": statistics,
        "failures": {FAILED: "cut short"} if FAILED in keys else {}, "seconds": 1.5,
        "shares": {key: SHARES[key] for key in done if key in SHARES},
    }  # fmt: skip
    folder.write(f"commits/{table}-{index:05d}.json", seal(json.loads(json.dumps(facts))))

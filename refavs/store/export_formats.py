"""A store, or a part of it, in the formats of other loaders: WebDataset's tar files, and Parquet."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from refavs.errors import ConfigError
from refavs.files.staged import is_half_written, staged
from refavs.store.format.array_spec import ArraySpec
from refavs.store.format.quantised import values_of
from refavs.store.reader import FeatureStore

SEAL = "index.json"
SHARD_BYTES = 2**30
_FACTS = ("uid", "text", "split", "fid", "dimension", "grade", "object")
Progress = Callable[[int, int, str], None]


def export_webdataset(store: FeatureStore, out: Path, split: str | None, progress: Progress) -> int:
    """Writes tar files of about 1 GiB with a sample for each clip; returns the number of clips.

    A sample has `json` (id, valid seconds, expressions with uid, text, split, ...), an `.npy` for each array of its
    streams (`visual-NAME-ARRAY.npy`), of its objects (`mask-FID.npy`, bool) and of its texts in the order of the
    expressions (`text-NAME-ARRAY.npy`).

    Args:
        split: only the expressions of this split and their clips; None for all.

    Raises:
        ConfigError: no expression has this split, or `out` has other files.
        StoreError: a row is missing or damaged.
    """
    clips, names = _by_clip(store, split), []
    with _folder(out) as folder, ExitStack() as opened:
        shard: tarfile.TarFile | None = None
        for number, (clip, expressions) in enumerate(clips.items()):
            if shard is None or shard.offset > SHARD_BYTES:
                opened.close()
                names.append(f"clips-{len(names):06d}.tar")
                shard = opened.enter_context(tarfile.open(folder / names[-1], "w", format=tarfile.PAX_FORMAT))
            for name, data in _sample(store, clip, expressions):
                entry = tarfile.TarInfo(f"{clip:08d}.{name}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
            progress(number + 1, len(clips), names[-1])
        opened.close()
        _seal(folder, store, names, split)
    return len(clips)


def export_parquet(store: FeatureStore, out: Path, split: str | None, progress: Progress) -> int:
    """Writes `expressions.parquet`, and for audio and text streams a file with one row a clip or text.

    Its arrays are lists of numbers; the shape of each is in the metadata of its column. Returns the number of clips.

    Args:
        split: only the expressions of this split, their clips and texts; None for all.

    Raises:
        ConfigError: no expression has this split, or `out` has other files.
        StoreError: a row is missing or damaged.
    """
    clips = _by_clip(store, split)
    rows = sorted(row for own in clips.values() for row in own)
    table = store.expressions.iloc[rows]
    texts = sorted(set(table["text_row"].tolist()))
    wanted = {"audio": ([*clips], "id", store.clips["id"]), "text": (texts, "text", store.texts["text"])}
    names = ["expressions.parquet"]
    with _folder(out) as folder:
        pq.write_table(pa.Table.from_pandas(table.drop(columns=["clip", "text_row"]), preserve_index=False),
                       folder / names[0])  # fmt: skip
        streams = [stream for stream in store.streams if stream.partition("/")[0] in wanted]
        for number, stream in enumerate(streams):
            places, key, keys = wanted[stream.partition("/")[0]]
            names.append(f"{stream.replace('/', '-')}.parquet")
            specs = store.schema.tables[stream].values
            schema = pa.schema([(key, pa.string()), *(_field(spec) for spec in specs)])
            with pq.ParquetWriter(folder / names[-1], schema) as writer:
                for start in range(0, len(places), 256):
                    part = places[start : start + 256]
                    columns = [[np.ravel(_value(store, spec, place)) for place in part] for spec in specs]
                    writer.write_table(pa.table([[keys.iloc[place] for place in part], *columns], schema=schema))
            progress(number + 1, len(streams), names[-1])
        _seal(folder, store, names, split)
    return len(clips)


def _by_clip(store: FeatureStore, split: str | None) -> dict[int, list[int]]:
    """The expressions of each clip that has some."""
    found: dict[int, list[int]] = {}
    for row, (clip, own) in enumerate(zip(store.expressions["clip"], store.expressions["split"], strict=True)):
        if split is None or own == split:
            found.setdefault(int(clip), []).append(row)
    if not found:
        known = sorted(set(store.expressions["split"]))
        raise ConfigError(f"{store.location} has no expression of split {split!r}; it has {', '.join(known) or 'none'}")
    return dict(sorted(found.items()))


def _sample(store: FeatureStore, clip: int, expressions: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    table, facts = store.expressions.iloc[list(expressions)], store.clips.iloc[clip]
    told = [{name: _plain(row[name]) for name in _FACTS if name in row} for row in table.to_dict("records")]
    about = {"id": facts["id"], "seconds": _plain(facts["seconds"]), "expressions": told}
    yield "json", json.dumps(about, ensure_ascii=False).encode()
    for path, spec in store.specs.items():
        modality = path.split("/")[1] if path.startswith("clips/") else path.split("/")[0]
        if modality in ("visual", "audio") and spec in store.schema.tables[spec.table].values:
            yield _name(path), _npy(_value(store, spec, clip))
        elif modality == "text":
            yield _name(path), _npy(np.stack([_value(store, spec, int(row)) for row in table["text_row"]]))
    for row in sorted({int(row) for row in table["object"] if row >= 0}):
        mask = store.mask(row)
        if mask is not None:
            yield f"mask-{store.objects.loc[row, 'fid']}.npy", _npy(mask.numpy())


def _value(store: FeatureStore, spec: ArraySpec, place: int) -> np.ndarray:
    """An array of a clip or a text, with the values that a reader of the store gets."""
    found: dict[str, Tensor] = {}
    for path in store.schema.with_scales(spec.path):
        found[path] = store.read(path, store.rows(path, [place])[0])
    return values_of(spec, found).numpy()


def _name(path: str) -> str:
    """The extension of an array; dots separate it from the key of its sample."""
    return f"{path.removeprefix('clips/').replace('/', '-').replace('.', '_')}.npy"


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _field(spec: ArraySpec) -> pa.Field:
    kind = pa.from_numpy_dtype(np.dtype("float32" if spec.scale else spec.dtype))
    return pa.field(spec.name, pa.list_(kind), metadata={"shape": json.dumps(list(spec.shape))})


def _folder(out: Path) -> Any:
    ours = (out / SEAL).is_file() or is_half_written(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours)):
        raise ConfigError(f"{out} has other files; name a new folder")
    return staged(out, SEAL, _files)


def _files(seal: Path) -> list[str]:
    """The files that an earlier export wrote."""
    try:
        told = json.loads(seal.read_bytes())
        return [str(name) for name in told["files"] if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _seal(folder: Path, store: FeatureStore, names: Sequence[str], split: str | None) -> None:
    encoders: Mapping[str, Any] = {name: store.schema.streams[name].fingerprint for name in store.streams}
    told = {"store": store.fingerprint, "split": split, "files": list(names), "encoders": encoders}
    (folder / SEAL).write_text(json.dumps(told, indent=1, sort_keys=True))

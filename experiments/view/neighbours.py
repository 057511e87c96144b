"""Clips that look or sound alike: nearest by the mean of a stream, over a bounded sample of the store."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from experiments.view.clips import clip_table
from experiments.view.shown import ShownStore
from experiments.view.streams import values
from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.format.array_spec import ArraySpec

MOST_CLIPS, MOST_BYTES = 400, 2**28  # of a sample


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A clip with the cosine of its mean and the chosen clip's."""

    clip_id: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The clips nearest to one clip.

    Attributes:
        array: the array whose means are compared, the smallest of the stream.
        num_sampled: number of clips that were looked at, of `num_clips`.
        note: why there are none.
    """

    array: str
    found: tuple[Neighbour, ...] = ()
    num_sampled: int = 0
    num_clips: int = 0
    note: str = ""


def smallest_array(shown: ShownStore, stream: str) -> ArraySpec:
    """The array of a stream with the fewest bytes per clip."""
    specs = [spec for spec in shown.store.schema.tables[stream].values if "c" in spec.axes]
    return min(specs, key=lambda spec: spec.row_bytes)


def nearest(shown: ShownStore, stream: str, clip_id: str, count: int = 8) -> Neighbours:
    """The clips of the sample whose standardised means have the largest cosine with this clip's.

    Cosines are taken about the mean of all of them. The means of the sample are read at the first call and kept.
    """
    if stream not in shown.store.schema.tables:
        return Neighbours(array=stream, note=f"the store {shown.name} has no stream {stream}")
    spec = smallest_array(shown, stream)
    name = spec.path.removeprefix("clips/")
    try:
        own = _mean(shown.store, spec, clip_id)
    except StoreError as error:
        return Neighbours(array=name, note=str(error))
    means = sample_means(shown, spec)
    ids = [other for other in means if other != clip_id]
    table = np.stack([own, *(means[other] for other in ids)])
    table = table - table.mean(0)
    table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    cosines = table[1:] @ table[0]
    order = np.argsort(-cosines, kind="stable")[:count]
    return Neighbours(
        array=name, num_sampled=len(ids), num_clips=len(clip_table(shown)) - 1,
        found=tuple(Neighbour(clip_id=ids[place], similarity=float(cosines[place])) for place in order),
        note="" if ids else "the store has no other clip with this stream",
    )  # fmt: skip


def sample_means(shown: ShownStore, spec: ArraySpec) -> dict[str, Float[np.ndarray, " c"]]:
    """The mean of each sampled clip by its id; clips are taken at equal distances, within `MOST_BYTES`."""
    ids = clip_table(shown)["id"].tolist()
    most = max(1, min(MOST_CLIPS, MOST_BYTES // spec.row_bytes, len(ids)))
    chosen = [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, most).astype(int))]

    def read(store: FeatureStore) -> dict[str, Float[np.ndarray, " c"]]:
        found = store.folder.together([partial(_mean_or_none, store, spec, clip_id) for clip_id in chosen])
        return {clip_id: one for clip_id, one in zip(chosen, found, strict=True) if one is not None}

    return shown.once(("means", spec.path), read)


def _mean_or_none(store: FeatureStore, spec: ArraySpec, clip_id: str) -> Float[np.ndarray, " c"] | None:
    """None for a clip that failed, is not committed yet, or is damaged."""
    try:
        return _mean(store, spec, clip_id)
    except StoreError:
        return None


def _mean(store: FeatureStore, spec: ArraySpec, clip_id: str) -> Float[np.ndarray, " c"]:
    found = values(store, spec, clip_id).float()
    mean = found.mean([axis for axis in range(found.ndim) if axis != spec.channel_axis]).double().numpy()
    middle, deviation = store.statistics.get(spec.path, (0.0, np.ones(1)))
    return np.nan_to_num((mean - middle) / np.where(deviation > 0, deviation, 1), posinf=0, neginf=0)

"""Features of one clip as pictures: maps as colours of principal components, sound as a heat map, norms, outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import scipy.linalg
import torch
from einops import rearrange
from jaxtyping import Float, UInt8

from experiments.view.clips import has_clips
from experiments.view.shown import ShownStore
from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.derived_files import KEYS, committed_rows
from refavs.store.format.array_spec import ArraySpec
from refavs.store.format.quantised import values_of

MOST_TOKENS = 4096  # from which the principal components are computed
OUTLIER = 3.0  # a token is an outlier if its norm is larger than this multiple of the median
HEAT_RANGE = 3.0  # standard deviations at the ends of the heat map's colours
TAILS = (1.0, 99.0)  # percentiles of a component at the ends of its colour


class Place(NamedTuple):
    """An array of a store, as the menus name it."""

    store: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of pictures, one per step, or a single wide one; `text` says what it shows."""

    text: str
    pictures: tuple[UInt8[np.ndarray, "_ _ 3"], ...]


@dataclass(frozen=True, kw_only=True)
class StreamView:
    """One array of a clip.

    Attributes:
        facts: names and values of norms and outliers.
        note: why there is nothing to show.
    """

    title: str
    rows: tuple[Row, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    note: str = ""


def places_of(shown: ShownStore) -> list[Place]:
    """The arrays that can be shown: maps and sound with a channel axis."""
    specs = [spec for name, table in shown.store.schema.tables.items() if name.startswith(("visual/", "audio/"))
             for spec in table.values if "c" in spec.axes]  # fmt: skip
    specs.sort(key=lambda spec: not spec.table.startswith("visual/"))
    return [Place(shown.name, spec.path) for spec in specs]


def values(store: FeatureStore, spec: ArraySpec, clip_id: str) -> Float[torch.Tensor, "..."]:
    """One clip's values of an array, a view of the store where it is not quantised.

    Raises:
        StoreError: the store has no such clip or row, or it is damaged.
    """
    row = row_of(store, spec.table, clip_id)
    return values_of(spec, {path: store.read(path, row) for path in spec.paths})


def row_of(store: FeatureStore, stream: str, clip_id: str) -> int:
    """The row of a clip in a stream.

    Raises:
        StoreError: it has none.
    """
    key = clip_id
    if has_clips(store):
        line = store.clips[store.clips["id"] == clip_id]
        key = line.iloc[0][KEYS[stream.split("/")[0]][1]] if len(line) else ""
    found = committed_rows(record for record in store.records if record.table == stream and key in record.rows)
    if key not in found:
        raise StoreError(f"store {store.location} has no {stream} of {clip_id!r}")
    return found[key]


def stream_view(shown: ShownStore, path: str, clip_id: str) -> StreamView:
    """Draws one array of a clip, or says why it cannot be read."""
    spec = shown.store.specs.get(path)
    title = path.removeprefix("clips/")
    if spec is None:
        return StreamView(title=title, note=f"the store {shown.name} has no such array")
    try:
        found = values(shown.store, spec, clip_id)
    except StoreError as error:
        return StreamView(title=title, note=str(error))
    moments = shown.store.statistics.get(path)
    is_map = spec.axes == ("t", "c", "h", "w")
    rows, norms = (map_rows if is_map else heat_rows)(spec, found, moments)
    return StreamView(title=title, rows=rows, facts=(("shape", _shape(spec)), *norm_facts(norms)))


def map_rows(
    spec: ArraySpec, found: Float[torch.Tensor, "t c h w"], moments: tuple[np.ndarray, np.ndarray] | None
) -> tuple[tuple[Row, ...], Float[np.ndarray, "t h w"]]:
    """The maps as colours of their first three principal components, and the norms of their tokens."""
    share, components = principal(found, moments)
    norms = np.stack([torch.linalg.vector_norm(one.float(), dim=0).numpy() for one in found])
    colours = tuple(coloured(components))
    return (
        Row(text=f"first three principal components as red, green and blue; they hold {100 * share:.0f} % of the "
            "variance", pictures=colours),
        Row(text="norm of each token, dark to bright", pictures=tuple(heat(norms, "viridis"))),
    ), norms  # fmt: skip


def heat_rows(
    spec: ArraySpec, found: Float[torch.Tensor, "..."], moments: tuple[np.ndarray, np.ndarray] | None
) -> tuple[tuple[Row, ...], Float[np.ndarray, " n"]]:
    """The features of sound as one picture: channels upwards, time to the right."""
    flat = rearrange(torch.movedim(found.float(), spec.channel_axis, -1).flatten(0, -2), "n c -> n c").numpy()
    norms = np.linalg.norm(flat, axis=1)
    mean, deviation = moments or (flat.mean(0), flat.std(0))
    steps = (flat - mean) / np.where(deviation > 0, deviation, 1)
    picture = mapped(np.clip(steps.T[::-1] / (2 * HEAT_RANGE) + 0.5, 0, 1), "RdBu_r")
    text = (f"{flat.shape[1]} channels upwards, {flat.shape[0]} steps of time to the right; blue to red: "
            f"-{HEAT_RANGE:.0f} to {HEAT_RANGE:.0f} standard deviations of the channel")  # fmt: skip
    return (Row(text=text, pictures=(picture,)),), norms


def principal(
    found: Float[torch.Tensor, "t c h w"], moments: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[float, Float[np.ndarray, "t h w 3"]]:
    """The first three principal components of a clip's standardised tokens, and their share of the variance.

    Tokens are standardised by the store's statistics, so that no channel dominates by its scale. The sign of each
    component makes its largest weight positive.
    """
    t, c, h, w = found.shape
    mean, deviation = moments or (found.float().mean((0, 2, 3)).numpy(), np.ones(c, np.float32))
    mean, scale = np.nan_to_num(mean), 1 / np.where(deviation > 0, deviation, 1)
    step = max(1, -(-t * h * w // MOST_TOKENS))
    tokens = rearrange(found, "t c h w -> (t h w) c")[::step].double().numpy()
    tokens = np.nan_to_num((tokens - mean) * scale, posinf=0, neginf=0)
    middle = tokens.mean(0)
    covariance = np.cov(tokens - middle, rowvar=False).reshape(c, c)
    count = min(3, c)
    variances, axes = scipy.linalg.eigh(covariance, subset_by_index=[c - count, c - 1])
    axes, variances = axes[:, ::-1], variances[::-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(count)])
    weights = torch.from_numpy((axes * scale[:, None]).astype(np.float32))
    shift = ((mean * scale + middle) @ axes).astype(np.float32)
    projected = (one.float().flatten(1).T @ weights for one in found)
    steps = [torch.nan_to_num(one, posinf=0, neginf=0).numpy() - shift for one in projected]
    components = np.zeros((t, h, w, 3), np.float32)
    components[..., :count] = rearrange(np.stack(steps), "t (h w) k -> t h w k", h=h)
    total = float(np.trace(covariance))
    return float(variances.clip(0).sum() / total) if total > 0 else 0.0, components


def coloured(components: Float[np.ndarray, "t h w 3"]) -> UInt8[np.ndarray, "t h w 3"]:
    """Components as colours, each from its 1st to its 99th percentile over the clip."""
    low, high = np.percentile(components, TAILS, axis=(0, 1, 2))
    return (np.clip((components - low) / np.where(high > low, high - low, 1), 0, 1) * 255).astype(np.uint8)


def heat(fields: Float[np.ndarray, "t h w"], colours: str) -> UInt8[np.ndarray, "t h w 3"]:
    """Values as colours from the smallest to the largest of the clip."""
    fields = np.nan_to_num(fields, posinf=0, neginf=0)
    low, high = fields.min(), fields.max()
    return mapped((fields - low) / (high - low if high > low else 1), colours)


def mapped(shares: Float[np.ndarray, "..."], colours: str) -> UInt8[np.ndarray, "... 3"]:
    """Numbers in [0, 1] as colours of one of matplotlib's maps."""
    return mpl.colormaps[colours](shares, bytes=True)[..., :3]


def norm_facts(norms: Float[np.ndarray, "t ..."]) -> tuple[tuple[str, str], ...]:
    """The norms of a clip's tokens and their outliers in words."""
    finite = np.isfinite(norms)
    known = norms[finite]
    if not known.size:
        return (("norm", "no token is finite"),)
    middle = float(np.median(known))
    step, *_ = np.unravel_index(int(np.where(finite, norms, -1).argmax()), norms.shape)
    outliers = int((known > OUTLIER * middle).sum()) if middle > 0 else 0
    facts = [
        ("norm", f"{known.min():.3g} to {known.max():.3g}, median {middle:.3g}"),
        ("largest norm", f"step {step}"),
        ("outliers", f"{outliers} of {norms.size:,} tokens have more than {OUTLIER:.0f} times the median"),
    ]
    bad, zero = norms.size - known.size, int((known == 0).sum())
    facts += [("not finite", f"{bad:,} tokens")] * (bad > 0) + [("all zero", f"{zero:,} tokens")] * (zero > 0)
    return tuple(facts)


def side_by_side(stores: dict[str, ShownStore], places: Sequence[Place], clip_id: str) -> list[StreamView]:
    """Several arrays of a clip, of one store or of several that have the clip."""
    return [stream_view(stores[place.store], place.path, clip_id) for place in places if place.store in stores]


def _shape(spec: ArraySpec) -> str:
    return " x ".join(f"{size} {axis}" for size, axis in zip(spec.shape, spec.axes, strict=True)) + f", {spec.dtype}"

"""Pooled maps: the means of squares of a stored map, a stream of their own beside it.

A head may need a map in the decoded seconds, but only its pooled tokens in the others. With the stream
`<encoder>/pooled8` a step reads the means over 8 x 8 places there, a 64th of the values. They are computed from the
stored map, in float32, so that a head gets the tokens that it would compute itself.
"""

import re

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from refavs.store.format.quantised import numbers
from refavs.store.reader import FeatureStore

_LEVEL = re.compile(r"pooled([1-9]\d*)")


def pooled_name(name: str, by: int) -> str:
    """What a batch calls the map `name` pooled over `by` x `by` places."""
    return f"{name}/{by}"


def pooled_array(name: str) -> str:
    """Name of the array that pools the map `name`; different, so that a head finds maps by their name alone."""
    return f"{name}_pooled"


def pooling_of(level: str) -> int | None:
    """The side of the squares of a pooled level, e.g. 8 of `pooled8`; None for another level."""
    match = _LEVEL.fullmatch(level)
    return int(match[1]) if match else None


def pooled(maps: Shaped[Tensor, "t c h w"], scale: Float[Tensor, "c"] | None, by: int) -> Float[Tensor, "t c h2 w2"]:
    """The pooled values of a clip's map; `scale` is that of its channels if it is quantised."""
    means = torch.nn.functional.avg_pool2d((maps if scale is None else numbers(maps)).float(), by)
    return means if scale is None else means * scale[:, None, None]


def pooled_path(store: FeatureStore, path: str, by: int) -> str | None:
    """Path of the pooled maps of exactly the map at `path`; None if the store has none."""
    encoder, name = "/".join(path.split("/")[1:3]), path.rpartition("/")[2]
    stream, source = store.schema.streams.get(f"{encoder}/pooled{by}"), store.schema.streams[store.specs[path].table]
    same = stream is not None and stream.fingerprint == {**source.fingerprint, "pooled": by}
    return f"clips/{encoder}/pooled{by}/{pooled_array(name)}" if same else None

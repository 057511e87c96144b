"""Checks that an encoder follows its protocol; for the tests of this package and of plug-ins."""

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from extract.encoders.protocol import Encoder, Frames, Sound, Text
from refavs.store.format.schema import ArraySpec, StreamSpec

TAKES = {"visual": Frames, "audio": Sound, "text": Text}
FACTS = {"name", "weights", "preprocessing", "precision"}


def check_encoder(encoder: Encoder, seconds: int = 3) -> None:
    """Runs an encoder on two synthetic inputs and checks everything that the protocol requires.

    Args:
        encoder: as returned by its factory, with random weights or small, because it is run.
        seconds: length of the clips.

    Raises:
        AssertionError: the encoder breaks the protocol; the message says how.
    """
    assert isinstance(encoder, Encoder), f"{encoder!r} lacks a member of extract.encoders.protocol.Encoder; subclass it"
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", encoder.name), (
        f"the name {encoder.name!r} is not made of letters, digits, _, - and ."
    )
    assert isinstance(encoder.takes, TAKES[encoder.modality]), f"{encoder.modality} encoders take no {encoder.takes!r}"
    packed = pickle.dumps(encoder)
    assert len(packed) < 2**20, f"a new encoder pickles to {len(packed):,} bytes; read weights in the first encode"
    arrays = encoder.arrays(seconds)
    for level, specs in arrays.items():
        told = dict(encoder.facts(level))
        assert told.keys() >= FACTS, f"facts({level!r}) lack {', '.join(sorted(FACTS - told.keys()))}"
        assert json.loads(json.dumps(told)) == told, f"facts({level!r}) are changed by JSON; give plain values"
        StreamSpec(fingerprint=told, arrays=tuple(specs), rows_per_shard=1)
        odd = [spec.name for spec in specs if spec.length("t") not in (None, seconds)]
        assert not odd, f"{', '.join(odd)} of level {level!r} lack rows: of an axis t there is one for each second"
    one, other = (encoder.prepare(_input(encoder, seconds, seed)) for seed in range(2))
    levels = list(arrays)
    first, second = encoder.encode([one, other], levels)
    _check_arrays(first, arrays)
    _check_arrays(second, arrays)
    assert not _same(first, second), "two different inputs give the same arrays"
    again = pickle.loads(packed)
    for alone, by in ((encoder, "by itself"), (again, "by a copy that was pickled")):
        (found,) = alone.encode([alone.prepare(_input(encoder, seconds, 0))], levels)
        assert _same(found, first), f"an input gives other arrays {by} than in a batch"
    for level in levels:
        (found,) = encoder.encode([one], [level])
        expected = {name: array for name, array in first.items() if name in _names({level: arrays[level]})}
        assert found.keys() == expected.keys(), f"level {level!r} alone gives {', '.join(found)}"
        assert _same(found, expected), f"level {level!r} gives other arrays alone than together with the others"
    assert list(encoder.encode([], levels)) == [], "an empty batch gives arrays"


def _input(encoder: Encoder, seconds: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    takes = encoder.takes
    if isinstance(takes, Frames):
        frames = rng.integers(0, 256, (seconds, *takes.shape), dtype=np.uint8)
        frames[..., 3:] = 255
        if takes.fit == "pad":
            frames[:, takes.size * 9 // 16 :] = 0
        return frames
    if isinstance(takes, Sound):
        return (0.1 * rng.standard_normal(seconds * takes.rate_hz)).astype(np.float32)
    return ("The loudest object.", "The star.")[seed]


def _names(arrays: Mapping[str, Sequence[ArraySpec]]) -> dict[str, ArraySpec]:
    return {f"{level}/{spec.name}".lstrip("/"): spec for level, specs in arrays.items() for spec in specs}


def _check_arrays(found: Mapping[str, np.ndarray], arrays: Mapping[str, Sequence[ArraySpec]]) -> None:
    specs = _names(arrays)
    assert found.keys() == specs.keys(), f"encode gives {', '.join(found)}; arrays() names {', '.join(specs)}"
    for name, spec in specs.items():
        array = found[name]
        got = array.shape, str(array.dtype)
        assert got == (spec.shape, spec.dtype), f"{name} is {got}; arrays() says {(spec.shape, spec.dtype)}"
        assert np.isfinite(array).all(), f"{name} has values that are not finite"


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)

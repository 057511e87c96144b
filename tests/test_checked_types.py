"""What `checked_types` promises of every call of refavs in the tests."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from refavs.model.losses import mask_dice
from refavs.store import StreamSpec, object_key
from tests.checked_types import checked

THREE, FOUR = torch.zeros(2, 3), torch.zeros(2, 4)
WRONG: Any = 0.5


@checked
@dataclass
class Both:
    """As the import hook leaves a dataclass."""

    left: Float[Tensor, "a b"]
    right: "Float[Tensor, 'a b']"


class Methods:
    """Of each kind; the first names a type that only a type checker finds."""

    @classmethod
    @checked
    def of(cls, name: "Unknown") -> int:  # noqa: F821  # type: ignore[name-defined]
        return name

    @checked
    def join(self, left: Float[Tensor, "a b"], right: Float[Tensor, "a b"]) -> Float[Tensor, "2*a b"]:
        return torch.cat([left, right])[: 3 if left.shape[1] == 4 else None]


def test_shapes_of_arguments_must_agree_and_types_must_be_right() -> None:
    mask_dice(THREE, THREE)
    with pytest.raises(BeartypeCallHintParamViolation, match="labels"):
        mask_dice(THREE, FOUR)
    with pytest.raises(BeartypeCallHintParamViolation, match="clip_id"):
        object_key(WRONG, 1)
    with pytest.raises(BeartypeCallHintParamViolation, match="rows_per_shard"):
        StreamSpec(fingerprint={}, arrays=(), rows_per_shard=WRONG)


def test_dataclasses_methods_and_results_are_checked() -> None:
    Both(THREE, THREE)
    with pytest.raises(BeartypeCallHintParamViolation, match="right"):
        Both(THREE, FOUR)
    assert Methods.of(3) == 3 and Methods().join(THREE, THREE).shape == (4, 3)
    with pytest.raises(BeartypeCallHintParamViolation, match="right"):
        Methods().join(THREE, FOUR)
    with pytest.raises(BeartypeCallHintReturnViolation, match="return"):
        Methods().join(FOUR, FOUR)

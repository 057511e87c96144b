"""The splits of a store by what they are for, so that nobody compares with the name of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from refavs.choices import VALIDATION, Role
from refavs.data.layouts.ref_avs_metadata import NULL_PREFIX, SPLITS, TITLES

MIX = "mix"  # the unweighted mean of the test splits about objects, in names of metrics


@dataclass(frozen=True)
class Splits:
    """Splits and their roles.

    Attributes:
        roles: role of each split by its name.
    """

    roles: Mapping[str, Role]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Splits":
        """From what a store or a sweep says of its `splits`; those of Ref-AVS Bench where it says nothing."""
        return cls(facts.get("splits", SPLITS))

    def having(self, *roles: Role) -> tuple[str, ...]:
        """The splits with these roles: role by role, in the order of their names."""
        return tuple(name for role in roles for name in sorted(self.roles) if self.roles[name] == role)

    @property
    def train(self) -> tuple[str, ...]:
        """Splits to train on."""
        return self.having("train")

    @property
    def validation(self) -> tuple[str, ...]:
        """Splits that are looked at after each epoch, together as `val`."""
        return self.having("validation")

    @property
    def test(self) -> tuple[str, ...]:
        """Test splits of expressions that refer to an object."""
        return self.having("test")

    @property
    def tested(self) -> tuple[str, ...]:
        """All test splits."""
        return self.having("test", "null-test")

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Splits to evaluate a trained model on."""
        return self.having("validation", "test", "null-test")

    @property
    def about_objects(self) -> dict[str, tuple[str, ...]]:
        """What tables show of expressions that refer to an object: each test split, and the mean of several, `mix`."""
        return {**{name: (name,) for name in self.test}, **({MIX: self.test} if len(self.test) > 1 else {})}

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The splits of all that tables show."""
        return {**self.about_objects, **{name: (name,) for name in self.having("null-test")}}

    def group_of(self, split: str) -> str:
        """What the metrics of a split are called by."""
        return VALIDATION if self.roles.get(split) == "validation" else split

    def title(self, group: str) -> str:
        """What a table calls one of the `groups`."""
        return TITLES.get(group, group)


def refers_to_nothing(expressions: pd.DataFrame) -> Bool[np.ndarray, " n"]:
    """Which expressions refer to nothing; of stores that do not tell, those about a null clip of Ref-AVS Bench."""
    if "null" in expressions:
        return expressions["null"].to_numpy(bool)
    return expressions["clip_id"].str.startswith(NULL_PREFIX).to_numpy(bool)

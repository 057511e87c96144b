"""The splits of a store by role, so that no code compares with the name of a split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from refavs.choices import VALIDATION, Role
from refavs.data.layouts.ref_avs_metadata import NULL_PREFIX, SPLITS, TITLES

MIX = "mix"  # in metric names: the unweighted mean of the test splits about objects


@dataclass(frozen=True)
class Splits:
    """Splits and their roles.

    Attributes:
        roles: role of each split by name.
    """

    roles: Mapping[str, Role]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Splits":
        """Reads `splits` from the facts of a store or sweep; without it, the splits of Ref-AVS Bench."""
        return cls(facts.get("splits", SPLITS))

    def having(self, *roles: Role) -> tuple[str, ...]:
        """The splits with these roles, ordered by role and then by name."""
        return tuple(name for role in roles for name in sorted(self.roles) if self.roles[name] == role)

    @property
    def train(self) -> tuple[str, ...]:
        """Splits to train on."""
        return self.having("train")

    @property
    def validation(self) -> tuple[str, ...]:
        """Splits that are evaluated after each epoch, together as `val`."""
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
        """Groups about objects in tables: each test split, and `mix`, the mean of several."""
        return {**{name: (name,) for name in self.test}, **({MIX: self.test} if len(self.test) > 1 else {})}

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """All groups in tables, with their splits."""
        return {**self.about_objects, **{name: (name,) for name in self.having("null-test")}}

    def group_of(self, split: str) -> str:
        """The group whose name prefixes the metrics of a split."""
        return VALIDATION if self.roles.get(split) == "validation" else split

    def title(self, group: str) -> str:
        """The title of a group in tables."""
        return TITLES.get(group, group)


def refers_to_nothing(expressions: pd.DataFrame) -> Bool[np.ndarray, " n"]:
    """Which expressions refer to nothing. Older stores do not say so; there, null clips of Ref-AVS Bench decide."""
    if "null" in expressions:
        return expressions["null"].to_numpy(bool)
    return expressions["clip_id"].str.startswith(NULL_PREFIX).to_numpy(bool)

"""The cached memory against a plain loop, and that it does not read later steps."""

import numpy as np
import pytest
import torch

from refavs.model.heads.parts.memory import cached_memory, emphasise_change


def looped_memory(features: np.ndarray) -> np.ndarray:
    """Eq. 3, step by step."""
    memory = np.zeros_like(features)
    for step in range(1, features.shape[1]):
        memory[:, step] = sum(features[:, earlier] for earlier in range(step)) / step
    return memory


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_cached_memory_equals_a_loop_over_steps(features: torch.Tensor) -> None:
    np.testing.assert_allclose(cached_memory(features).numpy(), looped_memory(features.numpy()), atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_emphasise_change_equals_the_equation(features: torch.Tensor, beta: float) -> None:
    values = features.numpy()
    expected = (beta + 1) * values - beta * looped_memory(values)
    np.testing.assert_allclose(emphasise_change(features, beta).numpy(), expected, atol=1e-12)


def test_emphasise_change_of_beta_zero_changes_nothing(features: torch.Tensor) -> None:
    assert torch.equal(emphasise_change(features, 0.0), features)


def test_emphasise_change_keeps_constant_features_after_the_first_step(features: torch.Tensor) -> None:
    constant = features[:, :1].expand(-1, 6, -1, -1)
    changed = emphasise_change(constant, 3.0)
    torch.testing.assert_close(changed[:, 1:], constant[:, 1:])
    torch.testing.assert_close(changed[:, 0], 4 * constant[:, 0])


def test_cached_memory_sees_only_the_past(features: torch.Tensor) -> None:
    later = features.clone()
    later[:, 3] += 1
    before, after = cached_memory(features), cached_memory(later)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).any()


def test_cached_memory_of_one_step_is_zero() -> None:
    assert not cached_memory(torch.ones(1, 1, 2, 2)).any()

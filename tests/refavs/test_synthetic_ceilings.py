"""The temporal questions of the synthetic benchmark need memory, and can be answered with it."""

import pytest

from tests.refavs.ceilings import Question, accuracy, and_before, ask, now


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return ask(num_clips=400)


@pytest.mark.long
@pytest.mark.parametrize(("dimension", "without", "least"), [
    ("acoustic", 0.99, 0.99), ("acoustic+temporal", 0.75, 0.97), ("spatial+temporal", 0.6, 0.97),
])  # fmt: skip
def test_what_needs_time_needs_memory(
    questions: list[Question], dimension: str, without: float, least: float
) -> None:
    present, causal = (accuracy(questions, dimension, look) for look in (now, and_before))
    assert causal >= least
    assert present >= without if dimension == "acoustic" else present <= without

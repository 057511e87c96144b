"""A program whose command line is not valid Unicode can start Ray."""

import pytest
from ray._private import utils

from extract.pipeline.local_ray import note_any_command_line


@pytest.mark.parametrize(("found", "noted"), [("refavs-extract caf\udce9", r"refavs-extract caf\udce9"), ("é", "é")])
def test_command_line_is_noted_with_odd_bytes_written_out(
    monkeypatch: pytest.MonkeyPatch, found: str, noted: str
) -> None:
    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: found)
    note_any_command_line()
    assert utils.get_entrypoint_name() == noted

"""refavs-sweep settings lists every setting with its default, accepted values and meaning."""

import pytest
import yaml

from experiments.cli import main
from experiments.grid import listing
from experiments.grid.config import TrainConfig, TrialConfig
from experiments.grid.listing import described, meanings_of, settings
from refavs.config import flat
from refavs.model.heads import registry

EVERY = settings()


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["settings", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_every_setting_has_a_default_a_kind_and_a_meaning() -> None:
    assert {one.name: yaml.safe_load(one.default) for one in EVERY} == flat(TrialConfig())
    assert not [one.name for one in EVERY if len(one.meaning) < 10 or not one.accepted]
    kinds = {one.name: one.accepted for one in EVERY}
    assert kinds["train.precision"].startswith("fp32, bf16") or "fp32" in kinds["train.precision"]
    assert kinds["model.channels"] == "whole number or null" and kinds["model.text"] == "true or false or text"


def test_no_docstring_speaks_of_a_setting_that_is_gone() -> None:
    for kind in (TrialConfig, *(type(part) for part in vars(TrialConfig()).values() if not isinstance(part, int))):
        assert set(meanings_of(kind)) <= set(vars(kind())), kind


def test_meaning_is_one_line_in_the_words_of_yaml() -> None:
    class Kind:
        """Something.

        Attributes:
            first: two lines, where None
                and False are written: so.
            second: one.

        More.
        """

    assert meanings_of(Kind) == {"first": "two lines, where null and false are written: so.", "second": "one."}


@pytest.mark.parametrize("width", [80, 160])
def test_list_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = lines_of(capsys)
    assert max(map(len, lines)) <= min(width, listing.WIDEST) and not any("\x1b" in line for line in lines)
    starts = [line.split(" = ")[0] for line in lines if line and not line.startswith(" ")]
    assert starts == [one.name for one in EVERY]


def test_head_chooses_a_section_or_less(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "train.batch_size")
    assert lines[0] == f"train.batch_size = {TrainConfig().batch_size}  (whole number)"
    assert lines[1].startswith("    number of expressions per optimiser step")
    found = [line.split(".")[0] for line in lines_of(capsys, "loss") if line and line[0] != " "]
    assert set(found) == {"loss"}


def test_unknown_head_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "modl"]) == 2
    line = capsys.readouterr().err.strip()
    assert line == "refavs-sweep settings: no setting and no head begins with 'modl'; did you mean 'model'?"


def test_long_choices_go_to_a_line_of_their_own() -> None:
    (trained,) = (one for one in EVERY if one.name == "model.trained")
    assert described([trained], 80).splitlines()[1].startswith("    (fusion, fusion+transformer_decoder")


def test_packing_is_recommended_where_workers_are_described() -> None:
    (workers,) = (one for one in EVERY if one.name == "resources.workers")
    assert "--gpus-per-trial auto" in workers.meaning and "--fuse auto" in workers.meaning


def test_settings_of_a_head_are_listed_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = {line.split(" =")[0] for line in lines_of(capsys, "released", "model") if line and line[0] != " "}
    assert names == {"model.head", "model.visual", "model.audio", "model.text", "model.channels", "model.num_queries",
                     "model.decoder_layers", "model.decoder_feedforward_channels"}  # fmt: skip
    assert f"model.head = eemc ({', '.join(registry.names())})" in " ".join(" ".join(lines_of(capsys)).split())
    assert main(["settings", "released", "eemc"]) == 2
    assert "released and eemc are two heads; name one" in capsys.readouterr().err

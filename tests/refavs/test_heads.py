"""Heads by name: their contract, the registry, and checkpoints that name their head."""

import json
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from refavs import plugins
from refavs.errors import ConfigError, StoreError, WeightsError
from refavs.model.checkpoint import load_model, load_weights, save_model
from refavs.model.feature_sizes import FeatureSizes, Needs
from refavs.model.heads import registry
from refavs.model.heads.contract import check_head, made_up_sizes
from refavs.model.heads.options import EEMCOptions, ReleasedOptions
from refavs.model.heads.protocol import Head
from refavs.model.options import HeadOptions
from refavs.store.format.schema import ArraySpec, StreamSpec

SMALL = {"num_layers": 1, "num_queries": 3, "num_heads": 2, "feedforward_channels": 8, "visual_downsample": 4,
         "decoder_layers": 1, "decoder_feedforward_channels": 8}  # fmt: skip
RELEASED = ReleasedOptions(channels=32, num_queries=3, decoder_layers=2, decoder_feedforward_channels=8)


@dataclass(frozen=True, kw_only=True)
class Mine(HeadOptions):
    """Attributes:
        width: channels inside the head.
    """

    head: str = "mine"
    width: int = 8
    implementation: ClassVar[str] = f"{__name__}:MyHead"

    def needs(self) -> Needs:
        return Needs(maps=(("mask_features",), ("res2",)), text=False)


class MyHead(Head):
    """That of the protocol's example."""

    def __init__(self, options: Mine, sizes: FeatureSizes) -> None:
        super().__init__(options, sizes)
        assert sizes.audio is not None
        self.read = nn.Linear(sizes.maps[0].channels, options.width)
        self.listen = nn.Linear(sizes.audio.channels, options.width)

    def forward(self, batch: Any, steps: Any = None, once: Any = None) -> Any:
        index = slice(None) if steps is None else steps.index
        pixels = batch.visual[self.sizes.maps[0].name][batch.clip][:, index].float()
        sound = self.listen(batch.audio[batch.clip][:, index].float())
        return torch.einsum("btchw,dc,btd->bthw", pixels, self.read.weight, sound) + (self.read.bias * sound).sum(
            -1)[..., None, None]  # fmt: skip

    def loss(self, output: Any, target: Any, weights: Any) -> Any:
        masks = nn.functional.adaptive_avg_pool2d(target.masks.float(), output.shape[-2:])
        of_frame = nn.functional.binary_cross_entropy_with_logits(output, masks, reduction="none").mean((2, 3))
        if target.labelled is not None:
            of_frame = of_frame * target.labelled
        return {"total": of_frame.sum() / max(1, target.whole.shown + target.whole.null)}

    def probs(self, output: Any, size: Any = None) -> Any:
        return nn.functional.interpolate(output.float().sigmoid(), size=size, mode="bilinear")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs packages that have entry points of the group: name, value and package."""
    def installed(*entries: tuple[str, str, str]) -> None:
        class Package:
            def __init__(self, name: str) -> None:
                self.name = name

        points = []
        for name, value, package in entries:
            point = metadata.EntryPoint(name, value, registry.GROUP)
            vars(point).update(dist=Package(package))
            points.append(point)
        monkeypatch.setattr(plugins, "entry_points", lambda group: points)
        registry.options_class.cache_clear()

    yield installed
    registry.options_class.cache_clear()


MINE = ("mine", f"{__name__}:Mine", "my-package")


@pytest.mark.long
@pytest.mark.parametrize("options", [
    EEMCOptions(**SMALL), EEMCOptions(**SMALL, audio=False, memory=False), EEMCOptions(**SMALL, text=False),
    EEMCOptions(**{**SMALL, "decoder_layers": 4}, trained="fusion+transformer_decoder+pixel_decoder", channels=32),
    RELEASED,
])  # fmt: skip
def test_built_in_head_keeps_the_contract(options: HeadOptions) -> None:
    check_head(options)


def test_head_of_a_package_keeps_the_contract(install: Any) -> None:
    install(MINE)
    assert registry.names()[0] == "eemc" and registry.names()[-1] == "mine"
    assert registry.default_options("mine") == Mine()
    check_head(Mine())


@pytest.mark.parametrize(("method", "broken", "told"), [
    ("probs", lambda self, output, size=None: output, "probs of size"),
    ("loss", lambda self, output, target, weights: {"total": output.mean(), "more": output.mean()}, "`losses` lists"),
    ("loss", lambda self, output, target, weights: {"total": output.mean() + target.masks.float().mean()},
     "a step without a label contributes"),
    ("loss", lambda self, output, target, weights: {"total": output.square().mean()}, "do not add up"),
    ("trained_parameters", lambda self: [], "no trained parameter"),
    ("steps_read", lambda self, steps: {"mask_features": steps}, "`steps_read` lacks steps"),
])  # fmt: skip
def test_contract_names_what_a_head_breaks(
    install: Any, monkeypatch: pytest.MonkeyPatch, method: str, broken: Any, told: str
) -> None:
    install(MINE)
    monkeypatch.setattr(MyHead, method, broken)
    with pytest.raises(AssertionError, match=told):
        check_head(Mine())


def test_unknown_head_is_refused_with_the_nearest(install: Any) -> None:
    install(MINE)
    with pytest.raises(ConfigError, match=r"model.head is 'mein'; did you mean 'mine'"):
        registry.default_options("mein")


def test_two_packages_with_one_head_are_named(install: Any) -> None:
    install(MINE, ("mine", "other:Options", "other-package"))
    with pytest.raises(ConfigError, match=r"my-package .* and other-package"):
        registry.default_options("mine")


def test_package_that_fails_on_import_is_named_and_the_rest_works(install: Any) -> None:
    install(("bad", "no_such_module:Options", "bad-package"), MINE, ("odd", f"{__name__}:MyHead", "odd-package"))
    with pytest.raises(ConfigError, match=r"'bad' .*ModuleNotFoundError: .*bad-package"):
        registry.default_options("bad")
    with pytest.raises(ConfigError, match=r"the head 'odd' cannot be used: .* is not a subclass of .*HeadOptions"):
        registry.default_options("odd")
    assert registry.default_options("mine") == Mine()


def test_checkpoint_of_a_package_that_is_gone_is_refused(install: Any, tmp_path: Path) -> None:
    install(MINE)
    save_model(tmp_path, MyHead(Mine(), made_up_sizes(Mine())))
    install()
    with pytest.raises(WeightsError, match=r"does not describe a head .*model.head is 'mine'; known: .*eemc"):
        load_model(tmp_path)


def test_checkpoint_of_another_head_is_refused(tmp_path: Path) -> None:
    options = EEMCOptions(**SMALL)
    save_model(tmp_path, registry.implementation_of(options)(options, made_up_sizes(options)))
    other = registry.implementation_of(RELEASED)(RELEASED, made_up_sizes(RELEASED))
    with pytest.raises(WeightsError, match=r"holds a head 'eemc', .* 'released'; take --set model.head=eemc"):
        load_weights(tmp_path, other)


@pytest.mark.parametrize("options", [EEMCOptions(**SMALL, audio=False, beta=0.5), RELEASED])
def test_checkpoint_from_before_heads_had_names_is_read(tmp_path: Path, options: HeadOptions) -> None:
    head = registry.implementation_of(options)(options, made_up_sizes(options))
    save_model(tmp_path, head)
    described = json.loads((tmp_path / "config.json").read_text())
    facts = described["model"]
    name = facts.pop("head")
    facts |= {"variant": "released" if name == "released" else "paper"}
    facts |= {} if name == "eemc" else {"beta": 1.0, "num_heads": 8, "trained": "fusion+transformer_decoder"}
    facts["sizes"]["audio"] = {"path": "clips/audio/vggish", "channels": 5}
    (tmp_path / "config.json").write_text(json.dumps(described))
    described["model"] = facts
    from refavs.model import checkpoint

    found, sizes = checkpoint._described(facts)
    assert found == options and (sizes.audio is None) == (head.sizes.audio is None)


def test_missing_maps_are_reported_with_all_choices() -> None:
    class Lacking:
        location, specs = "STORE", {}

        def visual_paths(self) -> dict[str, str]:
            return {"s8": "clips/visual/pixel_decoder/s8"}

    with pytest.raises(StoreError, match=r"STORE has no maps mask_features; mine reads mask_features or res2; run"):
        FeatureSizes.from_store(Lacking(), Mine().needs(), "mine")  # type: ignore[arg-type]


def test_maps_that_the_picture_fills_in_part_are_refused_by_heads_that_expect_all_of_it() -> None:
    fit = {"fit": "pad"}
    arrays = (
        ArraySpec(name="res2", shape=(2, 4, 8, 8), dtype="float16", axes=("t", "c", "h", "w"), table="visual/sam"),
        ArraySpec(name="extent", shape=(2, 2), dtype="float32", axes=("t", "yx"), table="visual/sam"),
    )

    class Padded:
        location, specs = "STORE", {spec.path: spec for spec in arrays}
        schema = SimpleNamespace(streams={"visual/sam": StreamSpec(fingerprint=fit, arrays=arrays, rows_per_shard=1)})

        def visual_paths(self) -> dict[str, str]:
            return {name: f"clips/visual/sam/{name}" for name in ("res2", "extent")}

    needs = Needs(maps=(("res2",),), audio=False, text=False)
    with pytest.raises(StoreError, match=r"visual/sam of store STORE has maps of frames fitted by 'pad'; mine reads"):
        FeatureSizes.from_store(Padded(), needs, "mine")  # type: ignore[arg-type]
    reads_extent = replace(needs, maps=(("res2", "extent"),))
    assert FeatureSizes.from_store(Padded(), reads_extent, "mine").maps[0].height == 8  # type: ignore[arg-type]
    fit["fit"] = "squash"
    assert FeatureSizes.from_store(Padded(), needs, "mine").maps[0].height == 8  # type: ignore[arg-type]

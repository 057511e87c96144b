"""A step hardly ever waits for the device: counted on a fake accelerator, in a process of its own that has one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
REPOSITORY = Path(__file__).resolve().parents[2]
COUNTER = REPOSITORY / "tests" / "benchmarks" / "sync_counter.py"


@pytest.fixture(scope="module")
def counts() -> dict[str, dict]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(COUNTER), "--json", "--few"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", ["training step", "chosen steps", "accumulated parts", "scaled losses"])
def test_training_step_waits_for_the_device_once(counts: dict[str, dict], what: str) -> None:
    """To look whether loss and gradient are finite. Everything else that it must know, the host knows."""
    (place,) = counts[what]["syncs"]
    assert place.startswith("experiments/training/learner.py:") and counts[what]["syncs"][place] == 1
    assert "DtoH" not in counts[what]["copies"], "nothing is fetched back"
    assert counts[what]["kernels"] > 1000, "the step was counted, not left out"


def test_evaluation_waits_for_no_batch(counts: dict[str, dict]) -> None:
    """Only at its end: for the copies that were under way, and to look whether all probabilities are finite."""
    syncs = dict(counts["three batches of evaluation"]["syncs"])
    looks = [syncs.pop(place) for place in list(syncs) if place.startswith("refavs/finite.py:")]
    assert looks == [1]
    assert sum(syncs.values()) <= 3 and all(place.startswith("refavs/data/prefetch.py:") for place in syncs), syncs


def test_counter_detects_waits() -> None:
    program = (
        "import torch; from sync_counter import FakeAccelerator, count\n"
        "device = FakeAccelerator.start(); one = torch.ones(4, 4, device=device)\n"
        "def found(call): counts = count(call, device); print(counts.kernels, counts.syncs.total(), *counts.copies)\n"
        "found(lambda: one + one)\n"
        "found(lambda: float(one.sum()))\n"
        "found(lambda: one[one > 0])\n"
        "found(lambda: one[torch.tensor([0, 1])])\n"
        "found(lambda: one.cpu())\n"
        "found(lambda: torch.ones(3).to(device))\n"
        "found(lambda: torch.ones(3).to(device, non_blocking=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=COUNTER.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "1 0", "1 1", "2 1", "1 1", "0 1 DtoH", "0 1 HtoD", "0 0 HtoD",
    ]  # fmt: skip


@pytest.mark.slow
def test_forward_is_one_graph_to_compile(tmp_path: Path) -> None:
    """Nothing in it asks a tensor for a number, whether all steps are decoded or some, or only some were read."""
    program = (
        "import sys; from pathlib import Path; import torch._dynamo\n"
        "from experiments.grid.config import TrialConfig; from experiments.training.sampler import Sampler\n"
        "from experiments.training.loop import build_model; from refavs.config import replace\n"
        "from refavs.model.heads.eemc import ChosenSteps; from tests.experiments.small_store import make_store\n"
        "store = make_store(Path(sys.argv[1]))\n"
        "sizes = {'model.visual_downsample': 2, 'model.num_layers': 1, 'model.decoder_layers': 1}\n"
        "config = replace(TrialConfig(), sizes); model = build_model(config, store).train()\n"
        "batch = next(Sampler(config, store).batches(0))[0][1]\n"
        "sampler = Sampler(replace(config, {'train.frames': 1}), store)\n"
        "step, read = next((step, parts) for step, parts in enumerate(sampler.batches(0, heads=[model]))\n"
        "                  if sampler.chosen_steps(step) == [2])\n"
        "assert read[0][1].visual.places\n"
        "for one, *more in ((batch,), (batch, ChosenSteps.of([0, 1])), (read[0][1], ChosenSteps.of([2]))):\n"
        "    torch._dynamo.reset(); found = torch._dynamo.explain(model)(one, *more)\n"
        "    print(found.graph_count, found.graph_break_count)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 0"] * 3

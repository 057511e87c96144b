"""The models and machines of a step, from its command line."""

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refavs.choices import DEVICES
from refavs.plugins import entry_named
from refavs.terminal.command import CommandParser
from refavs.terminal.printing import warn

if TYPE_CHECKING:
    from extract.annotate.models import Detector, Tracker
    from extract.encoders.protocol import EncoderSetup
    from extract.pipeline.ray_pool import PoolResources

# Packages add models of their own as entry points in the groups `refavs.detectors` and `refavs.trackers`.
DETECTORS = {
    "grounding-dino-tiny": "extract.annotate.grounding_dino:tiny",
    "grounding-dino-base": "extract.annotate.grounding_dino:base",
    "sam3": "extract.annotate.sam3:Sam3",
}
TRACKERS = {
    "sam2.1-hiera-tiny": "extract.annotate.sam2_masks:tiny",
    "sam2.1-hiera-small": "extract.annotate.sam2_masks:small",
    "sam2.1-hiera-base-plus": "extract.annotate.sam2_masks:base_plus",
    "sam2.1-hiera-large": "extract.annotate.sam2_masks:large",
}
DETECTOR, TRACKER = "grounding-dino-tiny", "sam2.1-hiera-large"
# Stand-ins that know the truth of a synthetic benchmark, `synthetic:BENCH`.
STAND_IN, STAND_INS = "synthetic:", "extract.annotate.synthetic_models"
STAND_IN_HELP = f"or {STAND_IN}BENCH, a stand-in that knows a synthetic benchmark, for trying the chain without weights"


def add_machine_arguments(parser: CommandParser) -> None:
    """The options about weights and machines, which propose and track share."""
    add = parser.add_argument
    add("--weights-dir", type=Path, metavar="DIR", help="pretrained weights: the files of each repository in a folder "
        "named by the last part of its id, as for refavs-extract; default: the hub's cache or a download")  # fmt: skip
    add("--device", choices=DEVICES, default="auto", help="where the models run; auto takes a GPU if there is one")
    add("--workers", type=int, metavar="N", help="worker processes on Ray; default: none, all clips in this process")
    add("--gpus-per-worker", type=float, metavar="G", help="share of a GPU for each worker; default: 1 on a GPU")
    add("--address", metavar="ADDRESS", help="a running Ray cluster")
    add("--dry-run", action="store_true", help="only print what would be done: clips, objects, weights and hours")


def chosen_resources(args: Namespace, name: str) -> "PoolResources":
    """Where a step runs.

    Raises:
        ConfigError: contradicting options, or no such GPU.
    """
    from extract.pipeline.local_ray import chosen_gpus
    from extract.pipeline.ray_pool import PoolResources

    gpus = chosen_gpus(args.device, args.gpus_per_worker, args.address, "--gpus-per-worker",
                       lambda line: warn(f"{name}: {line}"))  # fmt: skip
    return PoolResources(address=args.address, num_workers=args.workers, gpus_per_worker=gpus)


def chosen_setup(args: Namespace, resources: "PoolResources") -> "EncoderSetup":
    """Weights and device of the models."""
    from extract.encoders.protocol import EncoderSetup
    from extract.encoders.weights import WeightSource

    return EncoderSetup(weights=WeightSource(folder=args.weights_dir, fetch=not args.dry_run), device=resources.device)


def detector_named(name: str, setup: "EncoderSetup", threshold: float, text_threshold: float) -> "Detector":
    """A detector.

    Raises:
        ConfigError: there is none of this name.
    """
    if name.startswith(STAND_IN):
        return _stand_in("SyntheticDetector", name)
    return entry_named(name, "refavs.detectors", DETECTORS)(setup, threshold, text_threshold)


def tracker_named(name: str, setup: "EncoderSetup") -> "Tracker":
    """A tracker, which also makes the candidates.

    Raises:
        ConfigError: there is none of this name.
    """
    if name.startswith(STAND_IN):
        return _stand_in("SyntheticTracker", name)
    return entry_named(name, "refavs.trackers", TRACKERS)(setup)


def _stand_in(kind: str, name: str) -> Any:
    make: Callable[[Path], Any] = getattr(import_module(STAND_INS), kind)
    return make(Path(name.removeprefix(STAND_IN)))

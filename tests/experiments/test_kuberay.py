"""The KubeRay manifest: only fields that KubeRay and Kubernetes define, each of the right type, and none missing."""

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import ray
import yaml
from lightkube.models.core_v1 import PodTemplateSpec, Service
from lightkube.models.meta_v1 import ObjectMeta

from experiments.cli import build_parser
from experiments.grid.expand import read_grid
from extract.cli import build_parser as build_extract_parser

MANIFEST = Path(__file__).resolve().parents[2] / "infra" / "kuberay.yaml"
PARSED = yaml.safe_load(MANIFEST.read_text("utf-8"))
Place = tuple[str | int, ...]

FLAG, TEXT, NUMBER = {"type": "boolean"}, {"type": "string"}, {"type": "number"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
QUANTITIES = {
    "type": "object",
    "propertyNames": {"pattern": r"^(cpu|memory|ephemeral-storage|hugepages-.+|(nvidia|amd)\.com/gpu)$"},
    "additionalProperties": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?$"},
}  # fmt: skip


def kubernetes(*models: type) -> dict[str, Any]:
    """The schemas of Kubernetes' types by name, with all the types inside them."""
    _, found = msgspec.json.schema_components(models, ref_template="#/$defs/{name}")
    found["ResourceRequirements"]["properties"] |= {"limits": QUANTITIES, "requests": QUANTITIES}
    return strict(found)


def strict(schema: Any) -> Any:
    """The same schema without unknown fields, as for `kubectl apply`, and without null; what has no type is a text."""
    if isinstance(schema, list):
        return [strict(each) for each in schema if each != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    if schema == {"type": "object"}:
        return TEXTS
    found = {name: strict(each) for name, each in schema.items()}
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def fields(required: str, optional: str = "", **types: Any) -> dict[str, Any]:
    """The schema of an object with these fields and no others; those without a type are texts."""
    names = [*required.split(), *optional.split()]
    assert types.keys() <= set(names), types.keys() - set(names)
    return {"type": "object", "required": required.split(), "additionalProperties": False,
            "properties": {name: types.get(name, TEXT) for name in names}}  # fmt: skip


# Of KubeRay's own types (API ray.io/v1 of operator 1.5) all fields that hold no further type of KubeRay, and those that
# the manifest uses. Required is also what KubeRay would fill with a default that is wrong here.
POD = {"rayStartParams": TEXTS, "resources": TEXTS, "labels": TEXTS,
       "template": {"allOf": [{"$ref": "#/$defs/PodTemplateSpec"}, {"required": ["spec"]}]}}  # fmt: skip
HEAD = fields(
    "template rayStartParams", "headService enableIngress resources labels serviceType", **POD,
    headService={"$ref": "#/$defs/Service"}, enableIngress=FLAG,
)  # fmt: skip
WORKERS = fields(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    "suspend idleTimeoutSeconds resources labels numOfHosts", **POD, suspend=FLAG,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "numOfHosts"), COUNT),
)  # fmt: skip
CLUSTER = fields(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    "suspend managedBy headServiceAnnotations enableInTreeAutoscaling", suspend=FLAG, headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG, authOptions=fields("mode", mode={"enum": ["disabled", "token"]}), headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS, "minItems": 1},
)  # fmt: skip
JOB = fields(
    "entrypoint shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit rayClusterSpec",
    "activeDeadlineSeconds submitterPodTemplate metadata clusterSelector submitterConfig managedBy runtimeEnvYAML "
    "jobId submissionMode entrypointResources entrypointNumCpus entrypointNumGpus suspend",
    shutdownAfterJobFinishes=FLAG, suspend=FLAG, metadata=TEXTS, clusterSelector=TEXTS, rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD["template"], submitterConfig=fields("", "backoffLimit", backoffLimit=COUNT),
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    **dict.fromkeys(("ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds"), COUNT),
    **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus"), NUMBER),
)  # fmt: skip
METADATA = {"allOf": [{"$ref": "#/$defs/ObjectMeta"}, {"required": ["name"], "properties": {"name": NAME}}]}
RAY_JOB = fields(
    "apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=METADATA,
    spec=JOB,
) | {"$defs": kubernetes(PodTemplateSpec, Service, ObjectMeta)}  # fmt: skip
CHECK = jsonschema.Draft202012Validator(RAY_JOB)
OPTIONAL = {"env", "image", "resources", "requests", "limits", "volumeMounts", "volumes", "value",
            "persistentVolumeClaim", "cpu", "memory", "nvidia.com/gpu", "num-cpus"}  # fmt: skip


def manifest() -> dict[str, Any]:
    return copy.deepcopy(PARSED)


def places(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value in the manifest with its place, but of the environment only the first variable."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in below:
        if place[-1:] == ("env",) and key:
            return
        yield (*place, key), value
        yield from places(value, (*place, key))


def changed(place: Place, value: Any = None, key: str | None = None) -> dict[str, Any]:
    """The manifest with another value at a place, or with its value under another key; without both it is removed."""
    found = manifest()
    parent: Any = found
    for part in place[:-1]:
        parent = parent[part]
    old = parent.pop(place[-1])
    if isinstance(parent, list):
        parent.insert(place[-1], value)
    elif key is not None or value is not None:
        parent[key or place[-1]] = copy.deepcopy(old) if key else value
    return found


def of_other_types(value: Any) -> list[Any]:
    """Values of other types, which the manifest's check must refuse."""
    texts = [] if isinstance(value, str) else ["text"]
    numbers = [] if isinstance(value, int) and not isinstance(value, bool) else [7]
    flags = [] if isinstance(value, bool) else [True]
    objects = [] if isinstance(value, dict) else [{"a": "b"}]
    return [*texts, *numbers, *flags, *objects, *([] if isinstance(value, list) else [["a"]])]


def test_kuberay_manifest_has_the_fields_of_a_ray_job() -> None:
    CHECK.validate(manifest())
    with pytest.raises(jsonschema.ValidationError, match="0 is not of type 'string'"):
        CHECK.validate(changed(("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0))


def test_each_error_in_the_kuberay_manifest_is_found() -> None:
    missed, count = [], 0
    for place, value in places(manifest()):
        quantity = len(place) > 1 and place[-2] in ("requests", "limits")
        others = [other for other in of_other_types(value) if not (quantity and other == 7)]
        wrong = [changed(place, other) for other in others]
        if isinstance(place[-1], str):
            wrong += [] if place[-1] in OPTIONAL else [changed(place)]
            wrong += [] if place[-2:-1] == ("rayStartParams",) else [changed(place, key=f"{place[-1]}s")]
        count += len(wrong)
        missed += [(place, each) for each in wrong if CHECK.is_valid(each)]
    assert not missed and count > 350, (count, missed)


def test_kuberay_manifest_fits_the_definition_of_an_operator() -> None:
    """With REFAVS_KUBERAY_CRD: `kubectl get crd rayjobs.ray.io -o yaml`, or `ray.io_rayjobs.yaml` of a release."""
    if "REFAVS_KUBERAY_CRD" not in os.environ:
        pytest.skip("REFAVS_KUBERAY_CRD names no file with KubeRay's definition of a RayJob")
    definition = yaml.safe_load(Path(os.environ["REFAVS_KUBERAY_CRD"]).read_text("utf-8"))
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes checks it itself
    jsonschema.validate(manifest(), schema)


def test_kuberay_manifest_runs_a_command_that_is_one() -> None:
    spec = manifest()["spec"]
    command, *arguments = spec["entrypoint"].split()
    args = build_parser().parse_args(arguments)
    assert command == "refavs-sweep" and args.address == "auto"
    (other,) = re.findall(r"#   refavs-extract (.+)", MANIFEST.read_text("utf-8"))
    extract = build_extract_parser().parse_args(other.split())
    assert extract.address == "auto" and extract.weights_dir.is_relative_to("/data")
    read_grid(args.grid)
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == pod["volumes"][0]["name"] and args.out.is_relative_to(mount["mountPath"])


@pytest.mark.long
def test_kuberay_manifest_gives_options_that_ray_start_has() -> None:
    from ray.scripts.scripts import start

    cluster = manifest()["spec"]["rayClusterSpec"]
    given = [group["rayStartParams"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert {f"--{name}" for each in given for name in each} <= {option for each in start.params for option in each.opts}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

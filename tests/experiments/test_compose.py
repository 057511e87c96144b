"""infra/compose.yaml says what it needs to, and its services, started from packages, serve a sweep."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiments import test_tracking_servers
from tests.faults.sweeps import Server, Sweep, assert_whole_in_mlflow
from tests.refavs import servers

FOLDER = Path(__file__).parents[2] / "infra"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
VARIABLE = re.compile(r"\$\{(\w+)(:[-?][^}]*)?\}")
endpoint, postgres = servers.endpoint, test_tracking_servers.postgres
GRID = "\n  train: {epochs: 1, steps_per_epoch: 4}\ncases: {full: {}}\n"


def texts(value: Any) -> list[str]:
    """Every text in a value."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in texts(each)]
    return [text for each in value for text in texts(each)] if isinstance(value, list) else [str(value)]


def test_services_refer_to_what_there_is() -> None:
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-full)?$", service["image"]), f"{name}: an image of any version"
        for other, state in service.get("depends_on", {}).items():
            wanted = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}[state["condition"]]
            assert wanted in SERVICES[other]
        assert service["restart"] == ("no" if name == "buckets" else "unless-stopped")
        assert ("healthcheck" in service) == (name != "buckets")
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
    for text in texts(SERVICES):  # by its name each finds the others
        assert {host for host in re.findall(r"(?:http://|@)(\w+):\d+", text)} <= {*SERVICES, "127"}
    pins = (FOLDER.parent / "constraints.txt").read_text("utf-8")
    assert f"mlflow=={SERVICES['mlflow']['image'].partition(':v')[2].removesuffix('-full')}\n" in pins


def test_services_listen_here_alone_and_the_file_has_no_password() -> None:
    assert "ports" not in SERVICES["postgres"]
    for name in ("s3", "mlflow"):
        (port,) = SERVICES[name]["ports"]
        assert port.startswith("${REFAVS_LISTEN:-127.0.0.1}:")
    secret = re.compile("PASSWORD|SECRET|ACCESS_KEY")
    found = [(name, value) for service in SERVICES.values() for name, value in service.get("environment", {}).items()]
    assert all(VARIABLE.fullmatch(value) and ":?" in value for name, value in found if secret.search(name))
    example = (FOLDER / "compose.env.example").read_text("utf-8")
    variables = {variable for text in texts(SERVICES) for variable, _ in VARIABLE.findall(text)}
    assert variables == set(re.findall(r"^(?:# )?(\w+)=", example, re.MULTILINE))
    assert not re.search(r"^\w+=.", example, re.MULTILINE)
    ignored = subprocess.run(["git", "check-ignore", "-q", str(FOLDER / "compose.env")], cwd=FOLDER)
    assert ignored.returncode == 0


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_sweep_on_these_services_started_from_packages(
    endpoint: str, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL and MLflow are the real ones; moto stands for the S3 server."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for _ in range(2):  # the second time they are there
        subprocess.run([sys.executable, *SERVICES["buckets"]["command"][1:]], check=True)
    command = SERVICES["mlflow"]["command"]
    artifacts = command[command.index("--artifacts-destination") + 1]
    with Server(tmp_path / "server", postgres, artifacts) as server:
        sweep = Sweep(tmp_path, GRID, "--tracking-uri", server.uri)
        servers.write_small("s3://features/small")
        status, out, err = sweep.run()
        assert status == 0 and "1 of 1 in all" in out, out + err
        assert_whole_in_mlflow(server.uri, sweep)
        listed = subprocess.run([sys.executable, "-c", LIST], check=True, capture_output=True, text=True)
    assert "artifacts/" in listed.stdout and "config.json" in listed.stdout and "small/zarr.json" in listed.stdout


LIST = """
import boto3
s3 = boto3.client("s3")
for bucket in ("mlflow", "features"):
    print(*(found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]), sep="\\n")
"""

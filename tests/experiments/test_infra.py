"""The scripts that open the MLflow UI and submit a sweep to a cluster as a job."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from extract.pipeline.local_ray import LOCAL_ENVIRONMENT, PATIENCE, WORKER_ENVIRONMENT

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "mlflow-ui.sh"
JOB = SCRIPT.with_name("ray-job.sh")


@pytest.mark.process
def test_script_without_a_database_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPT), str(tmp_path / "runs" / "smoke")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"mlflow-ui: no database {tmp_path}/runs/mlflow.db; run refavs-sweep first, or name its folder or its "
        "mlflow.db\n"
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("folder", "place", "port"),
    [("a root", "runs/smoke", "5000"), ("a root", "runs/smoke/", "5000"), ("a root", "runs/mlflow.db", "5001"),
     ("50%20off?", "runs/smoke", "5000")],
)  # fmt: skip
def test_script_opens_the_database_beside_the_sweep(tmp_path: Path, folder: str, place: str, port: str) -> None:
    root = tmp_path / folder
    for name in ("infra", "bin", "runs/smoke"):
        (root / name).mkdir(parents=True)
    (root / "runs" / "mlflow.db").touch()
    script = shutil.copy(SCRIPT, root / "infra")
    (root / "bin" / "mlflow").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (root / "bin" / "mlflow").chmod(0o755)
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    arguments = [place] if port == "5000" else [place, port]
    done = subprocess.run(
        [script, *arguments], cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    first, *given = done.stdout.splitlines()
    assert first.startswith(f"http://127.0.0.1:{port} ")
    address = "sqlite:///mlflow.db" if "%" in folder else f"sqlite:///{root}/runs/mlflow.db"  # beside it
    assert given == [
        "ui", "--backend-store-uri", address, "--host", "127.0.0.1", "--port", port,
        "--workers", "1",
    ]  # fmt: skip


@pytest.mark.process
def test_job_carries_the_code_and_joins_the_cluster(tmp_path: Path) -> None:
    root = tmp_path / "a root"
    for name in ("infra", ".venv/bin"):
        (root / name).mkdir(parents=True)
    script = shutil.copy(JOB, root / "infra")
    python = root / ".venv" / "bin" / "python"
    # Stands for a Python with ray[default]; what is no call of Ray is a real one's affair.
    python.write_text(f'''#!/bin/sh
case "$*" in
    *ray.scripts*) printf "%s\\n" "$@" ;;
    *aiohttp_cors*) exit "${{MISSING:-0}}" ;;
    *) exec {sys.executable} "$@" ;;
esac
''')
    python.chmod(0o755)
    (tmp_path / "few.txt").write_text("# pins\nray==2.60.0\ntorch==2.13.0\n")
    arguments = [str(script), "http://head:8265", "refavs-sweep", "beta", "--store", "/a b/store", "--out", "/runs/b"]
    settings = {**os.environ, "REFAVS_PIP": str(tmp_path / "few.txt"), "PYTHON": str(python)}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=settings)
    given = done.stdout.splitlines()
    assert given[:6] == ["-m", "ray.scripts.scripts", "job", "submit", "--address", "http://head:8265"]
    environment = json.loads(given[given.index("--runtime-env-json") + 1])
    assert environment["working_dir"] == str(root) and environment["pip"] == ["torch==2.13.0"]
    assert environment["env_vars"].items() >= WORKER_ENVIRONMENT.items()
    code = given[given.index("--") + 1 :][2]
    assert code == "import sys; from experiments.cli import main; sys.exit(main(sys.argv[1:]))"
    assert given[given.index("--") + 1 :][-7:] == ["beta", "--store", "/a b/store", "--out", "/runs/b", "--address",
                                                   "auto"]  # fmt: skip
    for out, found in ((["--out", "runs/beta"], "runs/beta"), (["--out=runs/beta"], "runs/beta"), ([], "missing")):
        lost = subprocess.run([*arguments[:6], *out], capture_output=True, text=True, env=settings)
        assert lost.returncode == 2 and f"--out is {found}; accepted: an absolute path" in lost.stderr
    refused = subprocess.run(arguments, capture_output=True, text=True, env={**settings, "MISSING": "1"})
    assert refused.returncode == 2 and "pip install 'ray[default]'" in refused.stderr and not refused.stdout
    usage = subprocess.run([str(script)], capture_output=True, text=True, env=settings)
    assert usage.returncode == 2 and "infra/ray-job.sh http://HEAD:8265 refavs-sweep GRID --store STORE" in usage.stderr
    extract = [*arguments[:2], "refavs-extract", "/data/bench", "s3://bucket/store", "--weights-dir", "/data/weights"]
    done = subprocess.run(extract, capture_output=True, text=True, check=True, env=settings)
    given = done.stdout.splitlines()
    assert given[-6:] == [*extract[3:], "--address", "auto"] and "from extract.cli import main" in given[-7]
    for place, told in ((3, "SOURCE is bench"), (4, "STORE is bench")):
        wrong = [*extract[:place], "bench", *extract[place + 1 :]]
        lost = subprocess.run(wrong, capture_output=True, text=True, env=settings)
        assert lost.returncode == 2 and f"{told}; accepted: an absolute path" in lost.stderr
    other = subprocess.run([*arguments[:2], *arguments[3:]], capture_output=True, text=True, env=settings)
    assert other.returncode == 2 and "the command is 'beta'; accepted: refavs-sweep or refavs-extract" in other.stderr


@pytest.mark.process
def test_slurm_script_outside_a_job_says_how_it_is_used() -> None:
    script = SCRIPT.with_name("slurm.sh")
    done = subprocess.run([str(script)], capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Runs refavs-sweep or refavs-extract on the nodes of a Slurm job")


def test_cluster_workers_get_the_same_environment_as_local_ones() -> None:
    """With the job script's, which `test_job_carries_the_code_and_joins_the_cluster` sees as it is sent."""
    wanted = {name: value for name, value in LOCAL_ENVIRONMENT.items() if name not in PATIENCE}
    script = SCRIPT.with_name("slurm.sh").read_text("utf-8").replace("\\\n", "")
    exports = " ".join(re.findall(r"^export (.+)$", script, re.MULTILINE))
    found = [dict(pair.split("=", 1) for pair in exports.split() if "=" in pair)]
    manifest = yaml.safe_load(SCRIPT.with_name("kuberay.yaml").read_text("utf-8"))
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        found.append({variable["name"]: variable["value"] for variable in container["env"]})
    assert len(found) == 3 and all(one.items() >= {**wanted, "OMP_NUM_THREADS": "1"}.items() for one in found), found


@pytest.mark.process
@pytest.mark.parametrize("command", ["refavs-sweep", "refavs-extract"])
def test_slurm_script_gives_each_step_the_processors_of_its_task(command: str, tmp_path: Path) -> None:
    """With commands that stand for Slurm's and Ray's; `tests/faults/test_slurm.py` has the real ones."""
    stand_ins = {
        "scontrol": 'case $2 in hostnames) printf "n1\\nn2\\n" ;; *) echo NodeAddr=127.0.0.1 ;; esac',
        "srun": f'echo "$@" >>{tmp_path}/steps; case "$*" in *--head*) exec sleep 60 ;; esac',
        "ray": "exit 0", "python": "exit 0", command: 'printf "%s\\n" "$@"; exit 3',
    }  # fmt: skip
    # Both steps run beside the command, which must not end before they began.
    stand_ins[command] = f"until [ $(wc -l <{tmp_path}/steps) -ge 2 ]; do sleep 0.1; done; {stand_ins[command]}"
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in stand_ins.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "999999999", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    settings = {"PATH": f"{folder}:{os.environ['PATH']}", "REFAVS": str(tmp_path), "SLURM_CPUS_PER_TASK": "16", **job}
    script = [str(SCRIPT.with_name("slurm.sh"))]
    done = subprocess.run(
        [*script, command, "a b", "c"], capture_output=True, text=True, env=settings, cwd=tmp_path
    )
    assert done.returncode == 3 and done.stdout.splitlines()[:3] == ["a b", "c", "--address"], done.stderr
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) == 2 and all("--cpus-per-task=16" in step and "--num-cpus=16" in step for step in steps)
    refused = subprocess.run([*script, "beta", "--out", "c"], capture_output=True, text=True, env=settings)
    assert refused.returncode == 2 and "the first argument is 'beta'; accepted: refavs-sweep or" in refused.stderr


@pytest.mark.process
def test_packages_for_a_gpu_machine_are_pinned() -> None:
    script = SCRIPT.with_name("gpu-carry.sh")
    done = subprocess.run([str(script)], capture_output=True, text=True)
    assert done.returncode == 2 and "infra/gpu-carry.sh FOLDER" in done.stderr
    (names,) = re.findall(r"'\^\((.+)\)=='", script.read_text("utf-8"))
    pins = {line.split("==")[0] for line in (script.parents[1] / "constraints.txt").read_text("utf-8").splitlines()}
    assert {*names.split("|"), "torchvggish"} <= pins

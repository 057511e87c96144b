"""The script that opens the MLflow UI."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "mlflow-ui.sh"


def test_script_without_a_database_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPT), str(tmp_path / "runs" / "smoke")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"mlflow-ui: no database {tmp_path}/runs/mlflow.db; run refavs-sweep first, or name its folder or its "
        "mlflow.db\n"
    )


@pytest.mark.parametrize(
    ("place", "port"), [("runs/smoke", "5000"), ("runs/smoke/", "5000"), ("runs/mlflow.db", "5001")]
)
def test_script_opens_the_database_beside_the_sweep(tmp_path: Path, place: str, port: str) -> None:
    root = tmp_path / "a root"
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
    assert given == [
        "ui", "--backend-store-uri", f"sqlite:///{root}/runs/mlflow.db", "--host", "127.0.0.1", "--port", port,
        "--workers", "1",
    ]  # fmt: skip

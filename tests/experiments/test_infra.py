"""The script that opens the MLflow UI."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "mlflow-ui.sh"


def test_script_without_a_database_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([str(SCRIPT), str(tmp_path / "runs" / "smoke")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        f"mlflow-ui: no database {tmp_path}/runs/mlflow.db; run refavs-sweep first, or name its folder or its "
        "mlflow.db\n"
    )

"""Every command shows its help without the libraries that take seconds to import."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "mlflow", "transformers", "pandas", "timm", "optuna", "matplotlib", "gradio")
COMMANDS = [
    ("refavs.synthetic.cli", "--help"), ("extract.cli", "--help"), ("extract.store_cli", "--help"),
    ("extract.store_cli", "repair", "--help"), ("experiments.cli", "--help"), ("experiments.cli", "status", "--help"),
    ("experiments.cli", "settings", "--help"), ("experiments.cli", "settings"), ("experiments.report.cli", "--help"),
    ("experiments.predict.cli", "--help"), ("experiments.view.cli", "--help"), ("extract.annotate.cli", "--help"),
    ("extract.annotate.cli", "propose", "--help"), ("extract.annotate.cli", "track", "--help"),
    ("extract.annotate.cli", "pack", "--help"),
]  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_needs_no_heavy_library(command: tuple[str, ...]) -> None:
    code = (
        f"import sys\nfrom {command[0]} import main\n"
        f"try:\n    status = main({list(command[1:])})\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('status', int(status or 0), [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "status 0 []", done.stdout.splitlines()[-1]
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.process
def test_state_of_a_sweep_needs_no_torch(tmp_path: Path) -> None:
    code = f"import sys\nfrom experiments.cli import main\nmain(['status', {str(tmp_path)!r}])\n" \
           f"print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


@pytest.mark.process
def test_reader_that_ends_early_gets_no_traceback() -> None:
    code = "import sys; from experiments.cli import main; sys.exit(main(['settings']))"
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    said = running.stderr.read()
    running.stderr.close()
    assert (running.wait(), said) == (141, b"")

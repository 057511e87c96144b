"""A command of refavs in a process of its own."""

import subprocess
import sys

MODULES = {"extract": "extract.cli", "store": "extract.store_cli", "sweep": "experiments.cli",
           "report": "experiments.report.cli", "predict": "experiments.predict.cli"}  # fmt: skip


def run(command: str, *arguments: object) -> str:
    """What a command prints; it must succeed."""
    code = f"import sys; from {MODULES[command]} import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout

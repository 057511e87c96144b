#!/bin/sh
# Runs refavs-sweep or refavs-extract as a job of a running Ray cluster, with this checkout's code; the job outlives this
# shell:
#   infra/ray-job.sh http://HEAD:8265 refavs-sweep GRID --store STORE --out OUT [other options]
#   infra/ray-job.sh http://HEAD:8265 refavs-extract SOURCE STORE --weights-dir WEIGHTS [other options]
# GRID is a shipped grid or a file in this checkout; the others are full paths on every node, or URLs of stores. Without
# --weights-dir each node uses weights from its own cache, and downloads missing ones. The nodes must have the packages of
# constraints.txt, and this machine and the head ray[default]. To let Ray install packages on the nodes instead (takes
# minutes, once per node), name a requirements file: REFAVS_PIP=constraints.txt infra/ray-job.sh ...
# A cluster that requires a token (Ray's default since 2.59) gets that of RAY_AUTH_TOKEN.
set -eu

if [ $# -lt 4 ]; then
    sed -n '2,10s/^# *//p' "$0" >&2
    exit 2
fi
address=$1 command=$2
shift 2
# Relative paths would lie in the job's own copy of the code, which is deleted with the job.
seen_by_all() {
    case $2 in
        /* | *://*) ;;
        *) echo "ray-job: $1 is ${2:-missing}; accepted: an absolute path that every node sees" >&2; exit 2 ;;
    esac
}
case $command in
    refavs-sweep)
        module=experiments.cli before='' out=''
        for argument; do
            case $argument in --out=*) out=${argument#--out=} ;; esac
            [ "$before" = --out ] && out=$argument
            before=$argument
        done
        seen_by_all --out "$out"
        ;;
    refavs-extract)
        module=extract.cli
        seen_by_all SOURCE "$1"
        seen_by_all STORE "$2"
        ;;
    *) echo "ray-job: the command is '$command'; accepted: refavs-sweep or refavs-extract" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$here/.venv/bin/python}
[ -x "$python" ] || python=python3
if ! "$python" -c 'import aiohttp_cors, opencensus, prometheus_client' 2>/dev/null; then
    echo "ray-job: jobs need Ray's dashboard, which is not installed; run $python -m pip install 'ray[default]'" >&2
    exit 2
fi
# Ray leaves out what git ignores (.venv, stores, runs); .git is left out for its size.
environment=$(HERE=$here "$python" -c '
import json, os, subprocess
from pathlib import Path
def git(*arguments):
    done = subprocess.run(["git", "-C", os.environ["HERE"], *arguments], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
environment = {"working_dir": os.environ["HERE"], "excludes": [".git", "/tests", "*.png"]}
# The same as the commands set for the workers of a local Ray, see extract/pipeline/local_ray.py.
kept = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
environment["env_vars"] = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **kept,
                           "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
if commit := git("rev-parse", "HEAD"):
    dirty = str(bool(git("status", "--porcelain", "--untracked-files=no"))).lower()
    environment["env_vars"] |= {"REFAVS_GIT_COMMIT": commit, "REFAVS_GIT_DIRTY": dirty}
if "REFAVS_PIP" in os.environ:
    lines = Path(os.environ["REFAVS_PIP"]).read_text().splitlines()
    environment["pip"] = [line for line in lines if line and not line.startswith(("#", "ray=="))]
print(json.dumps(environment))')
run="import sys; from $module import main; sys.exit(main(sys.argv[1:]))"
exec "$python" -m ray.scripts.scripts job submit --address "$address" --runtime-env-json "$environment" -- \
    python -c "$run" "$@" --address auto

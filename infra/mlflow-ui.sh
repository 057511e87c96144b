#!/bin/sh
# Opens the MLflow UI on a sweep's database, on this machine only.
#   infra/mlflow-ui.sh [SWEEP_OR_DATABASE] [PORT]     default: runs/mlflow.db, port 5000
set -eu

where=${1:-runs/mlflow.db}
port=${2:-5000}
case $where in
    *.db) database=$where ;;
    *) database=$(dirname "${where%/}")/mlflow.db ;;
esac
if [ ! -f "$database" ]; then
    echo "mlflow-ui: no database $database; run refavs-sweep first, or name its folder or its mlflow.db" >&2
    exit 2
fi
database=$(cd "$(dirname "$database")" && pwd)/$(basename "$database")
here=$(cd "$(dirname "$0")/.." && pwd)
mlflow=$here/.venv/bin/mlflow
[ -x "$mlflow" ] || mlflow=mlflow
address=sqlite:///$database
case $database in
    *[?%]*) cd "$(dirname "$database")" && address=sqlite:///$(basename "$database") ;;  # special characters in a URL
esac
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # the jobs, seven processes, are for language models
echo "http://127.0.0.1:$port  (Ctrl-C ends it)"
exec "$mlflow" ui --backend-store-uri "$address" --host 127.0.0.1 --port "$port" --workers 1

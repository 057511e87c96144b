#!/bin/bash
#SBATCH --job-name=refavs
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
# Runs refavs-sweep or refavs-extract on the nodes of a Slurm job, under a Ray cluster of its own:
#   sbatch RESOURCES infra/slurm.sh refavs-sweep GRID --store STORE --out OUT ...
#   sbatch RESOURCES infra/slurm.sh refavs-extract SOURCE STORE --weights-dir WEIGHTS ...
# RESOURCES are the job's resources, for example: --nodes=4 --cpus-per-task=16 --gpus-per-node=4 --time=8:00:00
# All folders and this checkout must have the same paths on all nodes. Without --weights-dir each node uses weights from
# its own cache, and downloads missing ones. Five minutes before the end of its time a sweep is told to finish the running
# epochs. The same command resumes from there, also after a kill.
set -u

if [ $# -lt 3 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    sed -n '7,13s/^# *//p' "$0" >&2
    exit 2
fi
command=$1
shift
case $command in
    refavs-sweep | refavs-extract) ;;
    *) echo "slurm: the first argument is '$command'; accepted: refavs-sweep or refavs-extract" >&2; exit 2 ;;
esac
# Slurm runs a copy of this file; the checkout is the folder in which sbatch was called, or REFAVS.
bin=${REFAVS:-$SLURM_SUBMIT_DIR}/.venv/bin
if [ ! -x "$bin/ray" ]; then
    echo "slurm: no $bin/ray; call sbatch in the checkout after 'make setup', or name it by REFAVS=FOLDER" >&2
    exit 2
fi
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_address=$(getent ahostsv4 "$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
# The same as the commands set for a local Ray, see extract/pipeline/local_ray.py.
export OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 OMP_WAIT_POLICY=PASSIVE \
    MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296
# A token that only this job's processes have.
RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

# srun does not inherit sbatch's --cpus-per-task (since Slurm 22.05); without it Ray and its workers would share one core.
srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$cpus" --nodelist="$head" "$bin/ray" start --head --block --disable-usage-stats \
    --node-ip-address="$head_address" --port="$port" --num-cpus="$cpus" --include-dashboard=false \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" >"ray-$SLURM_JOB_ID.log" 2>&1 &
ray=$!
trap 'kill $ray 2>/dev/null; rm -rf "/tmp/ray-$SLURM_JOB_ID"' EXIT
until "$bin/ray" health-check --address "$head_address:$port" >/dev/null 2>&1; do
    kill -0 $ray 2>/dev/null || { echo "slurm: Ray did not start; see ray-$SLURM_JOB_ID.log" >&2; exit 1; }
    sleep 1
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --cpus-per-task="$cpus" \
        --exclude="$head" "$bin/ray" start --block --address="$head_address:$port" --num-cpus="$cpus" \
        >>"ray-$SLURM_JOB_ID.log" 2>&1 &
    # Both commands count the cluster's processors only once, at their start.
    "$bin/python" -c '
import sys, time
import ray
address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 120
while (found := sum(node["Alive"] for node in ray.nodes())) < wanted and time.monotonic() < deadline:
    time.sleep(1)
if found < wanted:
    print(f"slurm: {found} of {wanted} nodes joined within 120 s; continuing with those", file=sys.stderr)
' "$head_address:$port" "$SLURM_JOB_NUM_NODES"
fi

"$bin/$command" "$@" --address "$head_address:$port" &
work=$!
trap 'kill -TERM $work 2>/dev/null' TERM
wait $work
status=$?
while kill -0 $work 2>/dev/null; do  # a signal ended the wait, not the command
    wait $work
    status=$?
done
exit $status

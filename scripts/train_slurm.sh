#!/usr/bin/env bash
# Train on a Slurm cluster: sbatch [--nodes N ...] scripts/train_slurm.sh <run_name> DATASET MODEL [more flags of main.py]
# Each node runs one task, which starts one process per GPU. Five minutes before the time limit the run saves and
# stops, and this script requeues the job. If a node fails, Slurm itself requeues the job.
#SBATCH --job-name=motion
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
if [ $# -lt 3 ]; then
    echo "usage: sbatch scripts/train_slurm.sh <run_name> DATASET MODEL [more flags of main.py]" >&2
    exit 2
fi
run="$1"
# Each job has its own port, because two jobs may share a node.
endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"
status=0
srun ./scripts/train_nodes.sh "$SLURM_JOB_NUM_NODES" "$endpoint" "$@" || status=$?
if [ "$status" -ne 0 ] && tail -n 1 "logs/$run.log" | grep -q ": stopped, "; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

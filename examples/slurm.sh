#!/usr/bin/env bash
# Slurm: one task per GPU, a checkpoint before the time limit, and a job that continues by itself.
#
#   sbatch examples/slurm.sh Pretrain.py --config ./configs/Pretrain.yaml --output_dir output/Pretrain/
#   sbatch --nodes=2 examples/slurm.sh Pretrain.py ...     # two nodes with four GPUs each
#
# It runs any of the five scripts with --resume. docs/cluster.md explains every line.

#SBATCH --job-name=grit-vlp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=6
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

set -eu
if [ $# -eq 0 ]; then
    echo 'usage: sbatch examples/slurm.sh SCRIPT.py ARGUMENTS...' >&2
    exit 2
fi

# The processes meet on the first node.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from sbatch

# Every task tells the program who it is, and becomes it, so that Slurm's signals reach it. After the first task ends,
# the others have a minute to end by themselves.
code=0
srun --kill-on-bad-exit=0 --wait=60 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec "${PYTHON:-python}" "$@" --resume
' task "$@" || code=$?

# 138 = 128 + SIGUSR1: stopped by the warning, with a checkpoint. Every other code is final: 0 finished, 2 an error,
# 143 SIGTERM of scancel or of a preemption, after which Slurm itself requeues the job.
if [ "$code" -eq 138 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MOST_RESTARTS:-100}" ]; then
        echo "restarted ${SLURM_RESTART_COUNT} times, not again; submit the job anew to continue" >&2
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"

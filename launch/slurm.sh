#!/bin/bash
# Trains on GPUs of several machines under SLURM, one process to a machine:
#
#     sbatch --nodes=4 launch/slurm.sh --config=configs/vp/cifar10_ddpmpp_continuous.py --workdir=runs/c10
#
# from a checkout in which `make install` and `.venv/bin/pip install -e '.[cuda13]'` were run, on a
# disk that all machines share. Two minutes before its time is up the job is asked to stop; it saves
# its step, and goes back into the queue, where the same command goes on. So it does after a failure
# of a machine (--requeue).
#SBATCH --job-name=score-sde
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=score-sde-%j.log
set -uo pipefail
cd "${SLURM_SUBMIT_DIR:?start it with sbatch}" || exit 1

srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-32}" .venv/bin/python main.py --mode=train --distributed "$@"
code=$?
if [ "$code" -eq 143 ]; then # it was asked to stop, and has saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

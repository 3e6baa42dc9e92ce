#!/bin/bash
# A teacher on two nodes of four GPUs. A job that is started again, by Slurm or by hand, goes on where it stopped:
#
#   sbatch examples/jobs/slurm-train.sh --work work --encoder resnet50 --weights imagenet --steps 20000 --batch 32 --contexts 8
#
#SBATCH --job-name=teacher
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
exec srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" -m rsdistill train-teacher --resume "$@"

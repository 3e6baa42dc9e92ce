#!/bin/bash
# One scene on as many nodes as are free, each task one shard of it; the last job puts the map together:
#
#   map=$(sbatch --parsable examples/jobs/slurm-map.sh scene.tif masks/scene.tif --model work/student.safetensors)
#   sbatch --dependency=afterok:$map --mem=4G --wrap 'rsdistill merge masks --out maps/scene.tif'
#
# A task that failed is run again by its number, with the same words: sbatch --array=7 examples/jobs/slurm-map.sh scene.tif ...
# Another number of shards: SHARDS=64 sbatch --array=1-64 examples/jobs/slurm-map.sh scene.tif ...
#SBATCH --job-name=map
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

scene=$1 out=$2
shift 2
# SLURM_ARRAY_TASK_COUNT would not do for n: it is 1 when one task is run again
exec rsdistill predict "$scene" --out "$out" --shard "auto/${SHARDS:-16}" --threads "${SLURM_CPUS_PER_TASK:-1}" "$@"

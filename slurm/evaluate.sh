#!/bin/bash
# Predict every test sample once, then compute the metrics. Arguments: `brain-dist evaluate --help`
#   sbatch slurm/evaluate.sh runs/NAME
#   sbatch slurm/evaluate.sh runs/NAME --shards shards/built/OTHER --name other      (external validation)
#   sbatch --dependency=afterok:JOB slurm/evaluate.sh runs/NAME                      (after training)
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_gpus evaluate "$@"
finish $?

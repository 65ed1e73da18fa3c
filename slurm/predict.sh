#!/bin/bash
# Predict image files, each once over all GPUs, into one table. Arguments: `brain-dist predict --help`
#   sbatch slurm/predict.sh runs/NAME /data/scans --out predictions.csv --resume
# With --resume, a job that SLURM put back into the queue keeps what it had finished.
#SBATCH --job-name=predict
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_gpus predict "$@"
finish $?

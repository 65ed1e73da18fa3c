#!/bin/bash
# One task of the job array that `brain-dist benchmark run OUT … --slurm` submits: train and evaluate one cell.
# SBATCH_PARTITION and similar variables choose the queue; other resources are set below. Submit with that command, from
# the checkout's root; the same command submits cells that are missing again.
#SBATCH --job-name=benchmark
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4          # one task per GPU
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300        # warning 5 minutes before the time limit: save, then requeue
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
out=$1 cells=("${@:2}")            # the folder of the benchmark, and the name of each task's cell
# shellcheck source=/dev/null
source "$out/cells/${cells[SLURM_ARRAY_TASK_ID]}.sh" # its commands, which use the functions of launch/slurm.sh
finish $?

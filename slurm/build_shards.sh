#!/bin/bash
# Build shards from a folder of images, on the cores of one node. Arguments: `brain-dist shard build --help`
#   sbatch slurm/build_shards.sh --recipe shards/datasets/cheng_br35h.yaml --source DIR --out shards/built/cheng_br35h
# On many nodes: 16 tasks of an array examine a part of the images each, then one job compares all images and writes the
# shards, which are the same as those of a single job. A task that failed is submitted again by its number, --array=3.
#   p=$(sbatch --parsable --array=0-15 slurm/build_shards.sh --parts 16 --source DIR --out shards/built/NAME)
#   sbatch --dependency=afterok:$p slurm/build_shards.sh --parts 16 --source DIR --out shards/built/NAME
# A chain of jobs, each starts when the previous one has succeeded (--parsable prints only the job's number):
#   b=$(sbatch --parsable slurm/build_shards.sh --source DIR --out shards/built/NAME)
#   t=$(sbatch --parsable --dependency=afterok:$b slurm/train_convnext.sh --data.shards shards/built/NAME --run.name NAME)
#   sbatch --dependency=afterok:$t slurm/evaluate.sh runs/NAME
#SBATCH --job-name=shards
#SBATCH --nodes=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue                  # an interrupted build starts over; incomplete shards are never visible
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_one shard build "$@" ${SLURM_ARRAY_TASK_ID:+--part "$SLURM_ARRAY_TASK_ID"}
finish $?

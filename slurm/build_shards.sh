#!/bin/bash
# Shards from a folder of images, on one node's cores. All arguments are those of `brain-dist shard build`:
#   sbatch slurm/build_shards.sh --recipe shards/datasets/cheng_br35h.yaml --source DIR --out shards/built/cheng_br35h
# A chain, each link starting when the one before is done (--parsable prints the job's number alone):
#   b=$(sbatch --parsable slurm/build_shards.sh --source DIR --out shards/built/NAME)
#   t=$(sbatch --parsable --dependency=afterok:$b slurm/train_convnext.sh --data.shards shards/built/NAME --run.name NAME)
#   sbatch --dependency=afterok:$t slurm/evaluate.sh runs/NAME
#SBATCH --job-name=shards
#SBATCH --nodes=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue                  # a build that was cut short begins anew: shards appear whole or not at all
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_one shard build "$@"
finish $?

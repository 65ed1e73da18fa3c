#!/bin/bash
# Measure where a training step's time goes on these nodes and find the bottleneck. Arguments: `brain-dist profile --help`
#   sbatch slurm/profile.sh --data.shards shards/built/cheng_br35h
#   sbatch --nodes=4 slurm/profile.sh --train.micro_batch 16 --data.shards shards/built/cheng_br35h --out profiles/four.json
#SBATCH --job-name=profile
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=00:30:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_gpus profile --config configs/convnext_base.yaml "$@"
finish $?

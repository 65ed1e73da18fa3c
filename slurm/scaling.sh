#!/bin/bash
# Measure how a training step speeds up with more nodes. One job for all cases; each case is a job step on some nodes.
# Arguments: `brain-dist scaling run --help`
#   sbatch --nodes=4 slurm/scaling.sh --nodes 1,2,4 --data.shards shards/built/cheng_br35h
#   sbatch --nodes=8 slurm/scaling.sh --nodes 1,2,4,8 --mode weak --zero 0,1,2 --out runs/scaling --data.shards …
# ZeRO stage 3 needs --optim.ema 0. Results: runs/scaling-JOB, or --out; submit again with the same --out to run the
# cases that are missing.
#SBATCH --job-name=scaling
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4          # one task per GPU
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=02:00:00
#SBATCH --requeue                  # finished cases are kept
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
here scaling run --config configs/convnext_base.yaml --out "runs/scaling-$SLURM_JOB_ID" "$@"
finish $?

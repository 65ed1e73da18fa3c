#!/bin/bash
# How a training step speeds up over nodes: one allocation of the most nodes, each case a step on some of them.
# Arguments: `brain-dist scaling run --help`
#   sbatch --nodes=4 slurm/scaling.sh --nodes 1,2,4 --data.shards shards/built/cheng_br35h
#   sbatch --nodes=8 slurm/scaling.sh --nodes 1,2,4,8 --mode weak --zero 1,2,3 --out runs/scaling --data.shards …
# The results are in runs/scaling-JOB unless --out says otherwise; submitting again with that folder goes on with it.
#SBATCH --job-name=scaling
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4          # one task a GPU, however many you ask for
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=02:00:00
#SBATCH --requeue                  # the cases that are done are kept
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
here scaling run --config configs/convnext_base.yaml --out "runs/scaling-$SLURM_JOB_ID" "$@"
finish $?

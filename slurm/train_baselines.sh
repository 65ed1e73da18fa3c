#!/bin/bash
# Train four baselines × three seeds, one node each, with the data, batch and length of configs/convnext_base.yaml:
#   sbatch slurm/train_baselines.sh --data.shards shards/built/cheng_br35h
#   sbatch --array=0-2 slurm/train_baselines.sh …     (only resnet50)
# Runs: runs/baselines-ARRAYJOB/MODEL-SEED; --run.dir changes the folder.
#SBATCH --job-name=baselines
#SBATCH --array=0-11
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
models=(resnet50 efficientnet_b0 mobilenetv3_large_100 vgg16_bn)
model=${models[SLURM_ARRAY_TASK_ID / 3]} seed=$((SLURM_ARRAY_TASK_ID % 3))
on_gpus train --config "configs/$model.yaml" --run.dir "runs/baselines-$SLURM_ARRAY_JOB_ID" --track.group "$model" \
  "$@" --run.name "$model-$seed" --run.seed "$seed"
finish $?

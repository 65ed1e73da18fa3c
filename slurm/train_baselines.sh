#!/bin/bash
# Four baselines × three seeds, one node each, on the data, batch and length of configs/convnext_base.yaml:
#   sbatch slurm/train_baselines.sh --data.shards shards/built/cheng_br35h
#   sbatch --array=0-2 slurm/train_baselines.sh …     (resnet50 alone)
# The runs are runs/baselines-ARRAYJOB/MODEL-SEED; --run.dir gives them another folder.
#SBATCH --job-name=baselines
#SBATCH --array=0-11
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4          # one task a GPU
#SBATCH --cpus-per-gpu=8
#SBATCH --mem-per-gpu=32G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300        # five minutes to save before the time is over; then the job requeues itself
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
models=(resnet50 efficientnet_b0 mobilenetv3_large_100 vgg16_bn)
model=${models[SLURM_ARRAY_TASK_ID / 3]} seed=$((SLURM_ARRAY_TASK_ID % 3))
on_gpus train --config "configs/$model.yaml" --run.dir "runs/baselines-$SLURM_ARRAY_JOB_ID" --track.group "$model" \
  "$@" --run.name "$model-$seed" --run.seed "$seed"
finish $?

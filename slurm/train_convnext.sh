#!/bin/bash
# Train ConvNeXt-Base on two nodes of four GPUs. SLURM's options go before the script's name, settings after it:
#   sbatch slurm/train_convnext.sh --data.shards shards/built/cheng_br35h
#   sbatch --gpus-per-node=8 slurm/train_convnext.sh --train.micro_batch 16 --data.shards shards/built/cheng_br35h
#   sbatch --nodes=4 --time=2-0 slurm/train_convnext.sh --run.name big --train.global_batch 512 --data.shards …
# train.global_batch (256) must be a multiple of train.micro_batch (32) × all GPUs.
# Run: runs/convnext-JOB; log: convnext-JOB.log. To resume it in a new job, submit again with --run.name convnext-JOB.
#SBATCH --job-name=convnext
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4          # one task per GPU
#SBATCH --cpus-per-gpu=8           # decoding threads: data.threads per task
#SBATCH --mem-per-gpu=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300        # warning 5 minutes before the time limit: save, then requeue
#SBATCH --requeue
#SBATCH --open-mode=append         # one log for all attempts
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_gpus train --config configs/convnext_base.yaml --run.name "convnext-$SLURM_JOB_ID" "$@"
finish $?

#!/bin/bash
# The flagship: ConvNeXt-Base on two nodes of four GPUs. Settings follow the script's name, SLURM's options precede it:
#   sbatch slurm/train_convnext.sh --data.shards shards/built/cheng_br35h
#   sbatch --nodes=4 --time=2-0 slurm/train_convnext.sh --run.name big --train.global_batch 512
# The run is runs/convnext-JOB unless --run.name says otherwise; submitting again with that name goes on with it.
#SBATCH --job-name=convnext
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4          # one task a GPU, however many you ask for
#SBATCH --cpus-per-gpu=8           # decoding threads: data.threads of them a task
#SBATCH --mem-per-gpu=32G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300        # five minutes to save before the time is over; then the job requeues itself
#SBATCH --requeue
#SBATCH --open-mode=append         # one log for all attempts
#SBATCH --output=%x-%j.log

source launch/slurm.sh || exit 2   # submit from the checkout's root
on_gpus train --config configs/convnext_base.yaml --run.name "convnext-$SLURM_JOB_ID" "$@"
finish $?

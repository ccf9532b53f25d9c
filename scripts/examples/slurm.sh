#!/bin/bash
# Train on two machines of a SLURM cluster with four GPUs each; options go to `pcea fit`:
#
#   sbatch slurm.sh --config modelnet40_eat --data.init_args.batch_size 4
#
# Submit it where data/ and runs/ lie, on a disk that the machines share, with pcea's environment active.
#SBATCH --job-name=pcea
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# A job whose machine fails starts again, and `--ckpt_path last` goes on after the last whole epoch.
#SBATCH --requeue
#SBATCH --open-mode=append

# When a process fails, the others would wait for it: they are ended.
srun --kill-on-bad-exit=1 pcea fit --ckpt_path last --trainer.strategy ddp --trainer.sync_batchnorm true \
  --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" "$@"

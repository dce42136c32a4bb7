#!/usr/bin/env bash
# intro-pipe on Slurm: start a Ray head on the first node and workers on the others, run one extraction.
#
#   sbatch docs/slurm.sh --dataset cifar10c --model resnet18
#
# Arguments are passed on to `intro-pipe extract`. Store, data and the environment that contains
# intro-pipe must be in folders that every node can access: set the three variables below.
#SBATCH --job-name=intro-pipe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

export INTRO_PIPE_STORE=${INTRO_PIPE_STORE:-/shared/store}
export INTRO_PIPE_DATA=${INTRO_PIPE_DATA:-/shared/data}
export PATH=${INTRO_PIPE_ENV:-/shared/env}/bin:$PATH

# Only processes that know this token can talk to the cluster; srun passes it on in the environment.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

port=$((20000 + SLURM_JOB_ID % 20000))
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" hostname --ip-address)
head=${head%% *}

steps=()
end() {
  if ((${#steps[@]})); then
    kill "${steps[@]}" 2>/dev/null || true
    wait "${steps[@]}" || true
  fi
}
trap end EXIT

srun --nodes=1 --ntasks=1 --overlap --nodelist="${hosts[0]}" \
  ray start --head --block --node-ip-address="$head" --port="$port" \
  --num-cpus="$cpus" --num-gpus="$gpus" --include-dashboard=false &
steps+=($!)
until (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null; do
  kill -0 "${steps[0]}" # end the job if the head has died
  sleep 1
done
for host in "${hosts[@]:1}"; do
  srun --nodes=1 --ntasks=1 --overlap --nodelist="$host" \
    ray start --block --address="$head:$port" --num-cpus="$cpus" --num-gpus="$gpus" &
  steps+=($!)
done

# The run waits for workers that are not up yet. Submitting the same job again resumes it.
n_gpus=$((gpus * ${#hosts[@]}))
srun --nodes=1 --ntasks=1 --overlap --nodelist="${hosts[0]}" \
  intro-pipe extract --address "$head:$port" --gpus "$n_gpus" "$@"

# shellcheck shell=bash
# What every script in slurm/ shares; sourced by them in the batch shell.
#
#   on_gpus VERB [ARGUMENT …]    one task a GPU on all nodes (one task a node where there are no GPUs)
#   on_one VERB [ARGUMENT …]     one task
#   here VERB [ARGUMENT …]       in the batch shell itself, for a verb that starts steps of its own
#   finish CODE                  ends the job: 75 (stopped after a clean save) and a lost node put it back in the queue
#
# An operator sets, in the environment or in launch/site.sh (sourced below where it exists, not kept in git):
#   PYTHON                 the interpreter on the nodes; default .venv/bin/python of this checkout, else python3
#   BRAIN_DIST_CONTAINER   "apptainer:IMAGE" runs each task by `apptainer exec --nv IMAGE`, "pyxis:IMAGE" by srun's
#                          --container-image; PYTHON is then looked up inside, and is python3 unless set
#   BRAIN_DIST_HOST_PYTHON an interpreter outside the container that has the project's packages, for `here` alone
#   NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME   the network between the nodes, where the first one found is the wrong one

set -uo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: scripts in slurm/ are for sbatch: sbatch slurm/NAME.sh [--section.setting VALUE …]" >&2
  exit 2
fi
# shellcheck source=/dev/null
[[ -f launch/site.sh ]] && source launch/site.sh

container=() inside=() told=0
case ${BRAIN_DIST_CONTAINER:-} in
  "") if [[ -x .venv/bin/python ]]; then : "${PYTHON:=$PWD/.venv/bin/python}"; fi ;;
  apptainer:*) inside=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "${BRAIN_DIST_CONTAINER#*:}") ;;
  pyxis:*) container=(--container-image="${BRAIN_DIST_CONTAINER#*:}" --container-mounts="$PWD" --container-workdir="$PWD") ;;
  *) echo "error: BRAIN_DIST_CONTAINER=$BRAIN_DIST_CONTAINER: needs apptainer:IMAGE or pyxis:IMAGE" >&2; exit 2 ;;
esac
: "${PYTHON:=python3}"
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export PYTHONUNBUFFERED=1
unset SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK # newer versions of srun refuse them beside --cpus-per-task

# Rank 0 is the first node's first task. NodeAddr is what SLURM itself reaches the node by; names need not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node --oneliner "$first_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first_node} # the port follows from the job's number, see brain_dist/ranks/world.py

echo "== job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NODELIST, $(date --iso-8601=seconds)"

on_gpus() {
  local tasks=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
  # on the first nodes, also where there are more: rank 0's address is told above
  step --relative=0 --nodes="$SLURM_NNODES" --ntasks=$((SLURM_NNODES * tasks)) --ntasks-per-node="$tasks" \
    --cpus-per-task=$((SLURM_CPUS_ON_NODE / tasks > 0 ? SLURM_CPUS_ON_NODE / tasks : 1)) -- "$@"
}

on_one() {
  step --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" -- "$@"
}

here() { # srun is at hand outside a container only
  local python=$PYTHON
  if [[ -n ${BRAIN_DIST_CONTAINER:-} ]]; then
    python=${BRAIN_DIST_HOST_PYTHON:-python3}
    [[ -z ${BRAIN_DIST_HOST_PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
  fi
  "$python" -m "brain_dist.$1" "${@:2}"
}

step() { # OPTION … -- VERB [ARGUMENT …]
  local options=() pid='' code asked=1
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  local verb=$2 && shift 2
  # sbatch --signal=B:USR1@… comes here alone, before the time limit. Never pass on SIGTERM: srun would kill the tasks
  # instead of telling them. They get SLURM's own SIGTERM at pre-emption, and this shell waits for them to save.
  trap 'asked=1 told=1; echo "== SLURM asks to stop"; [[ -n $pid ]] && kill -USR1 "$pid"' USR1
  trap 'asked=1' TERM
  srun --kill-on-bad-exit=1 "${options[@]}" ${container[@]+"${container[@]}"} ${inside[@]+"${inside[@]}"} \
    "$PYTHON" -m "brain_dist.$verb" "$@" &
  pid=$!
  while ((asked)); do # a trap ends `wait` early
    asked=0
    wait "$pid"
    code=$?
  done
  trap : USR1 # a warning that comes now must not end this shell before `finish`
  trap - TERM
  return "$code"
}

finish() {
  local code=$1 why
  if ((!told)) && scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; then told=1; fi
  case $code in
    0 | 2) exit "$code" ;; # done; the user's mistake, which another attempt would repeat
    75) why="stopped after a clean save" ;;
    *)
      if ((told)); then
        why="asked to stop, and ended ($code) before it could save" # it goes on from the checkpoint before
      else
        # the tasks of a node that is gone end like any fault; a step on all nodes tells which it was
        timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks-per-node=1 true >/dev/null 2>&1 && exit "$code"
        why="a node does not answer"
      fi
      ;;
  esac
  # a job that somebody cancelled, or that ran out of time, is no longer RUNNING, and must not come back
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null) != RUNNING ]]; then exit "$code"; fi
  echo "== $why; back in the queue"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # SLURM ends this shell
  echo "== job $SLURM_JOB_ID could not be requeued: submit it again with --run.name of this run, it goes on from there" >&2
  exit "$code"
}

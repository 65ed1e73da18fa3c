# shellcheck shell=bash
# Shared by all scripts in slurm/, which source it in the batch shell.
#
#   on_gpus VERB [ARGUMENT …]    run one task per GPU on all nodes (one task per node if there are no GPUs)
#   on_one VERB [ARGUMENT …]     run one task
#   here VERB [ARGUMENT …]       run in the batch shell itself, for a verb that starts job steps
#   finish CODE                  end the job; requeue it after code 75 (stopped after a clean save) or a lost node
#
# Settings of the site, in the environment or in launch/site.sh (sourced below if it exists; not kept in git):
#   PYTHON                 interpreter on the nodes; default: .venv/bin/python of this checkout, else python3
#   BRAIN_DIST_CONTAINER   "apptainer:IMAGE" runs each task with `apptainer exec --nv IMAGE`, "pyxis:IMAGE" with srun's
#                          --container-image. PYTHON is then a path inside the container; default: python3
#   BRAIN_DIST_HOST_PYTHON interpreter outside the container that has the project's packages; used by `here` only
#   NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME   network interface between the nodes, if the default is the wrong one

set -uo pipefail

if [[ -z ${SLURM_JOB_ID:-} ]]; then
  echo "error: scripts in slurm/ must be submitted: sbatch slurm/NAME.sh [--section.setting VALUE …]" >&2
  exit 2
fi
# shellcheck source=/dev/null
[[ -f launch/site.sh ]] && source launch/site.sh

srun_container=() task_prefix=() stop_requested=0
case ${BRAIN_DIST_CONTAINER:-} in
  "") if [[ -x .venv/bin/python ]]; then : "${PYTHON:=$PWD/.venv/bin/python}"; fi ;;
  apptainer:*) task_prefix=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "${BRAIN_DIST_CONTAINER#*:}") ;;
  pyxis:*) srun_container=(--container-image="${BRAIN_DIST_CONTAINER#*:}" --container-mounts="$PWD" --container-workdir="$PWD") ;;
  *) echo "error: BRAIN_DIST_CONTAINER=$BRAIN_DIST_CONTAINER: must be apptainer:IMAGE or pyxis:IMAGE" >&2; exit 2 ;;
esac
: "${PYTHON:=python3}"
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
export PYTHONUNBUFFERED=1
BRAIN_DIST_SECRET=${BRAIN_DIST_SECRET:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')} # srun passes it to the ranks only
export BRAIN_DIST_SECRET
unset SLURM_CPUS_PER_GPU SLURM_TRES_PER_TASK # newer versions of srun refuse them together with --cpus-per-task

# Rank 0 is the first task of the first node. SLURM itself connects to NodeAddr; host names may not resolve.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node --oneliner "$first_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$first_node} # the port is derived from the job's number, see brain_dist/ranks/world.py

echo "== job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NODELIST, $(date --iso-8601=seconds)"

on_gpus() {
  local tasks=${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}
  # --relative=0 starts with the first node, whose address is MASTER_ADDR
  step --relative=0 --nodes="$SLURM_NNODES" --ntasks=$((SLURM_NNODES * tasks)) --ntasks-per-node="$tasks" \
    --cpus-per-task=$((SLURM_CPUS_ON_NODE / tasks > 0 ? SLURM_CPUS_ON_NODE / tasks : 1)) -- "$@"
}

on_one() {
  step --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" -- "$@"
}

here() { # outside the container, where srun is available
  local python=$PYTHON
  if [[ -n ${BRAIN_DIST_CONTAINER:-} ]]; then
    python=${BRAIN_DIST_HOST_PYTHON:-python3}
    [[ -z ${BRAIN_DIST_HOST_PYTHON:-} && -x .venv/bin/python ]] && python=.venv/bin/python
  fi
  "$python" -m "brain_dist.$1" "${@:2}"
}

step() { # OPTION … -- VERB [ARGUMENT …]
  local options=() pid='' code interrupted=1
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  local verb=$2 && shift 2
  # Before the time limit, sbatch --signal=B:USR1@… signals this shell only, so it is forwarded to the tasks. SIGTERM is
  # not forwarded: srun would kill the tasks. At preemption SLURM sends them SIGTERM itself; this shell waits for the save.
  trap 'interrupted=1 stop_requested=1; echo "== SLURM asks to stop"; [[ -n $pid ]] && kill -USR1 "$pid"' USR1
  trap 'interrupted=1' TERM
  # --wait=0: the main rank may write for longer than the others, which some sites do not allow by default
  srun --kill-on-bad-exit=1 --wait=0 "${options[@]}" ${srun_container[@]+"${srun_container[@]}"} \
    ${task_prefix[@]+"${task_prefix[@]}"} \
    "$PYTHON" -m "brain_dist.$verb" "$@" &
  pid=$!
  while ((interrupted)); do # a trap ends `wait` early
    interrupted=0
    wait "$pid"
    code=$?
  done
  trap : USR1 # a late warning must not end this shell before `finish`
  trap - TERM
  return "$code"
}

finish() {
  local code=$1 reason
  if ((!stop_requested)) && scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; then
    stop_requested=1
  fi
  case $code in
    0 | 2 | 3) exit "$code" ;; # success, or a user error or unreadable files, which another attempt would repeat
    75) reason="stopped after a clean save" ;;
    *)
      if ((stop_requested)); then
        reason="asked to stop, but ended with code $code before it saved" # resumes from the previous checkpoint
      else
        # A lost node looks like a fault in its tasks. A step on all nodes succeeds only if no node is lost.
        timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks-per-node=1 true >/dev/null 2>&1 && exit "$code"
        reason="a node does not answer"
      fi
      ;;
  esac
  # a job that was cancelled or ran out of time is no longer RUNNING and must not be requeued
  if [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null) != RUNNING ]]; then exit "$code"; fi
  echo "== $reason; back in the queue"
  scontrol requeue "$SLURM_JOB_ID" && sleep 60 # SLURM ends this shell
  echo "== job $SLURM_JOB_ID could not be requeued; submit it again with this run's --run.name to resume" >&2
  exit "$code"
}

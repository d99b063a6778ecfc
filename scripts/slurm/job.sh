# shellcheck shell=bash
# Common part of the two .sbatch files: the Python interpreter, and `run`, which requeues a job at its time limit.

[ -f parallel_main.py ] || {
  echo "error: no parallel_main.py in $PWD: submit from the project's folder, or pass --chdir=FOLDER to sbatch" >&2
  exit 2
}
# shellcheck disable=SC2034 # the files that source this one use it
python=python
# shellcheck disable=SC2034
[ -x .venv/bin/python ] && python=.venv/bin/python
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not inherit it from sbatch
fi

# Run a command that saves and exits with 75 on USR2, then requeue the job, whose same command resumes. For other exit
# codes of the command, return the exit code.
run() {
  local pid code signalled=yes cancelled=
  "$@" &
  pid=$!
  # Both signals are forwarded as USR2, because srun kills its tasks on TERM before they have saved.
  trap 'signalled=yes; kill -USR2 "$pid"' USR2
  trap 'signalled=yes cancelled=yes; kill -USR2 "$pid"' TERM
  while [ "$signalled" ]; do # a trap returns from `wait` before the command has ended
    signalled=
    wait "$pid"
    code=$?
  done
  trap '' USR2 TERM
  # TERM comes from scancel, or from Slurm when it takes the nodes away. In both cases the job must not requeue itself.
  [ "$code" = 75 ] && [ -z "$cancelled" ] && requeue
  [ "$code" = 69 ] && code=0 # another process is training this run, which is no failure and needs no requeueing
  return "$code"
}

# The last task of an array has the job number of the whole array, so requeueing that would repeat finished tasks.
requeue() {
  local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  echo "saved: requeueing the job"
  for _ in 1 2 3 4; do # a busy controller may answer later
    scontrol requeue "$job" && return
    sleep 5
  done
  echo "failed: Slurm did not requeue job $job; submit the same command again with sbatch" >&2
}

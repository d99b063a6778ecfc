# shellcheck shell=bash
# For the two .sbatch files: which Python they start, and `run`, which lets a job outlive its time limit.

[ -f parallel_main.py ] || {
  echo "error: no parallel_main.py in $PWD: submit from the project's folder, or give sbatch --chdir=FOLDER" >&2
  exit 2
}
# shellcheck disable=SC2034 # the files that read this one use it
python=python
# shellcheck disable=SC2034
[ -x .venv/bin/python ] && python=.venv/bin/python
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # from 22.05 on srun does not take it over from sbatch
fi

# Runs a command that saves and exits with 75 when it gets USR2, and then puts the job back into the queue, where the
# same command goes on. Otherwise returns its exit code.
run() {
  local pid code signalled=yes cancelled=
  "$@" &
  pid=$!
  # Both are passed on as USR2: an srun that gets TERM kills its tasks before they have saved.
  trap 'signalled=yes; kill -USR2 "$pid"' USR2
  trap 'signalled=yes cancelled=yes; kill -USR2 "$pid"' TERM
  while [ "$signalled" ]; do # a trap ends `wait` before the command has ended
    signalled=
    wait "$pid"
    code=$?
  done
  trap '' USR2 TERM
  # TERM is scancel's, or Slurm's when it takes the nodes away: whether the job comes back is then not for it to say.
  [ "$code" = 75 ] && [ -z "$cancelled" ] && requeue
  [ "$code" = 69 ] && code=0 # another process is training this run: nothing has failed, and to come back would begin anew
  return "$code"
}

# By its own number the last task of an array is the whole array, tasks that have finished included.
requeue() {
  local job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  echo "saved: back into the queue"
  for _ in 1 2 3 4; do # a controller that is busy answers later
    scontrol requeue "$job" && return
    sleep 5
  done
  echo "failed: the queue did not take job $job back; sbatch the same command again" >&2
}

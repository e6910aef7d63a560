#!/bin/bash
# Trains plan.yaml (finetune-advisor @VERSION@). In this folder, which all machines
#     of the job must share:
#   bash run.sh --set-up   # once, where there is a connection: packages, models
#   sbatch job.sbatch        # options of `advise run` may follow: --max-steps 10
#
@ABOUT@
#
# Exit codes: 130 (stopped), 75 (a machine was lost), 137 and 143 (killed) are
#     queued again; 5 (training failed) once; all others never.
# Save and end for good: scancel --batch --signal=INT JOB
#
# Another job of this name, which has the plan's digest in it, waits until this one has ended.
#SBATCH --job-name=@JOB@
#SBATCH --dependency=singleton
#SBATCH --nodes=@NODES@
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=@CORES@@ASKED@
#SBATCH --signal=B:TERM@@GRACE_S@
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-@NUMBER@.out
set -uo pipefail
unset CDPATH
cd -- "${SLURM_SUBMIT_DIR:-.}" || exit 4

say() { printf '%s\n' "$*" >&2; }
if ! [ -f run.sh ] || ! [ -f plan.yaml ]; then
  say "error: $PWD holds no run.sh and plan.yaml"
  say "  submit the job from the folder that was unpacked: cd FOLDER && sbatch job.sbatch"
  exit 2
fi

# A job that is queued again resumes in its run folder. Each task of a plan is one number of the
# array, with a run folder of its own.
RUN=runs/@PLAN@
TASKS=(@TASKS@)
if [ ${#TASKS[@]} -gt 0 ]; then
  NAME=${TASKS[${SLURM_ARRAY_TASK_ID:?it is submitted as an array}]}
  RUN=$RUN-$NAME
  set -- --only "$NAME" "$@"
fi
case " $* " in *" --max-steps"*) RUN=$RUN-trial ;; esac # a trial has a folder of its own
mkdir -p runs || exit 4

# One task of an array by its own name: the number of the array may be that of a single task.
job=${SLURM_JOB_ID:?it is started by sbatch}
if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

# TERM comes before the time limit. It is passed on to the training, which finishes its step and
# saves. `scancel --batch --signal=INT JOB` does the same and ends the job for good.
got=''
asked=''
is_last=''
# shellcheck disable=SC2317 # the traps below call it
pass_on() {
  got=1 asked=1
  scancel --signal=TERM "$job" 2>/dev/null
}
trap pass_on TERM
trap 'is_last=1; pass_on' INT

[ -n "${HF_HUB_CACHE:-}" ] || export HF_HUB_CACHE="${HF_HOME:-$PWD}/hub"
bash run.sh --set-up || exit $? # a few seconds where it was called before
@OFFLINE@
for folder in methods/*/; do # methods of your own that the plan uses
  if [ -d "$folder" ]; then
    export ADVISE_METHODS="$PWD/${folder%/}${ADVISE_METHODS:+:$ADVISE_METHODS}"
  fi
done

rows() { if [ -f "$RUN/metrics.jsonl" ]; then wc -l <"$RUN/metrics.jsonl"; else echo 0; fi; }
before=$(rows)
if [ -n "$asked" ]; then
  code=130 # asked to stop while it was set up
elif [ -f "$RUN/.lock" ] && ! flock --timeout 300 "$RUN/.lock" true; then
  say "$RUN is still at work elsewhere, such as on a machine that Slurm has lost sight of"
  code=75
else
  # One process on each machine starts the others. It ends them, too, and all return one code.
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --kill-on-bad-exit=0 --wait=0 \
    "${ADVISE_PYTHON:-$PWD/.venv/bin/python}" -P -m advisor run plan.yaml --output "$RUN" "$@" &
  pid=$!
  while
    got=''
    wait "$pid"
    code=$?
    [ -n "$got" ] # a signal ended the wait, not the training
  do :; done
fi

# What happened before is kept beside the run: failures, starts in a row without a further step.
notes=$RUN.job-$SLURM_JOB_ID
failed=0 stuck=0
if [ -f "$notes" ]; then read -r failed stuck <"$notes"; fi
if [ "$(rows)" -gt "$before" ]; then stuck=0; else stuck=$((stuck + 1)); fi
again=''
case $code in
  0) rm -f "$notes" ;;
  130 | 75 | 137 | 143) # stopped, a machine was lost, or killed
    if [ "$stuck" -lt 3 ]; then
      again=1
    else
      say "not started again: three starts in a row came no step further"
    fi ;;
  5) # the training failed: once more, and no more
    failed=$((failed + 1))
    if [ "$failed" -lt 2 ]; then again=1; fi ;;
esac
if [ -z "$again" ] || [ -n "$is_last" ]; then exit "$code"; fi
# Whoever cancels a job does not want it back; Slurm itself requeues one that lost its machine.
state=$(squeue --noheader --jobs="$job" --format=%T 2>/dev/null)
ends=${SLURM_JOB_END_TIME:-0}
if [ "$state" != RUNNING ] && { [ "$ends" = 0 ] || [ "$(date +%s)" -lt "$ends" ]; }; then
  exit "$code"
fi
echo "$failed $stuck" >"$notes"
say "exit code $code: the job is queued again, and resumes where it stopped"
scontrol requeue "$job" || exit "$code"
sleep 60 # Slurm ends this script
exit "$code"

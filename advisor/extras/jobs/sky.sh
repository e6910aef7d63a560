export HF_HUB_CACHE="${HF_HUB_CACHE:-$PWD/hub}"
@OFFLINE@
for folder in methods/*/; do # methods of your own that the plan uses
  if [ -d "$folder" ]; then
    export ADVISE_METHODS="$PWD/${folder%/}${ADVISE_METHODS:+:$ADVISE_METHODS}"
  fi
done
RUN=/runs/@PLAN@
set -- ${TASK:+--only "$TASK"}
if [ -n "${TASK:-}" ]; then RUN=$RUN-$TASK; fi
if [ -n "${MAX_STEPS:-}" ]; then # a trial has a folder of its own
  RUN=$RUN-trial
  set -- "$@" --max-steps "$MAX_STEPS"
fi
rows() { if [ -f "$RUN/metrics.jsonl" ]; then wc -l <"$RUN/metrics.jsonl"; else echo 0; fi; }
# What happened before is kept beside the run: failures, starts in a row without a further step.
notes=$RUN.job-${SKYPILOT_TASK_ID:-0}-${SKYPILOT_NODE_RANK:-0}
failed=0
stuck=0
if [ -f "$notes" ]; then read -r failed stuck <"$notes"; fi
while :; do
  before=$(rows)
  code=0
  "${ADVISE_PYTHON:-.venv/bin/python}" -P -m advisor run plan.yaml --output "$RUN" "$@" || code=$?
  if [ "$(rows)" -gt "$before" ]; then stuck=0; else stuck=$((stuck + 1)); fi
  if [ "$code" = 5 ]; then failed=$((failed + 1)); fi
  echo "$failed $stuck" >"$notes"
  # A training that failed is tried once more, and no more.
  if [ "$code" != 5 ] || [ "$failed" -gt 1 ]; then break; fi
done
case $code in
  130 | 75 | 137 | 143) # stopped, a machine was lost, or killed: SkyPilot starts a job with 75 again
    if [ "$stuck" -lt 3 ]; then exit 75; fi
    echo "not started again: three starts in a row came no step further" >&2 ;;
esac
exit "$code"

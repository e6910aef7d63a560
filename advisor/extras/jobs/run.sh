#!/usr/bin/env bash
# Sets up and runs plan.yaml on this machine. Call it again to resume: what is done is not repeated.
#
#   bash run.sh            environment, checks, dry run, then the whole run
#   bash run.sh OPTIONS    the same, with options of `advise run`, such as --max-steps 20
#   bash run.sh --set-up   environment and downloads alone, where there is a connection: training then
#                          needs none, and no GPU is needed here
#
# PYTHON=/path/python3.12      the Python that the environment is made with
# ADVISE_PYTHON=/path/python   an environment that holds finetune-advisor[train] already
# HF_TOKEN                     for a model that asks for a licence first; read from the environment
if [ -z "${BASH_VERSION:-}" ]; then exec bash "$0" "$@"; fi # called with sh
set -euo pipefail
unset CDPATH # else cd may go elsewhere
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

SET_UP=
if [ "${1:-}" = --set-up ]; then
  SET_UP=1
  shift
fi
DEVICE='@DEVICE@'

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $1"
  if [ -n "${2:-}" ]; then say "  $2"; fi
  exit 4
}

if command -v sha256sum >/dev/null; then
  digests() { sha256sum --quiet -c "$1" >&2; }
elif command -v shasum >/dev/null; then
  digests() { shasum -a 256 --quiet -c "$1" >&2; }
else
  fail "neither sha256sum nor shasum is installed, so the files cannot be checked" \
    "install coreutils"
fi

# What --set-up downloads lies here, and later calls read it from here.
if [ -n "$SET_UP" ] || [ -e .fetched ]; then
  [ -n "${HF_HUB_CACHE:-}" ] || HF_HUB_CACHE=${HF_HOME:-$PWD}/hub
  export HF_HUB_CACHE
fi
# Several jobs or machines may begin together in one folder: they are set up one after the other.
if command -v flock >/dev/null; then
  exec 9>.set-up.lock
  flock 9 || say "warning: $PWD cannot be locked; set it up before several jobs begin"
fi

say "1. Checking the files of the bundle"
digests SHA256SUMS || fail "the files above are not those that were packed" \
  "copy or unpack the bundle again"

say "2. Checking this machine"
case "$DEVICE" in
  cuda)
    [ -n "$SET_UP" ] || command -v nvidia-smi >/dev/null || fail "the plan is for an NVIDIA GPU, and nvidia-smi is not here" \
      "install the NVIDIA driver, or start a machine that has one"
    [ -n "$SET_UP" ] || nvidia-smi -L >&2 || fail "the NVIDIA driver does not answer" "see what \`nvidia-smi\` says" ;;
  rocm)
    [ -n "${ADVISE_PYTHON:-}" ] || fail "for an AMD GPU the environment is made by hand" \
      "install PyTorch for ROCm and ./advise[train], then ADVISE_PYTHON=/path/python bash run.sh" ;;
esac

if [ -n "${ADVISE_PYTHON:-}" ]; then
  RUN=$ADVISE_PYTHON
  "$RUN" -P -c 'import advisor, torch, trl' || fail "$RUN: no environment with finetune-advisor[train]" \
    "$RUN -m pip install -c advise/constraints-tested.txt \"./advise[train]\""
else
  FOUND=
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      FOUND=$candidate
      break
    fi
  done
  [ -n "$FOUND" ] || fail "no Python from 3.11 on was found" \
    "install one, or name it: PYTHON=/path/python3.12 bash run.sh"
  RUN=$PWD/.venv/bin/python
  # Written last, with the versions: an installation that was interrupted is done again.
  if ! cmp -s .venv/ready SHA256SUMS; then
    say "3. Installing into $PWD/.venv (PyTorch alone is several GB)"
    "$FOUND" -m venv --clear .venv || fail "$FOUND could not make an environment" \
      "Debian and Ubuntu: apt install python3-venv"
    "$RUN" -m pip install --quiet --upgrade pip >&2 || fail "pip could not be updated" \
      "check the connection, then call run.sh again"
    "$RUN" -m pip install -c advise/constraints-tested.txt "./advise[train]" >&2 ||
      fail "the packages could not be installed" \
        "see the message of pip above; then call run.sh again"
    cp SHA256SUMS .venv/ready
  fi
fi

for folder in methods/*/; do # methods of your own that the plan uses
  if [ -d "$folder" ]; then
    export ADVISE_METHODS="$PWD/${folder%/}${ADVISE_METHODS:+:$ADVISE_METHODS}"
  fi
done

if [ -n "$SET_UP" ]; then
  if ! { printf '%s\n' "$HF_HUB_CACHE"; cat plan.yaml; } | cmp -s - .fetched; then
    say "4. Looking for models and data of the hub (cache: $HF_HUB_CACHE)"
    "$RUN" -P -m advisor.extras.jobs.fetch plan.yaml || exit $?
    { printf '%s\n' "$HF_HUB_CACHE"; cat plan.yaml; } >.fetched
  fi
  say "Set up: $RUN"
  exit 0
fi
exec 9>&- # another may be set up now
if ! [ -f .measured ]; then
  say "4. Dry run: two steps, to see that it fits"
  "$RUN" -P -m advisor run plan.yaml "$@" --dry-run || exit $?
  touch .measured
fi
say "5. Training"
exec "$RUN" -P -m advisor run plan.yaml "$@"

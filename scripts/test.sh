#!/usr/bin/env bash
# Lint, types, docs and tests, each with its time; every one runs, whatever the others say. Arguments go to pytest.
#
#   scripts/test.sh lint         ruff, its format, mypy, the site of docs/ with all links
#   scripts/test.sh unit [...]   lint, and the quick tests that need neither Ray nor programs from outside Python
#   scripts/test.sh all [...]    lint, and all tests; they build wheel and sdist (tests/test_packaging.py)
#
# Of all tests two lanes run beside each other. One has the tests that share a Ray, which wait for a third of their time.
# The other has lint, the tests without Ray in two processes, and the tests that start a Ray of their own.
set -uo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
failed=()
pytest=(.venv/bin/python -m pytest --durations=25)
processes=(-n 2 --dist loadfile)  # a third one gains nothing: both cores are busy

step() {  # name, command ...
  local name=$1 start=$SECONDS
  shift
  printf '== %s: %s\n' "$name" "$*"
  "$@" </dev/null || failed+=("$name")
  printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

lint() {
  step lint .venv/bin/ruff check .
  step format .venv/bin/ruff format --check .
  step types .venv/bin/mypy
  step docs env NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
}

beside() {  # command ...: run it beside what comes next; `join` prints its output and takes its verdict
  log=$(mktemp)
  trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT
  (failed=(); "$@"; exit ${#failed[@]}) >"$log" 2>&1 &
}

join() {  # what it was
  wait $! || failed+=("$1")
  cat "$log"
}

export OMP_NUM_THREADS=1  # two processes on two cores
export TORCHINDUCTOR_VEC_ISA_OK=0  # plain loops in compiled code: g++ takes half the time for them
tier=${1:-all}
[ $# -eq 0 ] || shift
case $tier in
  lint)
    lint
    ;;
  unit|all)
    if [ $# -gt 0 ]; then
      lint
      step tests "${pytest[@]}" "$@"
    elif [ "$tier" = unit ]; then
      beside lint  # one process, which would leave a core to nobody
      step 'quick tests without Ray' "${pytest[@]}" --ignore tests/cluster -m 'not slow' "${processes[@]}"
      join lint
    else
      beside step 'tests on one Ray' "${pytest[@]}" tests/cluster --ignore tests/cluster/alone
      lint
      step 'tests without Ray' "${pytest[@]}" --ignore tests/cluster "${processes[@]}"
      step 'tests on a Ray of their own' "${pytest[@]}" tests/cluster/alone
      join 'tests on one Ray'
    fi
    ;;
  *)
    echo "usage: scripts/test.sh [lint | unit [pytest's arguments] | all [pytest's arguments]]" >&2
    exit 2
    ;;
esac

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s, after %d s\n' "${failed[*]}" $((SECONDS - start))
  exit 1
fi
printf '%s passed in %d s\n' "$tier" $((SECONDS - start))

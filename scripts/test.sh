#!/usr/bin/env bash
# Lint, types and all tests, each with its time; every one runs, whatever the others say. Arguments go to pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
failed=()

part() {  # name, command ...
  local name=$1 begun=$SECONDS
  shift
  printf '== %s: %s\n' "$name" "$*"
  "$@" </dev/null || failed+=("$name")
  printf '== %s: %d s\n' "$name" $((SECONDS - begun))
}

part lint .venv/bin/ruff check .
part types .venv/bin/mypy
pytest=(.venv/bin/python -m pytest --durations=25)
if [ $# -gt 0 ]; then
  part tests "${pytest[@]}" "$@"
else
  # What runs on Ray waits for a third of its time, so the other tests run beside it. Its output comes when it has ended.
  log=$(mktemp)
  trap 'rm -f "$log"; kill $(jobs -p) 2>/dev/null' EXIT
  (failed=(); part 'tests on Ray' "${pytest[@]}" tests/cluster; exit ${#failed[@]}) >"$log" 2>&1 &
  part 'tests without Ray' "${pytest[@]}" --ignore tests/cluster
  wait $! || failed+=('tests on Ray')
  cat "$log"
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s, after %d s\n' "${failed[*]}" $((SECONDS - started))
  exit 1
fi
printf 'lint, types and tests passed in %d s\n' $((SECONDS - started))

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
part tests .venv/bin/python -m pytest "$@"

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s, after %d s\n' "${failed[*]}" $((SECONDS - started))
  exit 1
fi
printf 'lint, types and tests passed in %d s\n' $((SECONDS - started))
